// Train: texts in, what they are and what they cost, runs as they go.

import { $, call, chart, clock, el, fill, later, say, shown, surely, tab } from "./dom.js";
import { choice } from "./lamp.js";
import { live } from "./live.js";
import { dropZone } from "./prompts.js";
import { ABOUT, MORE, PRESETS, fields, inputs, onPage } from "./recipe.js";

const EVERY = 1000;
// Files of one request: servers count a form's parts.
const AT_ONCE = 100;

let draft = null;
let runs = new Map();

export function startTrain() {
  $("train").append(
    el("h2", {}, "A new soft prompt", el("span", { id: "train-for" })),
    el("div", { id: "texts-drop", class: "drop" },
      "Drop text files here, or ", picker("files", {}), " or ", picker("a folder", { webkitdirectory: true }),
      el("p", { class: "soft" }, "Texts, JSONL or CSV, chat logs, stories. Some tens of pages in one voice are enough.")),
    el("details", {}, el("summary", {}, "Paste text instead"), el("label", {}, "Text", el("textarea", { id: "paste", rows: 6 })), el("button", { type: "button", onclick: paste }, "Add it")),
    el("p", { id: "texts-told", role: "status" }),
    el("details", { id: "texts-out", hidden: true }, el("summary", {}, "Take a text out again"), el("ul", { class: "checks" })),
    el("div", { id: "texts-are" }),
    el("form", { id: "train-form", onsubmit: begin },
      el("label", { class: "field" }, "Name", el("input", { id: "train-name", maxLength: 100, required: true, placeholder: "The keeper's log" })),
      el("p", { class: "bar" }, el("label", {}, "How thorough ", select("preset-train", Object.keys(PRESETS), usePreset)), el("label", {}, "Begin from ", el("select", { id: "train-from", onchange: () => look() }))),
      el("details", {}, el("summary", {}, "More"), fields(MORE, look)),
      el("details", {}, el("summary", {}, "What the file says about itself"), fields(ABOUT, look), el("p", { class: "soft" }, "The file discloses these, how it was trained, and samples of its writing.")),
      el("p", { id: "train-cost", role: "status" }),
      el("p", { class: "bar" }, el("button", { id: "train-go", class: "main", disabled: true }, "Train"), el("button", { id: "train-clear", type: "button", onclick: clear }, "Start over")),
      el("p", { id: "train-told", role: "alert" })),
    el("h2", {}, "Runs"),
    el("div", { id: "runs" }, el("p", { class: "soft" }, "None yet.")),
  );
  dropZone($("texts-drop"), (files) => add(files));
  usePreset();
  live.addEventListener("state", () => {
    origins();
    $("train-for").textContent = live.state.model ? ` for ${live.state.model.name}` : "";
  });
  takeUp();
  document.addEventListener("page", () => { if (shown("train")) poll(); });
  setInterval(() => shown("train") && poll(), EVERY);
}

function picker(what, props) {
  const input = el("input", { type: "file", multiple: true, class: "hidden", ...props, onchange: () => { add([...input.files]); input.value = ""; } });
  return el("label", { class: "button" }, `choose ${what}`, input);
}

const select = (id, options, onchange) => el("select", { id, onchange }, ...options.map((one) => el("option", {}, one)));

function usePreset() {
  for (const [name, value] of Object.entries(PRESETS[$("preset-train").value])) inputs[name].value = value;
  inputs.minutes.value = "";
  look();
}

function asked() {
  const settings = { name: $("train-name").value, start_from: $("train-from").value };
  for (const [name, [, kind]] of Object.entries({ ...MORE, ...ABOUT })) {
    const input = inputs[name];
    if (kind === "bool") settings[name] = input.checked;
    else if (kind === "int" || kind === "float") { if (input.value !== "") settings[name] = input.valueAsNumber; }
    else if (input.value !== "") settings[name] = input.value;
  }
  if (settings.minutes !== undefined) delete settings.steps;
  if (settings.start_from) delete settings.init;
  return { settings };
}

function origins() {
  const before = $("train-from").value;
  const done = [...runs.values()].filter((run) => run.told.state === "done");
  $("train-from").replaceChildren(
    el("option", { value: "" }, "the texts themselves"),
    ...(live.state?.voices ?? []).filter((one) => !one.components).map((one) => el("option", { value: one.name }, `${one.title}, of the library`)),
    ...done.map(({ told }) => el("option", { value: `run:${told.id}` }, `${told.name}, trained here`)),
  );
  $("train-from").value = before;
  if ($("train-from").selectedIndex < 0) $("train-from").value = "";
}

// Texts ---------------------------------------------------------------------------------------------------------------------

async function add(files) {
  if (!files.length) return;
  say($("texts-told"), `Taking ${files.length} ${files.length === 1 ? "file" : "files"} ...`);
  try {
    for (let at = 0; at < files.length; at += AT_ONCE) {
      const form = new FormData();
      for (const file of files.slice(at, at + AT_ONCE)) form.append("files", file, file.webkitRelativePath || file.name);
      if (draft) form.append("run", draft.id);
      draft = await call("ui/texts", { method: "POST", form });
    }
    const [first] = files;
    if (!$("train-name").value) $("train-name").value = (first.webkitRelativePath?.split("/")[0] || first.name.replace(/\.[^.]*$/, "")).slice(0, 100);
    tab.set("draft", draft.id);
    tab.set("draft-name", $("train-name").value);
    taken();
  } catch (error) {
    say($("texts-told"), error.message, "bad");
  }
}

/** The draft has these texts now. */
function taken() {
  say($("texts-told"), `Texts: ${draft.texts.join(", ")}`);
  $("texts-out").hidden = false;
  fill($("texts-out").querySelector("ul"), ...draft.texts.map((name) => el("li", {}, el("button", { type: "button", onclick: () => takeOut(name) }, `Remove ${name}`))));
  look();
}

async function takeOut(name) {
  try {
    draft = await call(`ui/jobs/${draft.id}/texts?file=${encodeURIComponent(name)}`, { method: "DELETE" });
  } catch (error) {
    say($("texts-told"), error.message, "bad");
    return;
  }
  if (draft.texts.length) taken();
  else clear();
  // The button that had the focus is gone.
  (draft ? $("texts-out").querySelector("summary") : $("texts-drop").querySelector("input")).focus();
}

/** Texts that this tab took before a reload. */
async function takeUp() {
  const told = tab.get("draft") && await call(`ui/jobs/${tab.get("draft")}`).catch(() => null);
  if (told?.state !== "draft" || draft) return;
  draft = told;
  $("train-name").value ||= tab.get("draft-name", "");
  taken();
}

/** The texts and the settings of a run, to train on again. */
async function again(told) {
  if (draft) {
    tell(told, "There are texts above already: train on them, or start over, first.", "bad");
    return;
  }
  try {
    draft = await call(`ui/jobs/${told.id}/again`, { method: "POST", json: {} });
  } catch (error) {
    tell(told, error.message, "bad");
    return;
  }
  tab.set("draft", draft.id);
  tab.set("draft-name", draft.name);
  $("train-name").value = draft.name;
  $("train-from").value = draft.settings.start_from ?? "";
  for (const [name, input] of Object.entries(inputs)) {
    if (input.type === "checkbox") input.checked = Boolean(draft.settings[name]);
    else input.value = draft.settings[name] ?? "";
  }
  taken();
  $("texts-drop").scrollIntoView({ block: "center" });
}

async function paste() {
  const text = $("paste").value;
  if (!text.trim()) return;
  const count = (draft?.texts ?? []).filter((name) => name.startsWith("pasted")).length;
  await add([new File([text], `pasted-${count + 1}.txt`, { type: "text/plain" })]);
  $("paste").value = "";
}

function clear() {
  if (draft) call(`ui/jobs/${draft.id}`, { method: "DELETE" }).catch(() => {});
  draft = null;
  tab.remove("draft");
  looking = null;
  for (const id of ["texts-told", "train-cost", "train-told"]) say($(id), "");
  $("texts-are").replaceChildren();
  $("texts-out").hidden = true;
  $("texts-out").open = false;
  $("train-name").value = "";
  $("train-go").disabled = true;
}

let looking = null;

/** What the texts are and what training on them costs, with the settings as they are: measured by the server. */
const look = later(async () => {
  if (!draft) return;
  const mine = (looking = Symbol("look"));
  say($("train-cost"), "Reading the texts ...");
  try {
    let told = await call(`ui/jobs/${draft.id}/look`, { method: "POST", json: asked() });
    for (;;) {
      if (looking !== mine) return;
      if (told.texts) understood(told.texts);
      if (!told.busy) break;
      if (told.texts) say($("train-cost"), "Measuring three steps on this machine ...");
      await new Promise((done) => setTimeout(done, 500));
      told = await call(`ui/jobs/${draft.id}/look`);
    }
    $("train-go").disabled = Boolean(told.error);
    if (told.error) {
      say($("train-cost"), onPage(told.error), "bad");
      // One bad text: its button is in sight.
      if (draft.texts.some((name) => told.error.startsWith(`${name},`))) $("texts-out").open = true;
    } else {
      const { steps, seconds, step_seconds, memory_bytes, free_bytes } = told.cost;
      const much = memory_bytes > free_bytes;
      say($("train-cost"), `${steps} steps of about ${step_seconds.toFixed(1)} s: ${clock(seconds)} of training, then the measuring. Memory: about ${(memory_bytes / 2 ** 30).toFixed(1)} GiB; ${(free_bytes / 2 ** 30).toFixed(1)} GiB are free.`, much ? "bad" : "");
    }
  } catch (error) {
    if (looking !== mine) return;
    say($("train-cost"), error.message, "bad");
    $("train-go").disabled = true;
  }
}, 400);

function understood(texts) {
  $("texts-are").replaceChildren(
    el("p", {}, `${texts.train} pieces to train on (${texts.examples} examples, ${texts.tokens} tokens), ${texts.validation} to validate, ${texts.heldout} held out for the report. ${texts.how}`),
    ...[...texts.notes, ...texts.duplicates].map((line) => el("p", { class: "soft" }, line)),
  );
}

async function begin(event) {
  event.preventDefault();
  if (!draft) return;
  const mine = draft, json = asked();
  // At once: what is dropped while the server is asked is for another run.
  draft = null;
  clear();
  tab.set("draft", mine.id);
  try {
    await call(`ui/jobs/${mine.id}/train`, { method: "POST", json });
    if (tab.get("draft") === mine.id) tab.remove("draft");
    if (!draft) say($("texts-told"), "It is in the queue below. You may close this page: it goes on.", "good");
    poll();
  } catch (error) {
    say($("train-told"), error.message, "bad");
    if (draft) return;
    draft = mine;
    $("train-name").value = json.settings.name;
    taken();
  }
}

// Runs ----------------------------------------------------------------------------------------------------------------------

let polling = false;

async function poll() {
  if (polling) return;
  polling = true;
  try {
    const all = await call("ui/jobs");
    const known = runs;
    runs = new Map(all.map((told) => [told.id, known.get(told.id) ?? { told, events: [], card: el("article", { class: "run" }) }]));
    for (const told of all) await follow(runs.get(told.id), told);
    const cards = all.map((told) => runs.get(told.id).card);
    const places = [...$("runs").children];
    // Moved only where the list is another: what has the focus keeps it.
    if (cards.length !== places.length || cards.some((card, at) => card !== places[at])) {
      $("runs").replaceChildren(...(cards.length ? cards : [el("p", { class: "soft" }, "None yet.")]));
    }
    origins();
  } catch (error) {
    say($("train-told"), error.status ? error.message : "", "bad");
  } finally {
    polling = false;
  }
}

async function follow(run, told) {
  const moving = ["running", "stopping"].includes(told.state);
  const changed = JSON.stringify(told) !== JSON.stringify(run.told) || !run.card.children.length;
  if (moving || changed || !run.whole) {
    const news = await call(`ui/jobs/${told.id}?after=${run.events.length}`);
    if (news.after !== run.events.length) run.events = [];
    const more = news.events.length > 0;
    run.events.push(...news.events);
    run.whole = !moving;
    run.told = told;
    if (more || changed) draw(run);
  }
}

const STATES = { waiting: "waits for its turn", running: "training", stopping: "stopping after this step", stopped: "stopped", failed: "failed", done: "done" };

function draw({ told, events, card }) {
  const steps = events.filter((one) => one.kind === "step"), validations = events.filter((one) => one.kind === "validation"), samples = events.filter((one) => one.kind === "sample");
  const at = steps.at(-1)?.step ?? 0;
  const recent = steps.slice(-8), seconds = recent.reduce((sum, one) => sum + one.seconds, 0);
  const parts = [STATES[told.state]];
  if (told.state === "running" && !at) parts.push("reading the texts and measuring this machine");
  if (at) parts.push(`step ${at} of ${told.steps}`);
  if (told.state === "running" && seconds) parts.push(`${Math.round(recent.reduce((sum, one) => sum + one.tokens, 0) / seconds)} tokens/s`, at < told.steps ? `about ${clock(((told.steps - at) * seconds) / recent.length)} left` : "measuring on the held-out texts");
  if (validations.length) parts.push(`validation loss ${validations.at(-1).loss.toFixed(3)}`);
  card.setAttribute("aria-label", `Run ${told.name}`);
  const open = card.querySelector("details")?.open ?? true;
  fill(
    card,
    el("h3", {}, told.name || "voice"),
    el("p", { class: "state" }, parts.join("; ")),
    told.error ? el("p", { dataset: { kind: "bad" } }, onPage(told.error)) : null,
    told.steps && !["done"].includes(told.state) ? el("progress", { max: told.steps, value: at, ariaLabel: "Steps done" }) : null,
    steps.length > 1 ? chart([{ class: "first", points: steps.map((one) => [one.step, one.loss]) }, { class: "second", points: validations.map((one) => [one.step, one.loss]) }], { label: `Loss of ${told.name}: thin each step, thick validation` }) : null,
    samples.length ? el("details", { open }, el("summary", {}, `The voice arrives: ${samples.length} ${samples.length === 1 ? "sample" : "samples"}`), ...samples.map((one) => el("p", { class: "sample" }, el("b", {}, `step ${one.step}: `), el("span", { class: "soft" }, one.prompt), one.text))) : null,
    el("p", { class: "bar" }, ...actions(told)),
    el("p", { class: "told", role: "status" }),
  );
}

function actions(told) {
  const path = `ui/jobs/${told.id}`;
  const button = (says, doing, kind = "") => el("button", { type: "button", class: kind, onclick: doing }, says);
  const post = (what) => async () => {
    try {
      await call(`${path}/${what}`, { method: "POST", json: {} });
    } catch (error) {
      tell(told, error.message, "bad");
    }
    poll();
  };
  const some = [];
  if (told.state === "running") some.push(button("Stop", post("stop")));
  if (told.state === "waiting") some.push(button("Take it out of the queue", post("stop")));
  if (["stopped", "failed"].includes(told.state)) some.push(button(told.checkpoint ? "Resume" : "Begin again", post("resume"), "main"));
  if (told.state === "done") {
    some.push(
      button("Try it", () => keep(told, true), "main"),
      button("Add to library", () => keep(told, false)),
      el("a", { class: "button", href: `${path}/file`, download: "" }, "Download"),
      button("Continue with more data", () => { $("train-from").value = `run:${told.id}`; $("texts-drop").scrollIntoView({ block: "center" }); say($("texts-told"), `Add texts: the new run begins from ${told.name}.`); }),
    );
  }
  if (told.report) some.push(el("a", { class: "button", href: `${path}/report`, target: "_blank" }, "Report"));
  if (["stopped", "failed", "done"].includes(told.state)) some.push(button("Train again with other settings", () => again(told)));
  if (told.state !== "waiting") some.push(el("a", { class: "button", href: `${path}/log`, target: "_blank" }, "Log"));
  if (!["running", "stopping"].includes(told.state)) some.push(surely(el("button", { type: "button" }, "Delete"), path, async () => { await call(path, { method: "DELETE" }).catch((error) => tell(told, error.message, "bad")); poll(); }));
  return some;
}

async function keep(told, tries) {
  try {
    const { id } = await call(`ui/jobs/${told.id}/keep`, { method: "POST", json: {} });
    tell(told, `In the library as ${id}.`, "good");
    if (tries) {
      choice.choose(id);
      location.hash = "#write";
    }
  } catch (error) {
    tell(told, error.message, "bad");
  }
}

function tell(told, text, kind) {
  const where = runs.get(told.id)?.card.querySelector(".told");
  if (where) say(where, text, kind);
}

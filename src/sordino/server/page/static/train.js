// Train: texts, what training on them costs, and the runs.

import { $, call, clock, debounce, el, fill, setStatus, tab } from "./dom.js";
import { dropZone, picker } from "./drop.js";
import { live } from "./live.js";
import { fields, form, inputs, onPage, PRESETS, runRequest } from "./recipe.js";
import { finished, notify, poll, startRuns } from "./runs.js";

// Files of one request: servers limit a form's parts.
const AT_ONCE = 100;

let draft = null;

export function startTrain() {
  if (!form.run.length) return;
  $("train").append(
    el("h2", {}, "A new soft prompt", el("span", { id: "train-for" })),
    el(
      "div",
      { id: "texts-drop", class: "drop" },
      "Drop text files here, or ",
      picker("files", {}, add),
      " or ",
      picker("a folder", { webkitdirectory: true }, add),
      el(
        "p",
        { class: "soft" },
        "Texts, JSONL or CSV, chat logs, stories. Some tens of pages in one voice are enough.",
      ),
    ),
    el(
      "details",
      {},
      el("summary", {}, "Paste text instead"),
      el("label", {}, "Text", el("textarea", { id: "paste", rows: 6 })),
      el("button", { type: "button", onclick: paste }, "Add it"),
    ),
    el("p", { id: "texts-status", role: "status" }),
    el(
      "details",
      { id: "texts-out", hidden: true },
      el("summary", {}, "Remove a text"),
      el("ul", { class: "checks" }),
    ),
    el("div", { id: "texts-are" }),
    el(
      "form",
      { id: "train-form", onsubmit: begin },
      el(
        "label",
        { class: "field" },
        "Name",
        el("input", { id: "train-name", maxLength: 100, required: true, placeholder: "The keeper's log" }),
      ),
      el(
        "p",
        { class: "bar" },
        el("label", {}, "How thorough ", select("preset-train", Object.keys(PRESETS), usePreset)),
        el("label", {}, "Begin from ", el("select", { id: "train-from", onchange: () => measure() })),
      ),
      el("details", {}, el("summary", {}, "More"), fields(form.run, measure)),
      el(
        "details",
        {},
        el("summary", {}, "What the file says about itself"),
        fields(form.about, measure),
        el("p", { class: "soft" }, "The file discloses these, how it was trained, and samples of its writing."),
      ),
      el("p", { id: "train-cost", role: "status" }),
      el(
        "p",
        { class: "bar" },
        el("button", { id: "train-go", class: "main", disabled: true }, "Train"),
        el("button", { id: "train-clear", type: "button", onclick: clear }, "Start over"),
      ),
      el("p", { id: "train-status", role: "alert" }),
    ),
    el("h2", {}, "Runs"),
    el("div", { id: "runs" }, el("p", { class: "soft" }, "None yet.")),
  );
  dropZone($("texts-drop"), add);
  usePreset();
  live.addEventListener("state", () => {
    origins();
    $("train-for").textContent = live.state.model ? ` for ${live.state.model.name}` : "";
  });
  restoreDraft();
  startRuns({ again, goOn, changed: origins });
}

const select = (id, options, onchange) =>
  el("select", { id, onchange }, ...options.map((one) => el("option", {}, one)));

function usePreset() {
  for (const [name, value] of Object.entries(PRESETS[$("preset-train").value])) inputs[name].value = value;
  inputs.minutes.value = "";
  measure();
}

function origins() {
  const before = $("train-from").value;
  $("train-from").replaceChildren(
    el("option", { value: "" }, "the texts themselves"),
    ...(live.state?.prompts ?? [])
      .filter((one) => !one.components)
      .map((one) => el("option", { value: one.name }, `${one.title}, of the library`)),
    ...finished().map((job) => el("option", { value: `run:${job.id}` }, `${job.name}, trained here`)),
  );
  $("train-from").value = before;
  if ($("train-from").selectedIndex < 0) $("train-from").value = "";
}

// Texts -------------------------------------------------------------------------------------------

async function add(files) {
  if (!files.length) return;
  setStatus($("texts-status"), `Taking ${files.length} ${files.length === 1 ? "file" : "files"} ...`);
  try {
    for (let at = 0; at < files.length; at += AT_ONCE) {
      const form = new FormData();
      for (const file of files.slice(at, at + AT_ONCE))
        form.append("files", file, file.webkitRelativePath || file.name);
      if (draft) form.append("run", draft.id);
      draft = await call("ui/texts", { method: "POST", form });
    }
    const [first] = files;
    if (!$("train-name").value)
      $("train-name").value = (first.webkitRelativePath?.split("/")[0] || first.name.replace(/\.[^.]*$/, "")).slice(
        0,
        100,
      );
    tab.set("draft", draft.id);
    tab.set("draft-name", $("train-name").value);
    showDraft();
  } catch (error) {
    setStatus($("texts-status"), error.message, "bad");
  }
}

/** Show the draft's texts. */
function showDraft() {
  setStatus($("texts-status"), `Texts: ${draft.texts.join(", ")}`);
  $("texts-out").hidden = false;
  fill(
    $("texts-out").querySelector("ul"),
    ...draft.texts.map((name) =>
      el("li", {}, el("button", { type: "button", onclick: () => removeText(name) }, `Remove ${name}`)),
    ),
  );
  measure();
}

async function removeText(name) {
  try {
    draft = await call(`ui/jobs/${draft.id}/texts?file=${encodeURIComponent(name)}`, { method: "DELETE" });
  } catch (error) {
    setStatus($("texts-status"), error.message, "bad");
    return;
  }
  if (draft.texts.length) showDraft();
  else clear();
  // The focused button is gone.
  (draft ? $("texts-out").querySelector("summary") : $("texts-drop").querySelector("input")).focus();
}

/** The draft that this tab had before a reload. */
async function restoreDraft() {
  const job = tab.get("draft") && (await call(`ui/jobs/${tab.get("draft")}`).catch(() => null));
  if (job?.state !== "draft" || draft) return;
  draft = job;
  $("train-name").value ||= tab.get("draft-name", "");
  showDraft();
}

/** A draft with the texts and settings of a run. */
async function again(job) {
  if (draft) {
    notify(job, "There are texts above already: train on them or start over first.", "bad");
    return;
  }
  try {
    draft = await call(`ui/jobs/${job.id}/again`, { method: "POST", json: {} });
  } catch (error) {
    notify(job, error.message, "bad");
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
  showDraft();
  $("texts-drop").scrollIntoView({ block: "center" });
}

/** A new run that begins from the result of this one. */
function goOn(job) {
  $("train-from").value = `run:${job.id}`;
  $("texts-drop").scrollIntoView({ block: "center" });
  setStatus($("texts-status"), `Add texts: the new run begins from ${job.name}.`);
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
  measuring = null;
  for (const id of ["texts-status", "train-cost", "train-status"]) setStatus($(id), "");
  $("texts-are").replaceChildren();
  $("texts-out").hidden = true;
  $("texts-out").open = false;
  $("train-name").value = "";
  $("train-go").disabled = true;
}

let measuring = null;

/** Let the server measure the texts and what training on them costs with these settings. */
const measure = debounce(async () => {
  if (!draft) return;
  const mine = (measuring = Symbol("look"));
  setStatus($("train-cost"), "Reading the texts ...");
  try {
    let measured = await call(`ui/jobs/${draft.id}/look`, { method: "POST", json: runRequest() });
    for (;;) {
      if (measuring !== mine) return;
      if (measured.texts) showTexts(measured.texts);
      if (!measured.busy) break;
      if (measured.texts) setStatus($("train-cost"), "Measuring three steps on this machine ...");
      await new Promise((done) => setTimeout(done, 500));
      measured = await call(`ui/jobs/${draft.id}/look`);
    }
    $("train-go").disabled = Boolean(measured.error);
    if (measured.error) {
      setStatus($("train-cost"), onPage(measured), "bad");
      // A text is at fault: show its button.
      if (draft.texts.some((name) => measured.where === name || measured.where.startsWith(`${name},`)))
        $("texts-out").open = true;
    } else {
      const { steps, seconds, step_seconds, measuring_seconds, memory_bytes, free_bytes } = measured.cost;
      const { wanted_steps, wanted_seconds } = measured.cost;
      const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
      setStatus(
        $("train-cost"),
        `${steps} steps of about ${step_seconds.toFixed(1)} s: ${clock(seconds)}, ` +
          `${clock(measuring_seconds)} of it to measure the result. ` +
          (wanted_steps > steps ? `The texts are worth ${wanted_steps} steps: ${clock(wanted_seconds)}. ` : "") +
          `Memory: about ${gib(memory_bytes)}; ${gib(free_bytes)} are free.`,
        memory_bytes > free_bytes ? "bad" : "",
      );
    }
  } catch (error) {
    if (measuring !== mine) return;
    setStatus($("train-cost"), error.message, "bad");
    $("train-go").disabled = true;
  }
}, 400);

function showTexts(texts) {
  $("texts-are").replaceChildren(
    el(
      "p",
      {},
      `${texts.train} pieces to train on (${texts.examples} examples, ${texts.tokens} tokens), ` +
        `${texts.validation} to validate, ${texts.heldout} held out for the report. ${texts.how}`,
    ),
    ...[...texts.notes, ...texts.duplicates].map((line) => el("p", { class: "soft" }, line)),
  );
}

async function begin(event) {
  event.preventDefault();
  if (!draft) return;
  const mine = draft,
    json = runRequest();
  // At once: files that are dropped while the request runs belong to another run.
  draft = null;
  clear();
  tab.set("draft", mine.id);
  try {
    await call(`ui/jobs/${mine.id}/train`, { method: "POST", json });
    if (tab.get("draft") === mine.id) tab.remove("draft");
    if (!draft) setStatus($("texts-status"), "It is in the queue below, and goes on if you close this page.", "good");
    poll();
  } catch (error) {
    setStatus($("train-status"), error.message, "bad");
    if (draft) return;
    draft = mine;
    $("train-name").value = json.settings.name;
    showDraft();
  }
}

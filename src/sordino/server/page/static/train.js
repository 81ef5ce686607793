// Train: the form of a new run, the runs, and the page of the run that is open.

import * as drafts from "./draft.js";
import { $, call, el, shown } from "./dom.js";
import { folding, NARROW } from "./drawer.js";
import { dropZone, picker } from "./drop.js";
import { icon } from "./icons.js";
import { live } from "./live.js";
import { chooser } from "./options.js";
import { isPair } from "./output.js";
import { fields, fillFields, form, inputs, kindField, onPage, PRESETS, runRequest } from "./recipe.js";
import { route } from "./route.js";
import { runPage } from "./run.js";
import { finished, isKnown, poll, runs, startRuns } from "./runs.js";
import { toast } from "./toast.js";

let open = null;
// The names of the models that are on the server's machine.
let here = [];
const model = chooser("train-model", "Model", (value) => {
  offerModels(value);
  drafts.measure();
});
// What the matrix starts from.
const origin = chooser("train-from", "Start from", (value) => {
  origins(value);
  drafts.measure();
});

export function startTrain() {
  if (!form.run.length) return;
  const side = el(
    "aside",
    { id: "runs-side", class: "side", ariaLabel: "Runs" },
    el("h2", {}, "Runs"),
    el("a", { class: "button", href: "#train" }, "New soft prompt"),
    el("ul", { id: "runs" }),
    el("p", { id: "runs-none", class: "soft" }, "None yet. A run continues when you close this page."),
    el("p", { id: "runs-status", role: "alert" }),
  );
  const toggle = el("button", { type: "button", class: "quiet", id: "runs-open" }, icon("list"), " Runs");
  open = runPage({ again, goOn });
  $("train").append(side, el("div", { class: "pane" }, toggle, newRun(), open.element));
  const fold = folding(side, toggle, { name: "runs", open: true });
  side.addEventListener("click", ({ target }) => NARROW.matches && target.closest("a") && fold(false));
  dropZone($("train"), (files) => {
    location.hash = "#train";
    drafts.add(files);
  });
  live.addEventListener("state", () => {
    origins();
    offerModels();
  });
  drafts.restore();
  startRuns(() => {
    origins();
    turn();
  });
  document.addEventListener("page", () => {
    turn();
    if (shown("train")) models();
  });
}

function newRun() {
  const name = el("input", { id: "train-name", maxLength: 100, required: true, oninput: drafts.keepName }),
    efforts = Object.keys(PRESETS).map((one) => new Option(one));
  return el(
    "div",
    { id: "train-new" },
    el("h2", {}, "New soft prompt"),
    texts(),
    el(
      "form",
      { id: "train-form", onsubmit: begin },
      el("h3", {}, "The soft prompt"),
      el(
        "div",
        { class: "grid basics" },
        el("label", {}, "Name", name),
        el("div", {}, el("span", { class: "soft" }, "Model"), model.element),
        kindField(drafts.measure),
        el("label", {}, "Effort", el("select", { id: "preset-train", onchange: usePreset }, efforts)),
        el("div", {}, el("span", { class: "soft" }, "Start from"), origin.element),
      ),
      el("details", {}, el("summary", {}, "More settings"), fields(form.run, drafts.measure)),
      el(
        "details",
        {},
        el("summary", {}, "Metadata"),
        el("p", { class: "soft" }, "The file will contain these, how it was trained, and samples of its writing."),
        fields(form.about, drafts.measure),
      ),
      el(
        "div",
        { class: "bar go" },
        el("button", { id: "train-go", class: "main", disabled: true }, "Train"),
        el("button", { id: "train-clear", type: "button", class: "quiet", onclick: drafts.clear }, "Start over"),
        el("span", { id: "train-cost", class: "soft", role: "status" }),
      ),
      el("p", { id: "train-status", role: "alert" }),
    ),
  );
}

function texts() {
  const pickers = [picker("files", {}, drafts.add), picker("a folder", { webkitdirectory: true }, drafts.add)];
  return el(
    "div",
    { id: "texts" },
    el(
      "div",
      { id: "texts-drop", class: "drop" },
      el("p", {}),
      el("p", { class: "bar" }, pickers),
      el("small", {}, "Plain text, JSONL, CSV, chat logs, stories, web pages"),
    ),
    el(
      "details",
      {},
      el("summary", {}, "Paste text"),
      el("label", {}, "Text", el("textarea", { id: "paste", rows: 6 })),
      el("button", { type: "button", onclick: drafts.addPasted }, "Add"),
    ),
    el("p", { id: "texts-status", role: "status" }),
    el("div", { id: "texts-are", hidden: true }, el("ul", { id: "texts-list" }), el("div", { id: "texts-facts" })),
  );
}

function usePreset() {
  inputs.steps.value = PRESETS[$("preset-train").value];
  inputs.minutes.value = "";
  drafts.measure();
}

/** Read which models are on the server's machine. */
async function models() {
  const { choices } = await call("ui/models").catch(() => ({ choices: [] }));
  here = choices.filter(({ download }) => download === 0).map(({ name }) => name);
  offerModels();
}

/** What an encoder-decoder learns from, and that a KV prompt is not possible with one. Of other models than the one in use
 * only the server knows. */
function kinds() {
  const pair = isPair() && $("train-model").value === "";
  inputs.kind.querySelector("[value=kv]").disabled = pair;
  $("texts-drop").querySelector("p").textContent = pair
    ? "Drop rows with a prompt and a completion here, or texts in one voice."
    : "Drop texts in one voice here. A few dozen pages are enough.";
}

/** chosen: as in `origins`. */
function offerModels(chosen = $("train-model").value) {
  const inUse = live.state?.model?.name;
  const others = here.filter((name) => name !== inUse).map((name) => [name, name]);
  model.show([["", inUse ? `${inUse}, in use` : form.model], ...others], chosen);
  kinds();
}

/** Choose the model of a run, which may be on this machine no more. */
function chooseModel(name) {
  if (name !== live.state?.model?.name && !here.includes(name)) here.push(name);
  offerModels(name === live.state?.model?.name ? "" : name);
}

/** Offer what a run may start from. chosen: by default what is chosen stays. */
function origins(chosen = $("train-from").value) {
  const prompts = (live.state?.prompts ?? []).filter((one) => !one.components);
  const rows = [
    ["", "The texts themselves"],
    ...prompts.map((one) => [one.name, one.title, "from the library"]),
    ...finished().map((job) => [`run:${job.id}`, job.name, "trained here"]),
  ];
  origin.show(rows, chosen);
}

/** Show what the address names: the form, or a run. */
function turn() {
  const { page, rest } = route();
  if (page !== "train") return;
  $("train-new").hidden = Boolean(rest);
  open.show(rest, rest ? runs.get(rest) : null, { isKnown: isKnown() });
}

/** A draft with the texts and settings of a run. Raises an Error. */
async function again(job) {
  if (drafts.current())
    throw new Error("The form already has texts. Train on them or start over first.");
  const draft = await call(`ui/jobs/${job.id}/again`, { method: "POST", json: {} });
  $("train-name").value = draft.name;
  origins(draft.settings.start_from ?? "");
  chooseModel(job.model);
  fillFields(draft.settings);
  location.hash = "#train";
  drafts.take(draft);
}

/** A new run that starts from the result of this one. */
function goOn(job) {
  location.hash = "#train";
  origins(`run:${job.id}`);
  chooseModel(job.model);
  $("texts-status").textContent = `Add texts: the new run starts from ${job.name}.`;
}

async function begin(event) {
  event.preventDefault();
  if (!drafts.current()) return;
  const json = runRequest(),
    mine = drafts.release();
  try {
    await call(`ui/jobs/${mine.id}/train`, { method: "POST", json });
    await poll();
    // Texts that were dropped meanwhile are another run's, and stay in view.
    if (drafts.current())
      toast(`${json.settings.name} is in the queue.`, "good", {
        label: "Show",
        run: () => (location.hash = `#train/${mine.id}`),
      });
    else location.hash = `#train/${mine.id}`;
  } catch (error) {
    $("train-status").textContent = onPage({ error: error.message, named: [] });
    if (drafts.current()) return;
    $("train-name").value = json.settings.name;
    drafts.take(mine);
  }
}

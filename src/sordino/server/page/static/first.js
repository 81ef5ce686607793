// The first visit: one card leads from nothing to a green lamp and text on the screen.

import { $, bytes, call, el, local, redraw } from "./dom.js";
import { live } from "./live.js";
import { choice } from "./status.js";

const POLL_MS = 500;

// The page Write: isEmpty(), whether a story is begun; begin(opening), which begins one.
let host;
// ui/starters; what is being waited for: {text, part}; why it failed.
let starters = null,
  waiting = null,
  failed = "";

/** Returns a function that shows the card where it is of use; call it when a story has been opened. */
export function startFirst(page) {
  host = page;
  for (const event of ["state", "connection"]) live.addEventListener(event, show);
  $("story").addEventListener("input", show);
  return show;
}

const isClosed = () => local.get("first", "") === "closed";
const hasPrompts = () => (live.state?.prompts.length ?? 0) > 0;

async function show() {
  const { state, connected } = live,
    isAlone = waiting || (connected && state && !state.model && host.isEmpty());
  // Above a story it stays when that is begun: nothing moves while somebody types.
  const isAbove =
    connected && state?.model && !hasPrompts() && !isClosed() && (host.isEmpty() || !$("first").hidden);
  $("first").hidden = !isAlone && !isAbove;
  $("write").dataset.first = isAlone ? "alone" : isAbove ? "above" : "";
  if ($("first").hidden) return;
  try {
    starters ??= await call("ui/starters");
  } catch (error) {
    failed = error.message;
  }
  draw();
}

function draw() {
  const { state } = live,
    loading = state?.loading,
    had = $("first").contains(document.activeElement);
  const drawn = [state?.model?.name, state?.count, loading, waiting, failed, Boolean(starters)];
  const make = () => [
    el("h2", {}, state?.model && !waiting ? `${state.model.name} is ready` : "Give a language model a voice"),
    el(
      "p",
      {},
      "A soft prompt makes a language model write in one voice, say a lighthouse keeper's. It is a " +
        "small file of learned numbers that stand in front of your text. The model itself does not change.",
    ),
    ...(waiting ? progress(loading) : starters ? choices(state) : []),
    failed && el("p", { role: "alert", dataset: { kind: "bad" } }, failed),
  ];
  if (redraw($("first"), drawn, make) && had) $("first").querySelector("button")?.focus();
}

function choices(state) {
  const { model, megabytes, present, needed, fits, prompts } = starters;
  const names = prompts.map((one) => one.title).join(", ");
  if (state.model)
    return [
      state.count > 0 && el("p", {}, `None of the ${state.count} files in the library fits ${state.model.name}.`),
      state.model.name === model
        ? el("p", {}, `Starter prompts for it: ${names}.`)
        : el("p", {}, `The starter prompts are for ${model}. For ${state.model.name} you can train one.`),
      el(
        "p",
        { class: "bar" },
        state.model.name === model && button("Try a starter prompt", start),
        el("a", { class: "button", href: "#prompts" }, "Upload one"),
        el("a", { class: "button", href: "#train" }, "Train one"),
        button("Write without one", close, ""),
      ),
    ];
  return [
    el(
      "p",
      { class: "bar" },
      el(
        "span",
        {},
        "Model: ",
        el("strong", {}, model),
        ` · ${present ? "on this machine" : `${megabytes} MB to download, once`}`,
        needed === null ? "" : ` · needs ${bytes(needed)} of memory`,
      ),
      el(
        "span",
        { class: "badge", dataset: { kind: fits === false ? "bad" : "good" } },
        fits === false ? "Too large for this machine" : "Fits this machine",
      ),
    ),
    el("p", { class: "soft" }, `Comes with ${prompts.length} starter prompts: ${names}.`),
    el(
      "p",
      { class: "bar" },
      button("Start writing", start),
      button("Choose another model", () => $("model-open").click(), ""),
    ),
  ];
}

const button = (text, onclick, kind = "main") => el("button", { type: "button", class: kind, onclick }, text);

/** What is waited for, with a bar that knows how far a download is. */
function progress(loading) {
  const isModel = waiting.part === "model",
    line = isModel && loading ? `${waiting.text}: ${loading.line}` : `${waiting.text} ...`,
    known = isModel && loading?.total > 0 ? { max: loading.total, value: loading.done } : {};
  return [
    el("p", { role: "status" }, line),
    el("progress", { ariaLabel: waiting.text, ...known }),
    isModel &&
      el("p", { class: "bar" }, button("Cancel", () => call("ui/models/cancel", { method: "POST", json: {} }), "")),
  ];
}

function close() {
  local.set("first", "closed");
  show();
}

// The way to the first text -----------------------------------------------------------------------

/** Load the model, put the starter prompts into the library, activate the first, write. */
async function start() {
  failed = "";
  try {
    if (!live.state.model) await load();
    wait("prompts", "Adding the starter prompts to the library");
    await call("ui/prompts/examples", { method: "POST" });
    const known = () => starters.prompts.find((one) => choice.prompt(one.name));
    await until(known);
    choice.choose(known().name);
    waiting = null;
    host.begin(known().opening);
  } catch (error) {
    waiting = null;
    failed = error.message;
  }
  show();
}

async function load() {
  wait("model", `Loading ${starters.model}`);
  let status = await call("ui/models", { method: "POST", json: { name: starters.model } });
  while (status.loading) {
    await new Promise((done) => setTimeout(done, POLL_MS));
    status = await call("ui/models");
  }
  if (status.error) throw new Error(status.error);
  if (!status.current) throw new Error("Loading was cancelled");
  await until(() => live.state.model);
}

function wait(part, text) {
  waiting = { part, text };
  show();
}

/** When `test` holds, which is asked at each state of the server. */
function until(test) {
  return new Promise((done) => {
    const look = () => {
      if (!test()) return;
      live.removeEventListener("state", look);
      done();
    };
    live.addEventListener("state", look);
    look();
  });
}

// The base model: what there is, loading with progress, cancelling, unloading.

import { $, bytes, call, el, say } from "./dom.js";
import { live } from "./live.js";

const KINDS = { bundled: "bundled", recent: "used before", downloaded: "on this machine" };

export function startModels() {
  for (const id of ["model-open", "no-model-open"]) $(id).addEventListener("click", open);
  $("models-close").addEventListener("click", () => $("models").close());
  $("models-cancel").addEventListener("click", () => ask("ui/models/cancel"));
  $("models-unload").addEventListener("click", () => ask("ui/models/unload"));
  $("models-other").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("models-name").value.trim()) load($("models-name").value.trim());
  });
  live.addEventListener("state", show);
}

async function open() {
  $("models").showModal();
  await read();
}

async function read() {
  try {
    const { choices, free } = await call("ui/models");
    $("models-list").replaceChildren(
      el(
        "p",
        { class: "soft" },
        `${bytes(free)} of memory are free. Changing the model lets running texts finish first.`,
      ),
      el("div", { class: "scroll", tabIndex: 0 }, el("table", {}, el("tbody", {}, ...choices.map(row)))),
    );
    show();
  } catch (error) {
    say($("models-told"), error.message, "bad");
  }
}

function row({ name, kind, needed }) {
  const current = live.state?.model?.name === name;
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, name),
    el("td", {}, KINDS[kind]),
    el("td", {}, needed === null ? "" : `about ${bytes(needed)}`),
    el(
      "td",
      {},
      current
        ? "in use"
        : el("button", { type: "button", ariaLabel: `Load ${name}`, onclick: () => load(name) }, "Load"),
    ),
  );
}

const load = (name) => ask("ui/models", { name });

async function ask(path, json = {}) {
  try {
    await call(path, { method: "POST", json });
    say($("models-told"), "");
  } catch (error) {
    say($("models-told"), error.message, "bad");
  }
}

let last = null;
// What went wrong is told once: newer words stay.
let told = null;

function show() {
  const { loading, error, model } = live.state ?? {};
  $("models-cancel").hidden = !loading;
  $("models-unload").disabled = !model;
  if (loading) say($("models-told"), `Loading ${loading.name}: ${loading.line}`);
  else if (error && error !== told) say($("models-told"), error, "bad");
  else if (last && !error)
    say($("models-told"), model ? `Ready: ${model.name}, run by ${model.runner}` : "No model is loaded", "good");
  told = loading ? null : error;
  // A change was made while the list is shown.
  const now = JSON.stringify([Boolean(loading), model?.name]);
  const changed = last !== null && now !== last;
  last = now;
  if (changed && $("models").open) read();
}

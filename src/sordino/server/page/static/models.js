// The base model: choosing, loading with progress, cancelling, unloading.

import { $, bytes, call, el, scrolling, setStatus, table } from "./dom.js";
import { live } from "./live.js";

const KINDS = { bundled: "bundled", recent: "used before", downloaded: "on this machine" };

export function startModels() {
  for (const id of ["model-open", "no-model-open"]) $(id).addEventListener("click", open);
  $("models-close").addEventListener("click", () => $("models").close());
  $("models-cancel").addEventListener("click", () => post("ui/models/cancel"));
  $("models-unload").addEventListener("click", () => post("ui/models/unload"));
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
      scrolling("Models", table([], choices.map(cells))),
    );
    show();
  } catch (error) {
    setStatus($("models-status"), error.message, "bad");
  }
}

const cells = ({ name, kind, needed }) => [
  name,
  KINDS[kind],
  needed === null ? "" : `about ${bytes(needed)}`,
  live.state?.model?.name === name
    ? "in use"
    : el("button", { type: "button", ariaLabel: `Load ${name}`, onclick: () => load(name) }, "Load"),
];

const load = (name) => post("ui/models", { name });

async function post(path, json = {}) {
  try {
    await call(path, { method: "POST", json });
    setStatus($("models-status"), "");
  } catch (error) {
    setStatus($("models-status"), error.message, "bad");
  }
}

let last = null;
// An error is shown once, so that later messages stay.
let lastError = null;

function show() {
  const { loading, error, model } = live.state ?? {};
  $("models-cancel").hidden = !loading;
  $("models-unload").disabled = !model;
  if (loading) setStatus($("models-status"), `Loading ${loading.name}: ${loading.line}`);
  else if (error && error !== lastError) setStatus($("models-status"), error, "bad");
  else if (last && !error)
    setStatus($("models-status"), model ? `Ready: ${model.name} on ${model.runner}` : "No model is loaded", "good");
  lastError = loading ? null : error;
  // The model changed while the list is open.
  const now = JSON.stringify([Boolean(loading), model?.name]);
  const changed = last !== null && now !== last;
  last = now;
  if (changed && $("models").open) read();
}

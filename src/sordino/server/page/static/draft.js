// The texts of a run that is not begun: added, removed, and what the server understands of them.

import { $, call, clock, debounce, el, fill, setStatus, tab } from "./dom.js";
import { icon } from "./icons.js";
import { live } from "./live.js";
import { onPage, runRequest } from "./recipe.js";

// Files of one request: servers limit a form's parts.
const AT_ONCE = 100;
const POLL = 500;

let draft = null;
// Of the last measurement: an answer to an older one is of no use.
let measuring = null;
// Whether the server did not answer to it.
let isUnanswered = false;
live.addEventListener("connection", () => live.connected && isUnanswered && measure());

/** The draft, or null. */
export const current = () => draft;

let adding = Promise.resolve(true);

/** Add files to the draft, one call after the other: the first makes the draft that the others go into. */
export const add = (files) => (adding = adding.then(() => addNow(files)));

/** Whether the server has them. */
async function addNow(files) {
  if (!files.length) return false;
  setStatus($("texts-status"), `Uploading ${files.length} ${files.length === 1 ? "file" : "files"} ...`);
  try {
    for (let at = 0; at < files.length; at += AT_ONCE) {
      const form = new FormData();
      for (const file of files.slice(at, at + AT_ONCE))
        form.append("files", file, file.webkitRelativePath || file.name);
      if (draft) form.append("run", draft.id);
      draft = await call("ui/texts", { method: "POST", form });
    }
    $("train-name").value ||= nameFor([...files]).slice(0, 100);
    keep();
    return true;
  } catch (error) {
    setStatus($("texts-status"), error.message, "bad");
    return false;
  }
}

/** A name for what is made of these files: their folder's, the only file's, or what all their names begin with. */
function nameFor(files) {
  const folder = files[0].webkitRelativePath?.split("/")[0];
  const names = files.map(({ name }) => name.replace(/\.[^.]*$/, ""));
  if (folder || names.length === 1) return folder || names[0];
  let common = names[0];
  while (!names.every((name) => name.startsWith(common))) common = common.slice(0, -1);
  return common.replace(/[^\p{L}]+$/u, "") || "My texts";
}

export async function addPasted() {
  const text = $("paste").value;
  if (!text.trim()) return;
  const numbers = (draft?.texts ?? []).map((name) => Number(/^pasted-(\d+)\.txt$/.exec(name)?.[1] ?? 0));
  const name = `pasted-${Math.max(0, ...numbers) + 1}.txt`;
  if (await add([new File([text], name, { type: "text/plain" })])) $("paste").value = "";
}

/** Work on this draft from now on. */
export function take(other) {
  draft = other;
  $("train-name").value ||= draft.name;
  keep();
}

/** Give it away: it becomes a run, and what is dropped from now on is another's. */
export function release() {
  const mine = draft;
  draft = null;
  clear();
  return mine;
}

function keep() {
  tab.set("draft", draft.id);
  keepName();
  show();
}

/** Keep the name over a reload. */
export const keepName = () => tab.set("draft-name", $("train-name").value);

/** The draft that this tab had before a reload. */
export async function restore() {
  $("train-name").value ||= tab.get("draft-name", "");
  const job = tab.get("draft") && (await call(`ui/jobs/${tab.get("draft")}`).catch(() => null));
  if (job?.state !== "draft" || draft) return;
  draft = job;
  show();
}

function show() {
  const count = draft.texts.length;
  setStatus($("texts-status"), `${count} ${count === 1 ? "text" : "texts"}`);
  fill(
    $("texts-list"),
    ...draft.texts.map((name) =>
      el(
        "li",
        { dataset: { name } },
        el("span", {}, name),
        el(
          "button",
          { type: "button", class: "quiet", ariaLabel: `Remove ${name}`, onclick: () => remove(name) },
          icon("close"),
        ),
      ),
    ),
  );
  $("texts-are").hidden = false;
  // What is still being said of other texts comes too late.
  measuring = null;
  $("train-go").disabled = false;
  measure();
}

async function remove(name) {
  try {
    draft = await call(`ui/jobs/${draft.id}/texts?file=${encodeURIComponent(name)}`, { method: "DELETE" });
  } catch (error) {
    setStatus($("texts-status"), error.message, "bad");
    return;
  }
  if (draft.texts.length) show();
  else clear();
  // The focused button is gone.
  ($("texts-list").querySelector("button") ?? $("texts-drop").querySelector("input")).focus();
}

/** Delete the draft and its texts. */
export function clear() {
  if (draft) call(`ui/jobs/${draft.id}`, { method: "DELETE" }).catch(() => {});
  draft = null;
  for (const name of ["draft", "draft-name"]) tab.remove(name);
  measuring = null;
  for (const id of ["texts-status", "train-cost", "train-status"]) setStatus($(id), "");
  for (const id of ["texts-list", "texts-facts"]) $(id).replaceChildren();
  $("texts-are").hidden = true;
  $("train-name").value = "";
  $("train-go").disabled = true;
}

/** Let the server measure the texts and what training on them costs with these settings. */
export const measure = debounce(async () => {
  if (!draft) return;
  const mine = (measuring = Symbol("measurement"));
  isUnanswered = false;
  $("train-go").disabled = false;
  setStatus($("train-cost"), "Reading the texts ...");
  try {
    let measured = await call(`ui/jobs/${draft.id}/look`, { method: "POST", json: runRequest() });
    for (;;) {
      if (measuring !== mine) return;
      if (measured.texts) showFacts(measured.texts);
      if (!measured.busy) break;
      if (measured.texts)
        setStatus(
          $("train-cost"),
          "Measuring a few steps on this machine; writing has priority. You can press Train without waiting ...",
        );
      await new Promise((done) => setTimeout(done, POLL));
      measured = await call(`ui/jobs/${draft.id}/look`);
    }
    showCost(measured);
  } catch (error) {
    if (measuring !== mine) return;
    isUnanswered = !error.status;
    setStatus($("train-cost"), error.message, "bad");
    $("train-go").disabled = true;
  }
}, 400);

function showCost(measured) {
  $("train-go").disabled = Boolean(measured.error);
  for (const one of $("texts-list").children) {
    const { name } = one.dataset;
    const isAtFault = measured.error && (measured.where === name || measured.where.startsWith(`${name},`));
    one.dataset.kind = isAtFault ? "bad" : "";
  }
  if (measured.error) {
    setStatus($("train-cost"), onPage(measured), "bad");
    $("texts-list").querySelector("[data-kind=bad]")?.scrollIntoView({ block: "nearest" });
    return;
  }
  const { steps, seconds, step_seconds, measuring_seconds, memory_bytes, free_bytes } = measured.cost;
  const { wanted_steps, wanted_seconds } = measured.cost;
  const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
  setStatus(
    $("train-cost"),
    `${steps} steps of about ${step_seconds.toFixed(1)} s: ${clock(seconds)}, ` +
      `${clock(measuring_seconds)} of it to evaluate the result. ` +
      (wanted_steps > steps ? `For these texts ${wanted_steps} steps are best: ${clock(wanted_seconds)}. ` : "") +
      `Memory: about ${gib(memory_bytes)}; ${gib(free_bytes)} free.`,
    memory_bytes > free_bytes ? "bad" : "",
  );
}

function showFacts(texts) {
  const fact = (count, what) => el("span", {}, el("b", {}, count.toLocaleString("en")), ` ${what}`);
  const notes = [...texts.notes, ...texts.duplicates];
  fill(
    $("texts-facts"),
    el(
      "p",
      { class: "facts" },
      fact(texts.train, "pieces to train on"),
      fact(texts.tokens, "tokens"),
      fact(texts.examples, "examples"),
      fact(texts.validation, "for validation"),
      fact(texts.heldout, "held out for the report"),
    ),
    el("p", { class: "soft" }, texts.how.replace(/^./, (first) => first.toUpperCase())),
    notes.length ? el("ul", { class: "soft" }, ...notes.map((line) => el("li", {}, line))) : null,
  );
}

// The page of text that the model continues.

import { fillColumns, startCompare } from "./compare.js";
import { $, debounce, el, setStatus, shown } from "./dom.js";
import { choice } from "./status.js";
import { live } from "./live.js";
import { measureContext, write } from "./generation.js";
import { startSettings } from "./settings.js";
import { StoryStore } from "./story.js";

let store;
// The text before each continuation, the latest last; what Undo took away, likewise; the last continuation.
let before = [];
let undone = [];
let written = "";
// The column of a comparison that was added to the story: another one replaces it.
let used = "";
// The running continuation: {stop}.
let running = null;

// Characters of a story that are sent: more than any context holds, and less than one message may have.
const SENT = [100_000, 1_000_000],
  A_TOKEN = 24;

/** Where the part of the story that is sent begins. */
function cutOf(story) {
  const cut = Math.max(
    0,
    story.length - Math.min(SENT[1], Math.max(SENT[0], A_TOKEN * (live.state?.model?.context ?? 0))),
  );
  // Not between the two halves of a character.
  return cut && (story.charCodeAt(cut) & 0xfc00) === 0xdc00 ? cut + 1 : cut;
}

/** cut: as cutOf. text: what the model may see. */
function visible() {
  const story = $("story").value,
    cut = cutOf(story);
  return { cut, text: { story: story.slice(cut), memory: $("memory").value, note: $("note").value } };
}

export async function startWrite() {
  startSettings(() => measure());
  store = new StoryStore(
    {
      fresh: "new",
      list: "stories",
      file: "save",
      load: "load",
      remove: "forget",
      saved: "saved",
      conflict: "conflict",
      theirs: "take-theirs",
      mine: "keep-mine",
    },
    { isChat: false, show, leave, read },
  );
  for (const id of ["story", "memory", "note", "title"]) $(id).addEventListener("input", changed);
  $("story").addEventListener("scroll", () => {
    $("shade").scrollTop = $("story").scrollTop;
  });
  $("go").addEventListener("click", () => go());
  $("stop").addEventListener("click", () => running?.stop());
  $("undo").addEventListener("click", () => step(before, undone));
  $("redo").addEventListener("click", () => step(undone, before));
  $("retry").addEventListener("click", retry);
  startCompare({
    text: () => visible().text,
    begun: () => {
      used = "";
    },
    use,
  });
  document.addEventListener("keydown", (event) => {
    if (!shown("write")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) go();
    if (event.key === "Escape") running?.stop();
  });
  document.addEventListener("page", () => shown("write") && measure());
  choice.addEventListener("change", () => {
    measure();
    fillColumns();
    buttons();
  });
  live.addEventListener("connection", () => {
    buttons();
    measure();
  });
  await store.resume();
}

/** Stop writing: the text belongs to the story that is closed. */
function leave() {
  running?.stop();
  running = null;
  buttons();
}

function show(story) {
  leave();
  $("story").value = story.text;
  for (const id of ["memory", "note", "title"]) $(id).value = story[id];
  before = [];
  undone = [];
  written = used = "";
  buttons();
  measure();
}

function changed() {
  store.change({ text: $("story").value, memory: $("memory").value, note: $("note").value, title: $("title").value });
  $("retry").disabled = !canRetry();
  measure();
}

/** A story from a file: one of this page's, or any text. */
async function read(file) {
  const content = await file.text();
  if (!file.name.endsWith(".json")) return { text: content, title: file.name.replace(/\.[^.]*$/, "").slice(0, 300) };
  let story;
  try {
    story = JSON.parse(content);
  } catch {
    throw new Error("it is not JSON");
  }
  if (typeof story?.text !== "string") throw new Error("it holds no story");
  const fields = Object.fromEntries(["title", "text", "memory", "note"].map((key) => [key, String(story[key] ?? "")]));
  return { ...fields, title: fields.title.slice(0, 300) };
}

// Writing -----------------------------------------------------------------------------------------

function go() {
  if (running || !ready()) return;
  before.push($("story").value);
  generate();
}

function generate() {
  const story = $("story");
  written = "";
  undone = [];
  setStatus($("write-status"), "");
  const { cut, text } = visible();
  let tail = story.scrollHeight - story.scrollTop - story.clientHeight < 40;
  const ended = (text = "", kind = "") => {
    running = null;
    if (story.value === before.at(-1)) before.pop();
    setStatus($("write-status"), text, kind);
    buttons();
    changed();
  };
  const handlers = {
    begun: ({ dropped }) => shade(cut, dropped),
    text: ({ text: more }) => {
      // Always at the end, while the user may edit elsewhere; caret and selection stay.
      written += more;
      story.setRangeText(more, story.value.length, story.value.length, "preserve");
      store.change({ text: story.value });
      if (tail) story.scrollTop = story.scrollHeight;
      tail = story.scrollHeight - story.scrollTop - story.clientHeight < 40;
    },
    done: () => ended(),
    error: ({ message }) => ended(message, "bad"),
    lost: () => ended("The server stopped while it wrote. Its text so far is here; Continue when it is back.", "bad"),
  };
  const mine = (running = {});
  mine.stop = write(text, (message) => running === mine && handlers[message.is]?.(message));
  buttons();
}

/** Undo and Redo. Text typed since goes to the other stack, so nothing is lost. */
function step(from, to) {
  if (running || !from.length) return;
  to.push($("story").value);
  $("story").value = from.pop();
  buttons();
  changed();
}

const canRetry = () => !running && ready() && written !== "" && $("story").value.endsWith(written);

/** Replace the last continuation by another one; Undo brings it back. */
function retry() {
  if (!canRetry()) return;
  const story = $("story");
  before.push(story.value);
  story.value = story.value.slice(0, -written.length);
  generate();
}

const ready = () => live.connected && Boolean(live.state?.model);

function buttons() {
  $("go").disabled = Boolean(running) || !ready();
  $("stop").disabled = !running;
  $("undo").disabled = Boolean(running) || !before.length;
  $("redo").disabled = Boolean(running) || !undone.length;
  $("retry").disabled = !canRetry();
  $("compare-go").disabled = !ready();
}

// What the model sees -----------------------------------------------------------------------------

const measure = debounce(() => {
  if (!ready() || !shown("write")) return;
  const { cut, text } = visible();
  measureContext(text, $("meter"), (dropped) => shade(cut, dropped));
}, 250);

/** cut: code units of the story that were not sent. dropped: characters after those that do not fit the context. */
function shade(cut, dropped) {
  const value = $("story").value;
  let hidden = cut;
  // The server counts characters; some are two of the browser's units.
  for (let left = dropped; left > 0 && hidden < value.length; left -= 1)
    hidden += value.codePointAt(hidden) > 0xffff ? 2 : 1;
  $("shade").replaceChildren(el("mark", {}, value.slice(0, hidden)), value.slice(hidden) + "\n");
  $("shade").scrollTop = $("story").scrollTop;
  $("story").title = hidden ? "The model does not see the shaded beginning any more" : "";
}

// Compare -----------------------------------------------------------------------------------------

/** Add a continuation of the comparison to the story; Undo removes it. */
function use(text) {
  const story = $("story");
  if (running) {
    setStatus($("write-status"), "The model is writing: stop it first.", "bad");
    return;
  }
  before.push(story.value);
  undone = [];
  const base = used && story.value.endsWith(used) ? story.value.slice(0, -used.length) : story.value;
  story.value = base + text;
  written = used = text;
  story.scrollTop = story.scrollHeight;
  setStatus($("write-status"), "It is at the end of the story. Undo removes it.");
  buttons();
  changed();
}

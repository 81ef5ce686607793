// The page of text that the model continues.

import { fillColumns, startCompare } from "./compare.js";
import { $, el, later, say, shown } from "./dom.js";
import { choice } from "./status.js";
import { live } from "./live.js";
import { weights } from "./mixing.js";
import { settings, startSettings } from "./settings.js";
import { Keeper } from "./story.js";

let keeper;
// What was there before each continuation, the last one last; what Undo took away, likewise; the last continuation.
let before = [];
let taken = [];
let written = "";
// What was put behind the story from a comparison: another column takes its place.
let used = "";
// The continuation that is being written: {stop}.
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
function seen() {
  const story = $("story").value,
    cut = cutOf(story);
  return { cut, text: { story: story.slice(cut), memory: $("memory").value, note: $("note").value } };
}

export async function startWrite() {
  startSettings(() => measure());
  keeper = new Keeper(
    {
      fresh: "new",
      list: "stories",
      file: "save",
      load: "load",
      forget: "forget",
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
  $("undo").addEventListener("click", () => step(before, taken));
  $("redo").addEventListener("click", () => step(taken, before));
  $("retry").addEventListener("click", retry);
  startCompare({
    text: () => seen().text,
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
  await keeper.resume();
}

/** What is being written belongs to the story that is left. */
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
  taken = [];
  written = used = "";
  buttons();
  measure();
}

function changed() {
  keeper.change({ text: $("story").value, memory: $("memory").value, note: $("note").value, title: $("title").value });
  $("retry").disabled = !canRetry();
  measure();
}

/** A story from a file: one of this page's, or any text. */
async function read(file) {
  const content = await file.text();
  if (!file.name.endsWith(".json")) return { text: content, title: file.name.replace(/\.[^.]*$/, "").slice(0, 300) };
  let said;
  try {
    said = JSON.parse(content);
  } catch {
    throw new Error("it is not JSON");
  }
  if (typeof said?.text !== "string") throw new Error("it holds no story");
  const story = Object.fromEntries(["title", "text", "memory", "note"].map((key) => [key, String(said[key] ?? "")]));
  return { ...story, title: story.title.slice(0, 300) };
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
  taken = [];
  say($("told"), "");
  const { cut, text } = seen();
  let tail = story.scrollHeight - story.scrollTop - story.clientHeight < 40;
  const ended = (told = "", kind = "") => {
    running = null;
    if (story.value === before.at(-1)) before.pop();
    say($("told"), told, kind);
    buttons();
    changed();
  };
  const hear = {
    begun: ({ dropped }) => shade(cut, dropped),
    text: ({ text: more }) => {
      // At the end, whatever the user edits meanwhile; caret and selection stay where they are.
      written += more;
      story.setRangeText(more, story.value.length, story.value.length, "preserve");
      keeper.change({ text: story.value });
      if (tail) story.scrollTop = story.scrollHeight;
      tail = story.scrollHeight - story.scrollTop - story.clientHeight < 40;
    },
    done: () => ended(),
    error: ({ message }) => ended(message, "bad"),
    lost: () => ended("The server stopped while it wrote. What it said is here; Continue when it is back.", "bad"),
  };
  const mine = (running = {});
  mine.stop = live.ask(
    { do: "write", text, soft_prompts: [choice.name], weights: weights(), settings: settings() },
    (said) => running === mine && hear[said.is]?.(said),
  );
  buttons();
}

/** Undo and Redo: what was typed since is on the other side, and lost on neither. */
function step(from, to) {
  if (running || !from.length) return;
  to.push($("story").value);
  $("story").value = from.pop();
  buttons();
  changed();
}

const canRetry = () => !running && ready() && written !== "" && $("story").value.endsWith(written);

/** Another continuation in place of the last one; Undo brings that back. */
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
  $("redo").disabled = Boolean(running) || !taken.length;
  $("retry").disabled = !canRetry();
  $("compare-go").disabled = !ready();
}

// What the model sees -----------------------------------------------------------------------------

const measure = later(() => {
  if (!ready() || !shown("write")) return;
  const { cut, text } = seen();
  live.ask({ do: "measure", text, soft_prompt: choice.name, max_tokens: settings().max_tokens }, (said) => {
    if (said.is === "measured") {
      const soft = said.soft ? ` + ${said.soft} soft` : "";
      say($("meter"), `${said.used}${soft} + ${said.room} new of ${said.total} tokens`);
      shade(cut, said.dropped);
    } else if (said.is === "error") say($("meter"), said.message, "bad");
  });
}, 250);

/** cut: units of the story that were not sent. dropped: characters behind those that the model does not get. */
function shade(cut, dropped) {
  const value = $("story").value;
  let unseen = cut;
  // The server counts characters; some are two of the browser's units.
  for (let left = dropped; left > 0 && unseen < value.length; left -= 1)
    unseen += value.codePointAt(unseen) > 0xffff ? 2 : 1;
  $("shade").replaceChildren(el("mark", {}, value.slice(0, unseen)), value.slice(unseen) + "\n");
  $("shade").scrollTop = $("story").scrollTop;
  $("story").title = unseen ? "The model does not see the shaded beginning any more" : "";
}

// Compare -----------------------------------------------------------------------------------------

/** A continuation of the comparison, behind the story; Undo takes it away again. */
function use(text) {
  const story = $("story");
  if (running) {
    say($("told"), "The model is writing: stop it first.", "bad");
    return;
  }
  before.push(story.value);
  taken = [];
  const base = used && story.value.endsWith(used) ? story.value.slice(0, -used.length) : story.value;
  story.value = base + text;
  written = used = text;
  story.scrollTop = story.scrollHeight;
  say($("told"), "It stands at the end of the story. Undo takes it away again.");
  buttons();
  changed();
}

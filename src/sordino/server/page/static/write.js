// The page of text that the model continues; with an encoder-decoder, of an input and its output.

import { fillColumns, resetCompare, startCompare } from "./compare.js";
import { $, debounce, disable, setStatus, shown, STOPPED } from "./dom.js";
import { folding, makeRoom, NARROW } from "./drawer.js";
import { dropZone } from "./drop.js";
import { openOrAdd } from "./dropped.js";
import { Editor } from "./editor.js";
import { startFirst } from "./first.js";
import { clearMeter, measureContext, write } from "./generation.js";
import { History } from "./history.js";
import { startKeys } from "./keys.js";
import { live } from "./live.js";
import { isPair, Output, startForm, words } from "./output.js";
import { startSettings } from "./settings.js";
import { choice } from "./status.js";
import { StoryStore } from "./story.js";
import { readStory } from "./story_file.js";
import { waitingIn } from "./waiting.js";

let store, editor, output, foldStories;
const history = new History();
// The last continuation; the column of a comparison that was added to the story: another one replaces it.
let written = "",
  used = "";
// The running continuation: {stop, begun}, begun: ends what is shown while the model reads.
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
  const story = editor.text,
    cut = cutOf(story);
  return { cut, text: { story: story.slice(cut), memory: $("memory").value, note: isPair() ? "" : $("note").value } };
}

export async function startWrite() {
  startSettings(() => measure());
  const parts = { sheet: "sheet", earlier: "earlier", backdrop: "shade", field: "story", later: "later" };
  editor = new Editor(Object.fromEntries(Object.entries(parts).map(([name, id]) => [name, $(id)])), changed);
  output = new Output();
  foldStories = folding($("stories-side"), $("stories-open"), { name: "stories", open: true });
  store = new StoryStore(
    {
      fresh: "new",
      list: "stories",
      load: "load",
      saved: "saved",
      conflict: "conflict",
      theirs: "take-theirs",
      mine: "keep-mine",
    },
    { isChat: false, show, leave, read: readStory },
  );
  dropZone($("write"), (files) => openOrAdd(files, /\.(json|txt|md)$/i, (file) => store.load(file)));
  for (const id of ["memory", "note", "title"]) $(id).addEventListener("input", changed);
  const actions = { go, stop: () => running?.stop(), undo: () => step("undo"), redo: () => step("redo"), retry };
  for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
  startKeys(actions);
  $("story").addEventListener("beforeinput", edits);
  $("story").addEventListener("input", edited);
  startDrawers();
  startForm(() => {
    history.clear();
    written = used = "";
    buttons();
    measure();
  });
  const first = startFirst({ isEmpty: () => editor.text === "", begin });
  document.addEventListener("page", () => {
    if (!shown("write")) return;
    editor.follow();
    measure();
  });
  choice.addEventListener("change", () => {
    measure();
    fillColumns();
    buttons();
  });
  live.addEventListener("connection", () => {
    buttons();
    measure();
  });
  live.addEventListener("rate", ({ detail }) => ($("rate").textContent = `${detail.toFixed(1)} tokens/s`));
  await store.resume();
  first();
}

/** Compare and Settings have one place: one of them is open. */
function startDrawers() {
  const fold = {};
  makeRoom($("compare"), $("stories-side"), foldStories);
  for (const [name, other] of [
    ["compare", "settings"],
    ["settings", "compare"],
  ]) {
    const button = $(`${name}-open`);
    fold[name] = folding($(name), button, { name });
    button.addEventListener("click", () => {
      if ($(name).hidden) return;
      fold[other](false);
      if (name === "compare") $("compare-go").focus();
    });
  }
  startCompare({
    text: () => visible().text,
    reading: () => words().reading,
    begun: () => (used = ""),
    use,
    open: () => {
      fold.settings(false);
      fold.compare(true, { focus: true });
    },
  });
}

/** Stop writing: the text belongs to the story that is closed. */
function leave() {
  running?.stop();
  running?.begun();
  running = null;
  buttons();
}

function show(story) {
  leave();
  editor.open(story.text, story.generated);
  output.open(story.output);
  for (const id of ["memory", "note", "title"]) $(id).value = story[id];
  history.clear();
  clearMeter($("meter"));
  setStatus($("write-status"), "");
  resetCompare();
  written = used = "";
  if (NARROW.matches) foldStories(false);
  buttons();
  measure();
}

function changed() {
  const [memory, note, title] = ["memory", "note", "title"].map((id) => $(id).value);
  store.change({ text: editor.text, generated: editor.written, output: output.text, memory, note, title });
  $("retry").disabled = !canRetry();
  measure();
}

// Writing -----------------------------------------------------------------------------------------

/** Where what is written goes. */
const target = () => (isPair() ? output : editor);

/** Before the user edits the story. The Undo of the browser's menus is ours too. */
function edits(event) {
  const own = { historyUndo: "undo", historyRedo: "redo" }[event.inputType];
  if (own) {
    event.preventDefault();
    step(own);
    return;
  }
  // While the model writes, what is typed belongs to the continuation: neither is taken back without the other.
  if (!running) history.edit(event.inputType, snapshot);
}

function edited() {
  history.edited();
  undoButtons();
}

const snapshot = () => ({ story: editor.snapshot(), result: output.text });

function go() {
  if (running || !ready()) return;
  history.begin(snapshot());
  generate(target().text);
}

/** Begin the story with `opening`, unless it has begun, and continue it. */
function begin(opening) {
  if (!editor.text) {
    editor.open(opening, []);
    changed();
  }
  go();
}

/** before: what Undo brings back. */
function generate(before) {
  written = "";
  setStatus($("write-status"), "");
  editor.toEnd();
  const { cut, text } = visible(),
    into = target(),
    begun = waitingIn($("rate"), words().reading);
  const ended = (text = "", kind = "") => {
    begun();
    running = null;
    if (into.text === before) history.cancel();
    setStatus($("write-status"), text, kind);
    buttons();
    changed();
  };
  const handlers = {
    begun: ({ dropped }) => shade(cut, dropped),
    text: ({ text: more }) => {
      begun();
      // The last output stays until the next one begins.
      if (!written && into === output) output.open("");
      // Always at the end, while the user may edit elsewhere.
      written += more;
      into.append(more);
      store.change({ text: editor.text, generated: editor.written, output: output.text });
    },
    done: () => ended(),
    error: ({ message }) => ended(message, "bad"),
    lost: () => ended(`${STOPPED} The text so far is kept. Continue when the server is back.`, "bad"),
  };
  const mine = (running = { begun });
  mine.stop = write(text, (message) => running === mine && handlers[message.is]?.(message));
  buttons();
}

/** Undo and Redo, as History has them. */
function step(which) {
  const taken = running ? null : history[which](snapshot());
  if (!taken) return;
  const { isTyped, snapshot: before } = taken;
  // What was typed is the story; of a pair, what was written is the output alone.
  if (isTyped || !isPair()) editor.restore(before.story);
  if (!isTyped) output.open(before.result);
  buttons();
  changed();
}

const canRetry = () =>
  !running && ready() && (isPair() ? output.text !== "" : written !== "" && editor.endsWith(written));

/** Replace the last continuation by another one; Undo brings it back. */
function retry() {
  if (!canRetry()) return;
  if (isPair()) return go();
  const before = editor.text;
  history.begin(snapshot());
  editor.drop(written.length);
  generate(before);
}

const ready = () => live.connected && Boolean(live.state?.model);

function buttons() {
  const busy = Boolean(running);
  // Those that may take the focus of another are enabled before that is disabled.
  if (busy) $("stop").disabled = false;
  disable($("go"), busy || !ready(), $("stop"));
  disable($("retry"), !canRetry(), busy ? $("stop") : $("go"));
  disable($("stop"), !busy, $("go"));
  undoButtons();
  $("compare-go").disabled = !ready();
}

function undoButtons() {
  disable($("undo"), Boolean(running) || !history.canUndo, $("go"));
  disable($("redo"), Boolean(running) || !history.canRedo, $("go"));
}

// What the model sees -----------------------------------------------------------------------------

const measure = debounce(() => {
  if (!ready() || !shown("write")) return;
  const { cut, text } = visible();
  measureContext(text, $("meter"), (dropped) => shade(cut, dropped));
}, 250);

/** cut: code units of the story that were not sent. dropped: characters after those that do not fit the context. */
function shade(cut, dropped) {
  const { text } = editor;
  let hidden = cut;
  // The server counts characters; some are two of the browser's units.
  for (let left = dropped; left > 0 && hidden < text.length; left -= 1)
    hidden += text.codePointAt(hidden) > 0xffff ? 2 : 1;
  editor.shade(hidden);
  $("unseen").hidden = !hidden;
}

// Compare -----------------------------------------------------------------------------------------

/** Add a continuation of the comparison to the story, or make it the output; Undo takes it back. */
function use(text) {
  if (running) {
    setStatus($("write-status"), "The model is writing: stop it first.", "bad");
    return;
  }
  history.begin(snapshot());
  if (isPair()) output.open(text);
  else addToStory(text);
  written = used = text;
  setStatus(
    $("write-status"),
    isPair()
      ? "This is the output now. Undo brings the other one back."
      : "Added at the end of the story. Undo removes it.",
  );
  buttons();
  changed();
}

function addToStory(text) {
  if (used && editor.endsWith(used)) editor.drop(used.length);
  editor.append(text);
  editor.toEnd();
}

// Continuations without and with soft prompts, side by side, from one batch and one seed.

import { $, arrange, el, setStatus, STOPPED } from "./dom.js";
import { choice, label } from "./status.js";
import { live } from "./live.js";
import { write } from "./generation.js";
import { options } from "./options.js";
import { waitingIn } from "./waiting.js";

// The page Write: text(), what the model may see; reading(), what is said meanwhile; begun(), called at the start;
// use(), adds a text to the story, or makes it the output; open(), shows the drawer.
let host;

// The server's limit.
const MOST_COLUMNS = 8;

// What the user ticked; null until then, which means no soft prompt and the active one.
let ticked = null;
// What was compared last in this story: its columns stay when another soft prompt becomes the active one.
let compared = null;
// Stops the comparison that runs.
let comparing = null;
// By the name of the soft prompt: its column. One that is not chosen any more is kept until the next comparison.
let columns = new Map();

const list = options("columns-choice", "Soft prompts to compare", tick, { several: true });

export function startCompare(page) {
  host = page;
  $("compare").querySelector("fieldset").append(list.element);
  $("compare-go").addEventListener("click", compare);
}

/** Open the drawer with the columns without and with these soft prompts. */
export function compareWith(names) {
  ticked = ["", ...names];
  fillColumns();
  host.open();
}

/** Another story is open: a comparison belongs to the one that is closed. */
export function resetCompare() {
  comparing?.();
  compared = null;
  columns = new Map();
  setStatus($("compare-status"), "");
  drawColumns();
}

const titleOf = (name) => (choice.prompt(name) ? label(choice.prompt(name)) : "No soft prompt");

/** The names of the columns' soft prompts, in the order of the library; "" for none. */
function chosen() {
  const prompts = live.state?.prompts ?? [],
    wanted = ticked ?? compared ?? ["", choice.name || prompts[0]?.name];
  return ["", ...prompts.map(({ name }) => name)].filter((name) => wanted.includes(name));
}

function tick(names) {
  ticked = names;
  fillColumns();
}

export function fillColumns() {
  const prompts = live.state?.prompts ?? [];
  list.show([["", titleOf("")], ...prompts.map((one) => [one.name, label(one)])], chosen());
  if (!comparing) drawColumns();
}

/** Show the columns of those that are chosen. Beside texts, an empty one says how it gets its own. */
function drawColumns() {
  const names = chosen();
  for (const name of names) if (!columns.has(name)) columns.set(name, newColumn(name));
  const shown = names.map((name) => columns.get(name)),
    isOver = !comparing && shown.some(({ isCompared }) => isCompared);
  for (const { hint, isCompared } of shown) hint.textContent = isOver && !isCompared ? "Not compared yet" : "";
  $("compare-go").textContent = comparing ? "Stop" : isOver ? "Compare again" : "Compare";
  arrange($("columns"), shown.map(({ made }) => made));
  return shown;
}

function newColumn(name) {
  const body = el("span", {}),
    hint = el("small", { class: "soft" }),
    use = el("button", {
      type: "button",
      disabled: true,
      ariaLabel: `Use this one: ${titleOf(name)}`,
      textContent: "Use this one",
      onclick: () => host.use(one.written),
    });
  const made = el("article", {}, el("h3", {}, titleOf(name)), el("p", { class: "text" }, body, hint), el("p", {}, use));
  const one = { name, body, hint, use, made, written: "", isCompared: false };
  return one;
}

function compare() {
  if (comparing) {
    comparing();
    return;
  }
  const count = chosen().length;
  if (!count || count > MOST_COLUMNS) {
    setStatus($("compare-status"), `Choose 1 to ${MOST_COLUMNS} to compare.`, "bad");
    return;
  }
  host.begun();
  compared = chosen();
  columns = new Map();
  const shown = drawColumns();
  setStatus($("compare-status"), "");
  const begun = waitingIn($("compare-status"), host.reading());
  const ended = (text = "") => {
    begun();
    comparing = null;
    for (const one of shown) {
      one.use.disabled = !one.written;
      one.isCompared = !text || one.written !== "";
    }
    setStatus($("compare-status"), text, text ? "bad" : "");
    drawColumns();
  };
  const handlers = {
    text: ({ column, text }) => {
      begun();
      const one = shown[column];
      one.written += text;
      // A continuation begins with a space, which belongs to the story and not to a column.
      one.body.append(one.body.textContent ? text : text.trimStart());
    },
    done: () => ended(),
    error: ({ message }) => ended(message),
    lost: () => ended(STOPPED),
  };
  comparing = write(
    host.text(),
    (message) => handlers[message.is]?.(message),
    { prompts: shown.map((one) => one.name) },
  );
  $("compare-go").textContent = "Stop";
}

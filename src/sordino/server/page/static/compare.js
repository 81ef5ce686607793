// Continuations without and with soft prompts, side by side, from one batch and one seed.

import { $, el, setStatus } from "./dom.js";
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
// Stops the comparison that runs.
let comparing = null;

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
  drawColumns();
  setStatus($("compare-status"), "");
}

const titleOf = (name) => (choice.prompt(name) ? label(choice.prompt(name)) : "No soft prompt");

/** The names of the columns' soft prompts, in the order of the library; "" for none. */
function chosen() {
  const prompts = live.state?.prompts ?? [],
    wanted = ticked ?? ["", choice.name || prompts[0]?.name];
  return ["", ...prompts.map(({ name }) => name)].filter((name) => wanted.includes(name));
}

function tick(names) {
  ticked = names;
  fillColumns();
}

export function fillColumns() {
  const prompts = live.state?.prompts ?? [];
  list.show([["", titleOf("")], ...prompts.map((one) => [one.name, label(one)])], chosen());
  // Results stay until there are others.
  if (!comparing && !$("columns").querySelector("article span:not(:empty)")) drawColumns();
}

/** A column for each that is chosen, where its text will be. */
function drawColumns() {
  const columns = chosen().map((name) => {
    const body = el("span", {}),
      use = el("button", {
        type: "button",
        disabled: true,
        ariaLabel: `Use this one: ${titleOf(name)}`,
        textContent: "Use this one",
        onclick: () => host.use(one.written),
      });
    const made = el("article", {}, el("h3", {}, titleOf(name)), el("p", { class: "text" }, body), el("p", {}, use));
    const one = { name, body, use, made, written: "" };
    return one;
  });
  $("columns").replaceChildren(...columns.map((one) => one.made));
  return columns;
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
  const columns = drawColumns();
  setStatus($("compare-status"), "");
  const begun = waitingIn($("compare-status"), host.reading());
  const ended = (text = "") => {
    begun();
    comparing = null;
    for (const { body, use } of columns) use.disabled = !body.textContent;
    $("compare-go").textContent = "Compare";
    setStatus($("compare-status"), text, text ? "bad" : "");
  };
  const handlers = {
    text: ({ column, text }) => {
      begun();
      const one = columns[column];
      one.written += text;
      // A continuation begins with a space, which belongs to the story and not to a column.
      one.body.append(one.body.textContent ? text : text.trimStart());
    },
    done: () => ended(),
    error: ({ message }) => ended(message),
    lost: () => ended("The server stopped while writing."),
  };
  comparing = write(
    host.text(),
    (message) => handlers[message.is]?.(message),
    { prompts: columns.map((one) => one.name) },
  );
  $("compare-go").textContent = "Stop";
}

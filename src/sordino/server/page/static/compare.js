// Continuations without and with soft prompts, side by side.

import { $, el } from "./dom.js";
import { choice, label } from "./status.js";
import { live } from "./live.js";
import { write } from "./generation.js";

// The page Write: text(), what the model may see; begun(), label at the start; use(), adds a text to the story.
let host;

export function startCompare(page) {
  host = page;
  $("compare-go").addEventListener("click", compare);
}

// The server's limit.
const MOST_COLUMNS = 8;

// What the user ticked; null until then, which means no soft prompt and the active one.
let ticked = null;

export function fillColumns() {
  const boxes = [...document.querySelectorAll("#columns-choice input")];
  const prompts = [
    { name: "", title: "no soft prompt" },
    ...(live.state?.prompts ?? []).map((one) => ({ name: one.name, title: label(one) })),
  ];
  const checked = (name) => (ticked ?? ["", choice.name || prompts[1]?.name]).includes(name);
  // Redrawn only when the list changes, so that a focused box keeps the focus.
  if (JSON.stringify(boxes.map((one) => one.value)) === JSON.stringify(prompts.map((one) => one.name))) {
    for (const box of boxes) box.checked = checked(box.value);
    return;
  }
  const tick = () => {
    ticked = [...document.querySelectorAll("#columns-choice input:checked")].map((one) => one.value);
  };
  $("columns-choice").replaceChildren(
    ...prompts.map((one) =>
      el(
        "label",
        {},
        el("input", { type: "checkbox", value: one.name, checked: checked(one.name), onchange: tick }),
        ` ${one.title}`,
      ),
    ),
  );
}

let comparing = null;

function compare() {
  if (comparing) {
    comparing();
    return;
  }
  const names = [...document.querySelectorAll("#columns-choice input:checked")].map((one) => one.value);
  if (!names.length || names.length > MOST_COLUMNS) {
    $("columns").replaceChildren(
      el("p", { role: "alert", dataset: { kind: "bad" } }, `Choose one to ${MOST_COLUMNS} to compare.`),
    );
    return;
  }
  host.begun();
  const bodies = names.map(() => el("span"));
  const titles = names.map((name) => (choice.prompt(name) ? label(choice.prompt(name)) : "no soft prompt"));
  const useButtons = bodies.map((body, at) =>
    el(
      "button",
      {
        type: "button",
        hidden: true,
        ariaLabel: `Use this one: ${titles[at]}`,
        onclick: () => host.use(body.textContent),
      },
      "Use this one",
    ),
  );
  $("columns").replaceChildren(
    ...titles.map((title, at) => el("article", {}, el("h3", {}, title), bodies[at], el("p", {}, useButtons[at]))),
  );
  const ended = (text = "") => {
    comparing = null;
    useButtons.forEach((one, at) => {
      one.hidden = !bodies[at].textContent;
    });
    $("compare-go").textContent = "Compare";
    if (text) $("columns").prepend(el("p", { role: "alert", dataset: { kind: "bad" } }, text));
  };
  const handlers = {
    text: ({ column, text: more }) => bodies[column].append(more),
    done: () => ended(),
    error: ({ message }) => ended(message),
    lost: () => ended("The server stopped while it wrote."),
  };
  comparing = write(host.text(), (message) => handlers[message.is]?.(message), names);
  $("compare-go").textContent = "Stop";
}

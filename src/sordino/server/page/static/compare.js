// Continuations without and with soft prompts, side by side.

import { $, el } from "./dom.js";
import { called, choice } from "./status.js";
import { live } from "./live.js";
import { weights } from "./mixing.js";
import { settings } from "./settings.js";

// Of the page of text: text, what the model may see; begun, is called at the start; use, takes a continuation.
let host;

export function startCompare(page) {
  host = page;
  $("compare-go").addEventListener("click", compare);
}

// As many as the server takes.
const MOST_COLUMNS = 8;

// What the user ticked; null until then: none, and the one that is active.
let ticked = null;

export function fillColumns() {
  const boxes = [...document.querySelectorAll("#columns-choice input")];
  const voices = [
    { name: "", title: "no soft prompt" },
    ...(live.state?.voices ?? []).map((one) => ({ name: one.name, title: called(one) })),
  ];
  const checked = (name) => (ticked ?? ["", choice.name || voices[1]?.name]).includes(name);
  // Drawn anew only where the list is another: a box that has the focus keeps it.
  if (JSON.stringify(boxes.map((one) => one.value)) === JSON.stringify(voices.map((one) => one.name))) {
    for (const box of boxes) box.checked = checked(box.value);
    return;
  }
  const tick = () => {
    ticked = [...document.querySelectorAll("#columns-choice input:checked")].map((one) => one.value);
  };
  $("columns-choice").replaceChildren(
    ...voices.map((one) =>
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
  const titles = names.map((name) => (choice.voice(name) ? called(choice.voice(name)) : "no soft prompt"));
  const takers = bodies.map((body, at) =>
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
    ...titles.map((title, at) => el("article", {}, el("h3", {}, title), bodies[at], el("p", {}, takers[at]))),
  );
  const ended = (told = "") => {
    comparing = null;
    takers.forEach((one, at) => {
      one.hidden = !bodies[at].textContent;
    });
    $("compare-go").textContent = "Compare";
    if (told) $("columns").prepend(el("p", { role: "alert", dataset: { kind: "bad" } }, told));
  };
  const hear = {
    text: ({ column, text: more }) => bodies[column].append(more),
    done: () => ended(),
    error: ({ message }) => ended(message),
    lost: () => ended("The server stopped while it wrote."),
  };
  comparing = live.ask(
    { do: "write", text: host.text(), soft_prompts: names, weights: weights(), settings: settings() },
    (said) => hear[said.is]?.(said),
  );
  $("compare-go").textContent = "Stop";
}

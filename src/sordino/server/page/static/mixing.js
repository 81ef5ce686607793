// The weights of the mixture that is loaded: sliders, of this tab alone. The next generation uses them.

import { $, call, el, fill, tab } from "./dom.js";
import { choice } from "./status.js";
import { live } from "./live.js";

export const RULES = {
  sequence: "Whole texts are weighed: whoever expected what was written so far counts for more",
  probabilities: "Every word by the mean of their probabilities",
  logits: "Every word by the mean of their logits",
  vote: "Every word by vote",
};

// By mixture: the weights that the user gave it. What is not here has its own.
// Without a prototype: a mixture may be called `constructor`.
const given = Object.assign(Object.create(null), tab.get("weights", {}));
// Of the mixture that is shown: its name, the library's state when it was read, and what it says about itself.
let current = { name: "", library: null, told: null };
// What the sliders were drawn from.
let drawn = "";

/** For what is asked next: the weights of every mixture of the library that the user moved. */
export const weights = () =>
  Object.fromEntries(
    Object.entries(given).filter(([name, values]) => choice.voice(name)?.components === values.length),
  );

export function startMixing() {
  choice.addEventListener("change", look);
}

async function look() {
  const voice = choice.voice(choice.name);
  const name = voice?.components ? voice.name : "";
  const library = live.state?.library ?? null;
  if (name === current.name && (!name || library === current.library)) return;
  current = { name, library, told: null };
  if (!name) {
    $("mixing").hidden = true;
    return;
  }
  try {
    const { mixture, name: title } = await call(`ui/prompts/${encodeURIComponent(name)}`);
    if (current.name !== name) return;
    current.told = mixture;
    // Another file of the library changed: a slider that is being moved stays in the hand.
    const now = JSON.stringify([name, title, mixture]);
    if (now !== drawn || $("mixing").hidden) draw(title || name);
    drawn = now;
  } catch {
    if (current.name !== name) return;
    // It went a moment ago; the lamp says so.
    current = { name: "", library: null, told: null };
    $("mixing").hidden = true;
  }
}

function draw(title) {
  const { name, told } = current;
  if (given[name]?.length !== told.components.length) delete given[name];
  const values = () => given[name] ?? told.components.map((one) => one.weight);
  const inputs = [],
    outputs = [];
  const reset = el(
    "button",
    {
      type: "button",
      onclick: () => {
        delete given[name];
        keep();
      },
    },
    "Reset weights",
  );
  const show = () => {
    const all = values(),
      total = all.reduce((sum, value) => sum + value, 0);
    all.forEach((value, at) => {
      inputs[at].value = value;
      const share = `${Math.round((100 * value) / total)} %`;
      outputs[at].textContent = share;
      inputs[at].setAttribute("aria-valuetext", share);
    });
    reset.disabled = !given[name];
  };
  const keep = () => {
    tab.set("weights", given);
    show();
  };
  const slide = (at) => {
    const moved = values().map((value, place) => (place === at ? inputs[at].valueAsNumber : value));
    // All at zero would be no weights: the last one stays where it was.
    if (moved.some((value) => value > 0)) given[name] = moved;
    keep();
  };
  const rows = told.components.map((one, at) => {
    const input = el("input", { type: "range", min: 0, max: 1, step: 0.01, oninput: () => slide(at) });
    const output = el("span", {});
    inputs.push(input);
    outputs.push(output);
    return el("label", {}, `${one.name || `soft prompt ${at + 1}`} `, output, input);
  });
  fill(
    $("mixing"),
    el("legend", {}, `Weights of ${title}`),
    el("div", { class: "grid" }, ...rows),
    el(
      "p",
      { class: "bar" },
      reset,
      el(
        "span",
        { class: "soft" },
        told.gated
          ? "Its text decides about the weights, until you move one."
          : "For this tab; the file stays as it is.",
      ),
    ),
  );
  show();
  $("mixing").hidden = false;
}

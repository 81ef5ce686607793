// The weights of the mixture that is loaded: sliders, of this tab alone. The next generation uses them.

import { $, call, el, percent, redraw, tab } from "./dom.js";
import { choice } from "./status.js";
import { live } from "./live.js";

export const RULES = {
  sequence: "By whole texts: the better a soft prompt predicted the text so far, the more it counts",
  probabilities: "Each token by the mean of their probabilities",
  logits: "Each token by the mean of their logits",
  vote: "Each token by vote",
};

// By mixture: the weights that the user gave it. What is not here has its own.
// Without a prototype: a mixture may be called `constructor`.
const given = Object.assign(Object.create(null), tab.get("weights", {}));
// The mixture that is shown: its name, the library's state when it was read, and its components.
let current = { name: "", library: null, mixture: null };

/** For the next request: the weights of each mixture whose sliders the user moved. */
export const weights = () =>
  Object.fromEntries(
    Object.entries(given).filter(([name, values]) => choice.prompt(name)?.components === values.length),
  );

export function startMixing() {
  choice.addEventListener("change", refresh);
}

async function refresh() {
  const prompt = choice.prompt(choice.name);
  const name = prompt?.components ? prompt.name : "";
  const library = live.state?.library ?? null;
  if (name === current.name && (!name || library === current.library)) return;
  current = { name, library, mixture: null };
  if (!name) {
    $("mixing").hidden = true;
    return;
  }
  try {
    const { mixture: parts, name: title } = await call(`ui/prompts/${encodeURIComponent(name)}`);
    if (current.name !== name) return;
    current.mixture = parts;
    // Where another file of the library changed, nothing is redrawn: a slider may be in use.
    redraw($("mixing"), [name, title, parts], () => sliders(title || name));
    $("mixing").hidden = false;
  } catch {
    if (current.name !== name) return;
    // The file was removed a moment ago; the lamp shows it.
    current = { name: "", library: null, mixture: null };
    $("mixing").hidden = true;
  }
}

function sliders(title) {
  const { name, mixture } = current;
  if (given[name]?.length !== mixture.components.length) delete given[name];
  const values = () => given[name] ?? mixture.components.map((one) => one.weight);
  const inputs = [],
    outputs = [];
  const reset = el(
    "button",
    {
      type: "button",
      onclick: () => {
        delete given[name];
        store();
      },
    },
    "Reset weights",
  );
  const show = () => {
    const all = values(),
      total = all.reduce((sum, value) => sum + value, 0);
    all.forEach((value, at) => {
      inputs[at].value = value;
      const share = percent(value / total);
      outputs[at].textContent = share;
      inputs[at].setAttribute("aria-valuetext", share);
    });
    reset.disabled = !given[name];
  };
  const store = () => {
    tab.set("weights", given);
    show();
  };
  const slide = (at) => {
    const moved = values().map((value, place) => (place === at ? inputs[at].valueAsNumber : value));
    // All at zero would be no weights: the last one stays where it was.
    if (moved.some((value) => value > 0)) given[name] = moved;
    store();
  };
  const rows = mixture.components.map((one, at) => {
    const input = el("input", { type: "range", min: 0, max: 1, step: 0.01, oninput: () => slide(at) });
    const output = el("span", {});
    inputs.push(input);
    outputs.push(output);
    return el("label", {}, `${one.name || `soft prompt ${at + 1}`} `, output, input);
  });
  show();
  return [
    el("legend", {}, `Weights of ${title}`),
    el("div", { class: "grid" }, ...rows),
    el(
      "p",
      { class: "bar" },
      reset,
      el(
        "span",
        { class: "soft" },
        mixture.gated
          ? "The text decides the weights until you move a slider."
          : "For this tab only. The file does not change.",
      ),
    ),
  ];
}

// The settings of a training run: presets, and a field for every one.

import { $, el } from "./dom.js";

export const PRESETS = {
  "Quick: see whether it catches the voice": { steps: 30, batch: 4, row_tokens: 128, tokens: 20 },
  "Good: a file to keep": { steps: 150, batch: 4, row_tokens: 128, tokens: 20 },
  "Best: everything the texts give": { steps: 400, batch: 4, row_tokens: 128, tokens: 20 },
};

// name: [label, kind or choices, hint]
export const MORE = {
  tokens: ["Virtual tokens", "int"],
  steps: ["Steps", "int"],
  minutes: ["Or minutes", "float"],
  batch: ["Examples a step", "int"],
  row_tokens: ["Longest example, tokens", "int"],
  lr: ["Learning rate (embedding RMS)", "float"],
  find_lr: ["Find the learning rate first", "bool"],
  init: ["First matrix: data, vocab, labels, random, text:WORDS", "text"],
  method: ["Method", ["", "plain", "residual"]],
  placement: ["Placement (start: for KoboldAI and PEFT)", ["", "auto", "start", "after_bos"]],
  warmup: ["Warm-up, share of the steps", "float"],
  clip: ["Largest gradient norm", "float"],
  weight_decay: ["Weight decay", "float"],
  average: ["Weight average, share of the steps", "float"],
  patience: ["Evaluations without a better loss", "int"],
  evaluate_every: ["Steps between evaluations", "int"],
  sample_every: ["Steps between samples", "int"],
  sample_text: ["What the samples continue", "text"],
  pass_tokens: ["Most positions in one pass (lower it for memory)", "int"],
  speaker: ["In chat logs: whose turns", "text"],
  seed: ["Seed", "int"],
  no_samples: ["Keep samples out of the file", "bool"],
};
export const ABOUT = {
  author: ["Author", "text"],
  description: ["Description", "text"],
  licence: ["Licence", "text"],
  tags: ["Tags, with commas", "text"],
  rating: ["Rating", ["", "general", "mature", "explicit"]],
};

/** The error of a run. named: the settings that it speaks of; this page has other names for them. */
export const onPage = ({ error, named }) =>
  named.reduce((text, name) => {
    const [label] = { ...MORE, ...ABOUT }[name] ?? [];
    return label ? text.replaceAll(`--${name.replaceAll("_", "-")}`, `"${label.split(/[(:]/)[0].trim()}"`) : text;
  }, error);

/** The fields by the settings' names. */
export const inputs = {};

/** Labels with their fields, which become `inputs`. changed: called when one has another value. */
export function fields(table, changed) {
  return el(
    "div",
    { class: "grid" },
    ...Object.entries(table).map(([name, [label, kind]]) => {
      const onchange = () => changed();
      inputs[name] = Array.isArray(kind)
        ? el("select", { onchange }, ...kind.map((one) => el("option", { value: one }, one || "as usual")))
        : kind === "bool"
          ? el("input", { type: "checkbox", onchange })
          : el(
              "input",
              kind === "text" ? { onchange } : { type: "number", step: kind === "int" ? 1 : "any", onchange },
            );
      inputs[name].name = `train-${name}`;
      return kind === "bool" ? el("label", {}, inputs[name], ` ${label}`) : el("label", {}, label, inputs[name]);
    }),
  );
}

/** What the server is asked for, as the fields stand. */
export function asked() {
  const settings = { name: $("train-name").value, start_from: $("train-from").value };
  for (const [name, [, kind]] of Object.entries({ ...MORE, ...ABOUT })) {
    const input = inputs[name];
    if (kind === "bool") settings[name] = input.checked;
    else if (kind === "int" || kind === "float") {
      if (input.value !== "") settings[name] = input.valueAsNumber;
    } else if (input.value !== "") settings[name] = input.value;
  }
  if (settings.minutes !== undefined) delete settings.steps;
  if (settings.start_from) delete settings.init;
  return { settings };
}

// How tokens are drawn: presets, and every setting behind "more".

import { $, el, local } from "./dom.js";

const OFF = {
  ...{ temperature: 1, top_p: 1, top_k: 0, min_p: 0, typical: 1, repetition_penalty: 1, repetition_range: 0 },
  ...{ dry_multiplier: 0, xtc_probability: 0, xtc_threshold: 0.1, dynatemp_range: 0, smoothing_factor: 0 },
};

export const PRESETS = {
  Balanced: { ...OFF, temperature: 0.8, top_p: 0.95, repetition_penalty: 1.1 },
  Careful: { ...OFF, temperature: 0.5, top_p: 0.9, top_k: 40, repetition_penalty: 1.05 },
  Wild: { ...OFF, temperature: 1.2, min_p: 0.05, repetition_penalty: 1.1 },
  "Always the likeliest": { ...OFF, temperature: 0 },
};

// name: [label, least, most, step]
const FIELDS = {
  max_tokens: ["New tokens", 1, 2048, 1],
  temperature: ["Temperature", 0, 3, 0.05],
  top_p: ["Top-p", 0.01, 1, 0.01],
  top_k: ["Top-k (0: off)", 0, 1000, 1],
  min_p: ["Min-p (0: off)", 0, 1, 0.01],
  typical: ["Typical (1: off)", 0.01, 1, 0.01],
  repetition_penalty: ["Repetition penalty (1: off)", 0.5, 3, 0.01],
  repetition_range: ["Its range (0: all)", 0, 8192, 1],
  dry_multiplier: ["DRY, against repeated phrases (0: off)", 0, 5, 0.1],
  xtc_probability: ["XTC, how often top choices are left out (0: off)", 0, 1, 0.05],
  xtc_threshold: ["XTC threshold", 0, 0.5, 0.01],
  dynatemp_range: ["Dynamic temperature, plus or minus (0: off)", 0, 3, 0.05],
  smoothing_factor: ["Smoothing (0: off)", 0, 10, 0.05],
};

let current = { max_tokens: 80, ...PRESETS.Balanced, ...local.get("settings", {}) };

/** The user's settings; a field without a number keeps its last value. */
export function settings() {
  return { ...current };
}

export function startSettings(changed) {
  const inputs = new Map();
  const preset = $("preset");
  const show = () => {
    for (const [name, input] of inputs) input.value = current[name];
    const same = Object.entries(PRESETS).find(([, values]) =>
      Object.entries(values).every(([k, v]) => current[k] === v),
    );
    preset.value = same?.[0] ?? "";
  };
  const change = (values) => {
    current = { ...current, ...values };
    local.set("settings", current);
    show();
    changed();
  };
  preset.append(
    ...Object.keys(PRESETS).map((name) => el("option", { value: name }, name)),
    el("option", { value: "", disabled: true }, "your own"),
  );
  preset.addEventListener("change", () => change(PRESETS[preset.value]));
  for (const [name, [label, least, most, step]] of Object.entries(FIELDS)) {
    const input = el("input", {
      type: "number",
      min: least,
      max: most,
      step,
      onchange: () => {
        const number = input.valueAsNumber;
        change(Number.isFinite(number) ? { [name]: Math.min(most, Math.max(least, number)) } : {});
      },
    });
    inputs.set(name, input);
    $(name === "max_tokens" ? "how-much" : "more-settings").append(el("label", {}, label, " ", input));
  }
  show();
}

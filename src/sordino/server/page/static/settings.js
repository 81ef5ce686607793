// How tokens are drawn: presets, the user's own among them, and every setting.

import { $, confirming, el, local } from "./dom.js";

const OFF = {
  ...{ temperature: 1, top_p: 1, top_k: 0, min_p: 0, typical: 1, repetition_penalty: 1, repetition_range: 0 },
  ...{ dry_multiplier: 0, xtc_probability: 0, xtc_threshold: 0.1, dynatemp_range: 0, smoothing_factor: 0 },
};

const PRESETS = {
  Balanced: { ...OFF, temperature: 0.8, top_p: 0.95, repetition_penalty: 1.1 },
  Careful: { ...OFF, temperature: 0.5, top_p: 0.9, top_k: 40, repetition_penalty: 1.05 },
  Wild: { ...OFF, temperature: 1.2, min_p: 0.05, repetition_penalty: 1.1 },
  "Always the likeliest": { ...OFF, temperature: 0 },
};
const DEFAULTS = { max_tokens: 80, ...PRESETS.Balanced };

// name: [label, least, most, step]
const FIELDS = {
  max_tokens: ["New tokens", 1, 2048, 1],
  temperature: ["Temperature", 0, 3, 0.05],
  top_p: ["Top-p", 0.01, 1, 0.01],
  top_k: ["Top-k", 0, 1000, 1],
  min_p: ["Min-p", 0, 1, 0.01],
  repetition_penalty: ["Repetition penalty", 0.5, 3, 0.01],
  repetition_range: ["Penalty range", 0, 8192, 1],
  typical: ["Typical", 0.01, 1, 0.01],
  dry_multiplier: ["DRY", 0, 5, 0.1],
  xtc_probability: ["XTC probability", 0, 1, 0.05],
  xtc_threshold: ["XTC threshold", 0, 0.5, 0.01],
  dynatemp_range: ["Dynamic temperature", 0, 3, 0.05],
  smoothing_factor: ["Smoothing", 0, 10, 0.05],
};
const FEW = 7;
// What a value means, or when a setting does nothing.
const NOTES = {
  temperature: "0: greedy",
  top_k: "0: off",
  min_p: "0: off",
  repetition_penalty: "1: off",
  repetition_range: "0: the whole text",
  typical: "1: off",
  dry_multiplier: "against repeated phrases; 0: off",
  xtc_probability: "how often top choices are left out; 0: off",
  dynatemp_range: "plus or minus; 0: off",
  smoothing_factor: "0: off",
};

let current = { ...DEFAULTS, ...local.get("settings", {}) };
// The user's presets, by name. Without a prototype: one may be called `constructor`.
const own = Object.assign(Object.create(null), local.get("presets", {}));

/** The user's settings; a field without a number keeps its last value. */
export function settings() {
  return { ...current };
}

const presets = () => [...Object.entries(PRESETS), ...Object.entries(own)];
/** The preset whose values these are; the user's own wins, since it may be a copy. */
const preset = () =>
  presets().findLast(([, values]) => Object.entries(values).every(([name, value]) => current[name] === value))?.[0];

export function startSettings(changed) {
  const inputs = new Map();
  const show = () => {
    for (const [name, input] of inputs) input.value = current[name];
    const name = preset() ?? "";
    $("preset").value = name;
    $("preset-save").hidden = Boolean(name);
    $("preset-delete").hidden = !(name in own);
  };
  const change = (values) => {
    current = { ...current, ...values };
    local.set("settings", current);
    show();
    changed();
  };
  for (const [at, [name, given]] of Object.entries(FIELDS).entries()) {
    const input = field(name, given, change);
    inputs.set(name, input);
    $(name === "max_tokens" ? "how-much" : at < FEW ? "few-settings" : "more-settings").append(input.parentElement);
  }
  const fillPresets = () => {
    const options = ([name]) => el("option", { value: name }, name);
    $("preset").replaceChildren(...presets().map(options), el("option", { value: "", disabled: true }, "Your own"));
    show();
  };
  $("preset").addEventListener("change", ({ target }) => change(own[target.value] ?? PRESETS[target.value]));
  startOwn(fillPresets);
  fillPresets();
}

function field(name, [label, least, most, step], change) {
  const id = `setting-${name}`;
  const input = el("input", {
    type: "number",
    id,
    min: least,
    max: most,
    step,
    onchange: () => {
      const number = input.valueAsNumber;
      change(Number.isFinite(number) ? { [name]: Math.min(most, Math.max(least, number)) } : {});
    },
  });
  const note = [NOTES[name], `default ${DEFAULTS[name]}`].filter(Boolean).join("; ");
  const described = el("small", { class: "soft", id: `${id}-note` }, note);
  input.setAttribute("aria-describedby", described.id);
  el("div", { class: "setting" }, el("label", { htmlFor: id }, label), input, described);
  return input;
}

/** Saving what is set as a preset, and deleting one. */
function startOwn(fill) {
  const store = () => {
    local.set("presets", own);
    fill();
  };
  const unfold = (isOpen) => {
    $("preset-name-form").hidden = !isOpen;
    $("preset-save").setAttribute("aria-expanded", String(isOpen));
  };
  $("preset-save").addEventListener("click", () => {
    unfold(true);
    $("preset-name").focus();
  });
  $("preset-name-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("preset-name").value.trim();
    if (!name || Object.hasOwn(PRESETS, name)) {
      $("preset-name").setCustomValidity(name ? "Sordino has a preset of this name: choose another" : "Enter a name");
      $("preset-name").reportValidity();
      return;
    }
    const { max_tokens: _, ...values } = current;
    own[name] = values;
    $("preset-name").value = "";
    unfold(false);
    store();
  });
  $("preset-name").addEventListener("input", ({ target }) => target.setCustomValidity(""));
  confirming($("preset-delete"), "preset", () => {
    delete own[$("preset").value];
    store();
  });
}

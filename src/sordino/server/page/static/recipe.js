// The settings of a training run: presets, and a field for every one.

import { $, call, el } from "./dom.js";

export const PRESETS = {
  "Standard: about 5 minutes": "",
  "Quick: a first impression": 30,
  "Good: a file to keep": 150,
  "Best: all that the texts give": 400,
};

// Beside the name, in the page's own words; the others are behind "More settings".
const KINDS = {
  embedding: "Embedding: for any program",
  kv: "KV: stronger, fewer programs",
};
// A default that fits into its field.
const SHORT = 18;

/** The fields of a run and of its file's metadata, as the server derives them from its settings; model: the default of a
 * run, while none is in use. */
export const form = { run: [], about: [], model: "" };

/** Call this first. Without a key there is no form: the page is reloaded once the key is given. */
export const loadForm = async () => Object.assign(form, await call("ui/training-form").catch(() => ({})));

/** The error of a run. named: the settings in it, which get their labels on this page. */
export const onPage = ({ error, named }) =>
  named.reduce((text, name) => {
    const field = [...form.run, ...form.about].find((one) => one.name === name);
    return field ? text.replaceAll(`--${name.replaceAll("_", "-")}`, `"${field.label.split(/[(:]/)[0].trim()}"`) : text;
  }, error);

/** The fields by the settings' names. */
export const inputs = {};

/** Labels with their fields, which become `inputs`. changed: called when a value changes. */
export const fields = (table, changed) =>
  el("div", { class: "grid" }, ...table.filter(({ name }) => name !== "kind").map((one) => labelled(one, changed)));

/** The field of the kind of soft prompt. */
export function kindField(changed) {
  const { choices } = form.run.find(({ name }) => name === "kind");
  inputs.kind = el(
    "select",
    { name: "train-kind", onchange: () => changed() },
    ...choices.map((one) => el("option", { value: one }, KINDS[one] ?? one)),
  );
  return el("label", {}, "Kind", inputs.kind);
}

function labelled({ name, label, help, kind, choices, default: standard, shown }, changed) {
  const says = shown || (standard === null || standard === "" ? "" : String(standard));
  const placeholder = says.length > SHORT ? "automatic" : says;
  const given = { name: `train-${name}`, onchange: () => changed(), placeholder };
  const number = { type: "number", step: kind === "int" ? 1 : "any" };
  if (choices.length)
    inputs[name] = el(
      "select",
      given,
      ...["", ...choices.filter(Boolean)].map((one) =>
        el("option", { value: one }, one || (says ? `default: ${says}` : "not set")),
      ),
    );
  else if (kind === "bool") inputs[name] = el("input", { type: "checkbox", ...given });
  else inputs[name] = el("input", kind === "str" ? given : { ...number, ...given });
  const said = [help === `${label}.` ? "" : help, says.length > SHORT ? `Default: ${says}.` : ""];
  const about = el("small", {}, said.filter(Boolean).join(" "));
  return kind === "bool"
    ? el("label", {}, inputs[name], ` ${label}`, about)
    : el("label", {}, label, inputs[name], about);
}

/** The request for a run with the values of the fields. */
export function runRequest() {
  const settings = { name: $("train-name").value, start_from: $("train-from").value };
  for (const { name, kind } of [...form.run, ...form.about]) {
    const input = inputs[name];
    if (kind === "bool") settings[name] = input.checked;
    else if (kind === "int" || kind === "float") {
      if (input.value !== "") settings[name] = input.valueAsNumber;
    } else if (input.value !== "") settings[name] = input.value;
  }
  if (settings.minutes !== undefined) delete settings.steps;
  if (settings.start_from) delete settings.init;
  return { model: $("train-model").value, settings };
}

/** Fill the fields with a run's settings. */
export function fillFields(settings) {
  for (const [name, input] of Object.entries(inputs)) {
    if (input.type === "checkbox") input.checked = Boolean(settings[name]);
    else input.value = settings[name] ?? (name === "kind" ? "embedding" : "");
  }
}

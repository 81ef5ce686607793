// The settings of a training run: presets, and a field for every one.

import { $, call, el } from "./dom.js";

export const PRESETS = {
  "Usual: what the texts want, about 5 minutes": { steps: "", batch: 4, row_tokens: 128, tokens: 20 },
  "Quick: see whether it catches the voice": { steps: 30, batch: 4, row_tokens: 128, tokens: 20 },
  "Good: a file to keep": { steps: 150, batch: 4, row_tokens: 128, tokens: 20 },
  "Best: everything the texts give": { steps: 400, batch: 4, row_tokens: 128, tokens: 20 },
};

/** The fields of a run and of its file's metadata, as the server derives them from its settings. */
export const form = { run: [], about: [] };

/** Call this first. Without a key there is no form: the page is reloaded once the key is given. */
export const loadForm = async () => Object.assign(form, await call("ui/training-form").catch(() => ({})));

/** The error of a run. named: the settings in it, which get their labels on this page. */
export const onPage = ({ error, named }) =>
  named.reduce((text, name) => {
    const field = [...form.run, ...form.about].find((one) => one.name === name);
    const label = field?.label.split(/[(:]/)[0].trim();
    return field ? text.replaceAll(`--${name.replaceAll("_", "-")}`, `"${label}"`) : text;
  }, error);

/** The fields by the settings' names. */
export const inputs = {};

/** Labels with their fields, which become `inputs`. changed: called when a value changes. */
export const fields = (table, changed) => el("div", { class: "grid" }, ...table.map((one) => labelled(one, changed)));

function labelled({ name, label, help, kind, choices }, changed) {
  const given = { name: `train-${name}`, title: help, onchange: () => changed() };
  const number = { type: "number", step: kind === "int" ? 1 : "any" };
  if (choices.length)
    inputs[name] = el(
      "select",
      given,
      ...["", ...choices.filter(Boolean)].map((one) => el("option", { value: one }, one || "as usual")),
    );
  else if (kind === "bool") inputs[name] = el("input", { type: "checkbox", ...given });
  else inputs[name] = el("input", kind === "str" ? given : { ...number, ...given });
  return kind === "bool" ? el("label", {}, inputs[name], ` ${label}`) : el("label", {}, label, inputs[name]);
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
  return { settings };
}

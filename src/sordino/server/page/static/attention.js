// How much attention text gives the soft prompt of the next generation: its strength, and whether that is held.

import { $, disable, local } from "./dom.js";
import { choice } from "./status.js";
import { live } from "./live.js";

// null: as the file says.
let given = { strength: null, hold: null, ...local.get("attention", {}) };

/** For the next request. */
export const attention = () => ({ ...given });

const rounded = (number) => Math.round(100 * number) / 100;
const same = (values) => values.every((value) => value === values[0]);

// What the model's program can give: one strength, whole ones, or any. A slider of any goes by doublings: 1 is in its
// middle.
const SLIDERS = {
  any: { min: -2, max: 2, step: 0.25, strengthOf: (value) => rounded(2 ** value), valueOf: Math.log2 },
  whole: { min: 1, max: 4, step: 1, strengthOf: (value) => value, valueOf: (strength) => strength },
};
const slider = () => SLIDERS[live.state?.model?.strengths] ?? SLIDERS.any;

export function startAttention() {
  $("strength").addEventListener("input", ({ target }) =>
    change({ strength: slider().strengthOf(target.valueAsNumber) }),
  );
  $("strength").addEventListener("dblclick", () => change({ strength: null }));
  $("attention-reset").addEventListener("click", () => change({ strength: null, hold: null }));
  $("hold").addEventListener("change", ({ target }) => change({ hold: target.checked }));
  choice.addEventListener("change", show);
  show();
}

function change(values) {
  given = { ...given, ...values };
  // What the file says anyway is left to it.
  const own = choice.prompt(choice.name)?.attention ?? [];
  if (own.every((one) => one.strength === given.strength)) given.strength = null;
  if (own.every((one) => Boolean(one.hold) === given.hold)) given.hold = null;
  local.set("attention", given);
  show();
}

function show() {
  const prompt = choice.prompt(choice.name),
    model = live.state?.model;
  $("attention").hidden = !prompt || !model;
  $("lamp-strength").hidden = $("attention").hidden || given.strength === null;
  if ($("attention").hidden) return;
  // Chosen for another program.
  if (model.strengths === "whole" && !Number.isInteger(given.strength ?? 1)) given.strength = null;
  const strengths = prompt.attention.map((one) => one.strength),
    holds = prompt.attention.map((one) => one.hold);
  const strength = given.strength ?? (same(strengths) ? strengths[0] : 1),
    mixed = given.strength === null && !same(strengths);
  const { min, max, step, valueOf } = slider();
  Object.assign($("strength"), { min, max, step, value: valueOf(strength) });
  const text = mixed ? "varies" : `${rounded(strength)}`;
  $("strength").setAttribute("aria-valuetext", text);
  $("strength-shown").textContent = text;
  $("lamp-strength").textContent = `strength ${text}`;
  $("hold").checked = given.hold ?? holds.some(Boolean);
  const tokens = [...new Set(holds.map((hold) => hold ?? live.state.offered_hold))];
  $("hold-tokens").textContent = `from ${tokens.join(", ")} tokens on`;
  // What is on can be turned off.
  $("strength").disabled = model.strengths === "one" && strength === 1 && !mixed;
  $("hold").disabled = !model.hold && !$("hold").checked;
  disable($("attention-reset"), given.strength === null && given.hold === null, $("strength"));
  const lacks = [model.strengths === "one" && "strength", !model.hold && "hold"].filter(Boolean);
  $("attention-note").textContent = lacks.length
    ? `${model.runner} does not support ${lacks.join(" and ")} for this model.`
    : "The longer the text, the less attention it gives the soft prompt. Hold keeps its share.";
}

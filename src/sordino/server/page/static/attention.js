// How much attention text gives the soft prompt of the next generation: its strength, and whether that is held.

import { $, local } from "./dom.js";
import { choice } from "./status.js";
import { live } from "./live.js";

// null: as the file says.
let given = { strength: null, hold: null, ...local.get("attention", {}) };

/** For the next request. */
export const attention = () => ({ ...given });

const rounded = (number) => Math.round(100 * number) / 100;
const same = (values) => values.every((value) => value === values[0]);

export function startAttention() {
  // The slider goes by doublings: 1 is in its middle.
  $("strength").addEventListener("input", ({ target }) => change({ strength: rounded(2 ** target.valueAsNumber) }));
  $("strength").addEventListener("dblclick", () => change({ strength: null }));
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
  if ($("attention").hidden) return;
  const strengths = prompt.attention.map((one) => one.strength),
    holds = prompt.attention.map((one) => one.hold);
  const strength = given.strength ?? (same(strengths) ? strengths[0] : 1),
    mixed = given.strength === null && !same(strengths);
  $("strength").value = Math.log2(strength);
  const text = mixed ? "each its own" : `${rounded(strength)}`;
  $("strength").setAttribute("aria-valuetext", text);
  $("strength-shown").textContent = text;
  $("hold").checked = given.hold ?? holds.some(Boolean);
  const tokens = [...new Set(holds.map((hold) => hold ?? live.state.offered_hold))];
  $("hold-tokens").textContent = `from ${tokens.join(", ")} tokens on`;
  // What is on can be turned off.
  $("strength").disabled = !model.strength && strength === 1 && !mixed;
  $("hold").disabled = !model.hold && !$("hold").checked;
  $("attention").title =
    model.strength && model.hold
      ? "Text gives a soft prompt less attention the longer it grows; held, it keeps its share"
      : `${model.runner} does not support all of this`;
}

// How well a soft prompt fits the model that is loaded.

import { el } from "./dom.js";

// The best first. undefined: a broken file.
const ORDER = ["exact", "same family", "unknown", null, "no", undefined];
const BADGES = {
  exact: ["Made for this model", "good"],
  "same family": ["Same family", "good"],
  unknown: ["May fit", ""],
  no: ["Does not fit", ""],
};

/** For sorting soft prompts: those that fit best come first. */
export const byFit = (one, other) => ORDER.indexOf(one.fit) - ORDER.indexOf(other.fit);

export const canLoad = ({ fit }) => Boolean(fit) && fit !== "no";

/** How well it fits, in a word or three. */
export function badge(fit) {
  const [text, kind] = BADGES[fit] ?? ["No model is loaded", ""];
  return el("span", { class: "badge", dataset: { kind } }, text);
}

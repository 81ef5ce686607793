// What a file says was measured on texts that it was not trained on: numbers, sentences, and two pictures.

import { chart } from "./charts.js";
import { el, percent, scrolling, table } from "./dom.js";

const CONDITIONS = {
  soft_prompt: "this soft prompt",
  best_excerpt: "the best excerpt",
  best_instruction: "the best instruction",
};
// Names of numbers in the table; other keys are shown as they are.
const NAMES = {
  nll: "loss per token",
  off_domain: "loss per token on other texts",
  bits_per_byte: "bits per byte",
  tokens: "tokens measured",
  worth_tokens: "worth an excerpt of so many tokens",
  no_prompt: "without",
  soft_prompt: "with the soft prompt",
  best_instruction: "with the best instruction",
  best_excerpt: "with the best excerpt",
  gain_interval: "95% interval of the gain",
  gain_kept: "share of the gain kept after so many tokens",
};

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
const count = (value) => Number(value).toLocaleString("en");

/** Nats per token that the soft prompt, or another condition, gains; null where it was not measured. */
export function gainOf(heldout, condition = "soft_prompt") {
  const [without, own] = [number(heldout?.nll?.no_prompt), number(heldout?.nll?.[condition])];
  return without === null || own === null ? null : without - own;
}

/** The shares of the gain that are left after other text, the nearest first: [[tokens, share], ...]. */
export const keptOf = (heldout) =>
  Object.entries(heldout?.gain_kept ?? {})
    .map(([distance, share]) => [Number(distance), number(share)])
    .filter(([distance, share]) => Number.isFinite(distance) && share !== null)
    .sort(([one], [other]) => one - other);

/** Sentences on what was measured. */
export function sentences(heldout) {
  const found = [];
  const gain = gainOf(heldout),
    kept = keptOf(heldout).at(-1);
  if (gain !== null) {
    const measured = number(heldout.tokens) === null ? "" : `, on ${count(heldout.tokens)} tokens`;
    const [own, none] = [heldout.nll.soft_prompt, heldout.nll.no_prompt].map((loss) => loss.toFixed(2));
    const losses = `(a loss of ${own} instead of ${none}${measured})`;
    found.push(
      gain > 0
        ? `It predicts held-out texts ${gain.toFixed(2)} nats per token better than the model alone ${losses}.`
        : `It does not help on held-out texts ${losses}.`,
    );
  }
  const more = ["best_instruction", "best_excerpt"].flatMap((condition) => {
    const other = gainOf(heldout, condition);
    if (gain === null || other === null) return [];
    const ahead = gain - other;
    return [`${Math.abs(ahead).toFixed(2)} ${ahead < 0 ? "worse" : "better"} than ${CONDITIONS[condition]}`];
  });
  if (more.length) found.push(`That is ${more.join(" and ")}.`);
  if (heldout.worth_tokens !== undefined)
    found.push(`It is worth ${worth(String(heldout.worth_tokens))} of real text.`);
  if (kept) found.push(`After ${count(kept[0])} tokens of other text it keeps ${percent(kept[1])} of its gain.`);
  const [own, none] = [number(heldout.off_domain?.soft_prompt), number(heldout.off_domain?.no_prompt)];
  if (own !== null && none !== null)
    found.push(`On texts in another voice the loss goes from ${none.toFixed(2)} to ${own.toFixed(2)}.`);
  const share = number(heldout.distilled?.kept);
  if (share !== null)
    found.push(`It keeps ${percent(share)} of the effect of ${count(heldout.distilled.text_tokens)} tokens of text.`);
  return found;
}

/** ">512" and "<20" in words. */
const worth = (text) =>
  `${text.replace(">", "more than ").replace("<", "less than ")} tokens`;

/** What each condition gains over the model alone, as bars from nought. null where nothing was measured. */
export function gainBars(heldout) {
  const rows = Object.entries(CONDITIONS)
    .map(([condition, label]) => ({ condition, label, gain: gainOf(heldout, condition) }))
    .filter(({ gain }) => gain !== null);
  if (!rows.length) return null;
  const ends = (heldout.gain_interval ?? []).map(number).filter((end) => end !== null);
  const most = Math.max(...rows.map(({ gain }) => Math.abs(gain)), ...ends.map(Math.abs), 1e-9);
  const share = (value) => ((100 * Math.abs(value)) / most).toFixed(1);
  const bar = ({ gain, condition }) => {
    const own = condition === "soft_prompt";
    return el(
      "span",
      { class: "gain-track" },
      el("span", {
        class: "gain",
        dataset: { kind: own ? "own" : "", sign: gain < 0 ? "less" : "more" },
        style: `width: max(2px, ${share(gain)}%)`,
      }),
      // Where the interval leaves out nought, the gain is unlikely to be chance.
      own && ends.length === 2 && ends[0] > 0
        ? el("span", { class: "whisker", style: `left: ${share(ends[0])}%; right: calc(100% - ${share(ends[1])}%)` })
        : null,
    );
  };
  return el(
    "figure",
    { class: "gains" },
    el("figcaption", { class: "soft" }, "Gain over the model alone, in nats per token", interval(ends)),
    table(
      ["in front of the text", "", "gain", "loss"],
      rows.map((row) => [
        row.label,
        bar(row),
        signed(row.gain),
        heldout.nll[row.condition].toFixed(3),
      ]),
    ),
  );
}

const interval = (ends) =>
  ends.length === 2 ? ` (this soft prompt: 95% interval ${ends.map(signed).join(" to ")})` : "";

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

/** The share of the gain that is left after so much other text. null where it was not measured. */
export function keptCurve(heldout) {
  const points = [[0, 1], ...keptOf(heldout)];
  if (points.length < 2) return null;
  const said = points.map(([tokens, share]) => `${percent(share)} at ${count(tokens)}`).join(", ");
  return el(
    "figure",
    {},
    chart([{ kind: "second", points, dots: true }], {
      label: `Share of the gain kept after other text: ${said}`,
      x: { title: "tokens of other text in between", whole: true },
      y: { title: "share of the gain kept", least: 0, most: 1, format: percent },
    }),
  );
}

/** Every number, as the file has it. */
export function numbers(heldout) {
  const plain = {};
  for (const [key, value] of Object.entries(heldout)) {
    const parts = value && typeof value === "object" && !Array.isArray(value) ? value : { "": value };
    for (const [of, one] of Object.entries(parts))
      plain[[NAMES[key] ?? key, NAMES[of] ?? of].filter(Boolean).join(", ")] = one;
  }
  return pairs("Held-out results", plain);
}

/** Keys and values, as a table. */
export const pairs = (label, values) =>
  scrolling(
    label,
    table(
      [],
      Object.entries(values).map(([key, value]) => [
        key,
        typeof value === "object" ? JSON.stringify(value) : String(value),
      ]),
    ),
  );

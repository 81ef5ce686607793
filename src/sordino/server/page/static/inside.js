// Inside a soft prompt: nearest words and norms at once, importance and attention on request. Every picture of numbers
// has them in a table.

import { call, el, fill, percent, scrolling, svg, table } from "./dom.js";

/** An element that fills itself. path: of the soft prompt's routes. */
export function inside(path) {
  const words = el("div", {}, el("p", { class: "soft" }, "Finding the nearest words ..."));
  const above = el("div", {}, el("p", { class: "soft" }, "Measuring the norms ..."));
  const below = el("div", {});
  const button = el("button", { type: "button", onclick: measure }, "Measure importance and attention");
  const status = el(
    "p",
    { class: "soft", role: "status" },
    "Leaves out each virtual token in turn, on a sample text. Takes a few seconds.",
  );

  async function measure() {
    button.disabled = true;
    status.textContent = "Measuring ...";
    try {
      fill(below, ...depth(await call(`${path}/inside`, { method: "POST" })));
      status.textContent = "";
      button.remove();
    } catch (error) {
      status.textContent = error.message;
      button.disabled = false;
    }
  }

  call(`${path}/words`)
    .then((answer) => words.replaceChildren(wordPicture(answer.words)))
    .catch((error) => fill(words, el("p", { class: "soft" }, error.message)));
  call(`${path}/inside`)
    .then((answer) => fill(above, ...normsOf(answer)))
    .catch((error) => fill(above, el("p", { class: "soft" }, error.message)));
  return el(
    "div",
    {},
    el("p", { class: "soft" }, "Nearest words of each virtual token; the nearer, the stronger the colour."),
    words,
    above,
    el("p", { class: "bar" }, button, status),
    below,
  );
}

/** The nearer a word, the stronger its colour. */
function wordPicture(rows) {
  const cells = rows.flatMap((row, at) => [
    el("span", { class: "soft" }, String(at + 1)),
    ...Array.from({ length: 5 }, (_, place) => {
      const [word, cosine] = row[place] ?? ["", 0];
      const strength = Math.round(Math.max(0, Math.min(0.45, cosine)) * 100);
      return el(
        "span",
        {
          title: `${word} (${cosine.toFixed(2)})`,
          style: `background: color-mix(in srgb, var(--main) ${strength}%, transparent)`,
        },
        word.trim() || JSON.stringify(word),
      );
    }),
  ]);
  return scrolling("Nearest words", el("div", { class: "words" }, ...cells));
}

function normsOf({ norms, percentiles, vocabulary, similar }) {
  const [least, most, low, high] = [Math.min(...norms), Math.max(...norms), vocabulary.p5, vocabulary.p95].map(
    (norm) => norm.toFixed(2),
  );
  const label =
    `Norms of ${norms.length} virtual tokens, from ${least} to ${most}; ` +
    `90% of the vocabulary's words lie between ${low} and ${high}`;
  return [
    el("p", { class: "soft" }, "Norm of each virtual token; the band holds 90% of the vocabulary's words."),
    bars(norms, { label, band: [vocabulary.p5, vocabulary.p95] }),
    numbers(
      "Norms",
      ["token", "norm", "percentile of words"],
      norms.map((norm, at) => [at + 1, norm.toFixed(2), percentiles[at].toFixed(0)]),
    ),
    similar.length
      ? el(
          "p",
          {},
          "Most similar in the library: ",
          similar.map(({ id, cosine }) => `${id} (${cosine.toFixed(2)})`).join(", "),
          ".",
        )
      : null,
  ];
}

function depth({ importance, attention, findings }) {
  const costs = importance.left_out,
    layers = attention.by_layer;
  const share = costs.map(
    (_, at) => attention.by_layer_and_token.reduce((sum, row) => sum + row[at], 0) / layers.length,
  );
  return [
    ...findings.map((line) => el("p", {}, line)),
    el("p", { class: "soft" }, "How the loss changes when a virtual token is left out; above the line, it helps."),
    bars(costs, { label: findings[1] }),
    el("p", { class: "soft" }, "Share of the text's attention that the soft prompt gets, by layer."),
    bars(layers, { label: findings.at(-1), most: 1 }),
    numbers(
      "Importance and attention of each virtual token",
      ["token", "loss if left out", "attention"],
      costs.map((cost, at) => [at + 1, cost.toFixed(4), percent(share[at])]),
    ),
    numbers(
      "Attention by layer",
      ["layer", "attention on the prompt"],
      layers.map((one, at) => [at + 1, percent(one)]),
    ),
  ];
}

const numbers = (title, heads, rows) =>
  el("details", {}, el("summary", {}, `${title}, in numbers`), scrolling(title, table(heads, rows)));

/** One bar for each value, with the number as its title. band: two values to shade between; most: the scale's top. */
function bars(values, { label, band = null, most = null }) {
  const [width, height, left] = [600, 120, 52];
  const high = most ?? (Math.max(0, ...values, ...(band ?? [])) || 1),
    low = Math.min(0, ...values);
  const y = (value) => 4 + (1 - (value - low) / (high - low)) * (height - 8);
  const step = (width - left) / values.length;
  const format = (value) => (high < 1 && !most ? value.toFixed(3) : value.toFixed(1));
  return svg(
    "svg",
    { class: "bars", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ...(band
      ? [svg("rect", { class: "band", x: left, y: y(band[1]), width: width - left, height: y(band[0]) - y(band[1]) })]
      : []),
    ...values.map((value, at) =>
      svg(
        "rect",
        {
          class: value < 0 ? "bar-below" : "bar-above",
          x: (left + step * (at + 0.1)).toFixed(1),
          y: Math.min(y(0), y(value)).toFixed(1),
          width: (step * 0.8).toFixed(1),
          height: Math.max(0.5, Math.abs(y(value) - y(0))).toFixed(1),
        },
        svg("title", {}, `${at + 1}: ${value.toFixed(4)}`),
      ),
    ),
    svg("line", { class: "axis", x1: left, x2: width, y1: y(0), y2: y(0) }),
    svg("text", { x: 0, y: 14 }, format(high)),
    svg("text", { x: 0, y: height - 2 }, format(low)),
  );
}

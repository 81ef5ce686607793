// Line charts: axes with round numbers, units, and a legend. Text is HTML, so it has one size at every width.

import { el, svg } from "./dom.js";

// Of the plot, in its own units: it is stretched to the room that there is.
const SIDE = 1000;

/** Round numbers from at or below `low` to at or above `high`, about `count` of them. whole: no fractions. */
export function ticks(low, high, { count = 4, whole = false } = {}) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(whole ? 1 : 0, [1, 2, 5, 10].find((one) => one * power >= rough * 0.999) * power);
  const [first, last] = [Math.floor(low / step + 1e-9), Math.ceil(high / step - 1e-9)];
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: Math.max(first + 1, last) - first + 1 }, (_, at) =>
    Number(((first + at) * step).toFixed(digits)),
  );
}

/** The digits after the point that tell all of these numbers apart. */
const digitsOf = (numbers) => Math.max(...numbers.map((one) => (String(one).split(".")[1] ?? "").length));

/**
 * A chart of lines over x. lines: {name, kind, points: [[x, y], ...], dots} each; kind: its class, see style.css; name:
 * in the legend. x, y: {title, least, most, whole, at, format}: what an axis shows at least, and how; at: its ticks.
 * label: for screen readers.
 */
export function chart(lines, { label, x = {}, y = {} }) {
  const all = lines.flatMap((line) => line.points);
  const across = axis(all.map(([value]) => value), x, { count: 5, tight: true });
  const up = axis(all.map(([, value]) => value), y, { count: 4 });
  const place = ([px, py]) => `${(SIDE * across.share(px)).toFixed(1)},${(SIDE * (1 - up.share(py))).toFixed(1)}`;
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${SIDE} ${SIDE}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    ...up.ticks.map((tick) => rule(0, SIDE * (1 - up.share(tick)), SIDE, SIDE * (1 - up.share(tick)))),
    ...lines.filter(({ points }) => points.length).flatMap(({ kind, points, dots = false }) => [
      svg("polyline", { class: kind, points: points.map(place).join(" ") }),
      // A line without length, with round ends: a circle would be stretched.
      ...(dots ? points : []).map((point) =>
        svg("polyline", { class: `${kind} dot`, points: `${place(point)} ${place(point)}` }),
      ),
    ]),
  );
  return el(
    "div",
    { class: "chart" },
    el(
      "div",
      { class: "legend" },
      y.title && el("span", { class: "soft" }, y.title),
      lines.filter(({ name }) => name).map(({ name, kind }) => el("span", { class: `key ${kind}` }, name)),
    ),
    el(
      "div",
      { class: "plot" },
      picture,
      up.ticks.map((tick) => el("span", { class: "up", style: `bottom: ${100 * up.share(tick)}%` }, up.format(tick))),
      across.ticks.map((tick) =>
        el("span", { class: "across", style: `left: ${100 * across.share(tick)}%` }, across.format(tick)),
      ),
    ),
    x.title && el("div", { class: "soft across-title" }, x.title),
  );
}

const rule = (x1, y1, x2, y2) => svg("line", { class: "rule", x1, y1, x2, y2 });

/** tight: the axis ends where the values do, and not at round numbers. */
function axis(values, { least, most, whole = false, at, format }, { count, tight = false }) {
  const low = Math.min(...values, least ?? Infinity),
    high = Math.max(...values, most ?? -Infinity);
  if (!Number.isFinite(low)) return { ticks: [], share: () => 0, format: String };
  const round = at ?? ticks(low, high, { count, whole });
  const [from, to] = tight && high > low ? [low, high] : [round[0], round.at(-1)];
  const inside = round.filter((tick) => tick >= from && tick <= to);
  const digits = digitsOf(inside);
  return {
    ticks: inside,
    share: (value) => (value - from) / (to - from),
    format: format ?? ((tick) => tick.toLocaleString("en", { minimumFractionDigits: digits })),
  };
}

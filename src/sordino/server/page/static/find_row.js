// A soft prompt that is elsewhere: what it is, how well it fits, and installing it.

import { bytes, el, redraw } from "./dom.js";
import { badge } from "./fit.js";
import { cancel, install, installOf } from "./installs.js";
import { bar, place, sample, size, unfit } from "./prompt_row.js";

/** {element, update}; update shows how far its install is. most: the largest gain, which its bar is drawn to. */
export function row(card, most) {
  const action = el("div", { class: "do" }),
    note = el("p", { class: "note" });
  const element = el(
    "li",
    { dataset: { source: card.source } },
    el(
      "div",
      { class: "what" },
      el("b", { class: "name" }, card.name),
      el("span", { class: "soft small about" }, about(card)),
      card.description && el("p", { class: "lines" }, card.description),
      unfit(card),
      note,
    ),
    el("div", { class: "facts" }, badge(card.fit), el("span", { class: "soft small" }, facts(card))),
    el("div", { class: "worth" }, card.gain === null ? null : gain(card, most)),
    action,
    compare(card),
  );
  const update = () => {
    const now = installOf(card.source);
    redraw(action, [now?.state, card.held, now?.name], () => controls(card, now));
    const progress = action.querySelector("progress");
    if (progress && now.total) Object.assign(progress, { max: now.total, value: now.done });
    redraw(note, [now?.state, now?.error], () => problem(now));
    note.hidden = !note.textContent;
    note.dataset.kind = now?.state === "failed" ? "bad" : "";
  };
  update();
  return { element, update };
}

function controls(card, now) {
  const held = now?.state === "done" ? now.name : card.held;
  if (held) return el("a", { class: "button", href: place(held), ariaLabel: `Open ${card.name}` }, "Open");
  if (now?.state === "running" || now?.state === "waiting")
    return [
      el("progress", { ariaLabel: `Installing ${card.name}` }),
      el("button", { type: "button", ariaLabel: `Cancel ${card.name}`, onclick: () => cancel(card) }, "Cancel"),
    ];
  const replaces = now?.code === "name_taken";
  const text = replaces ? "Replace" : now?.state === "failed" ? "Try again" : "Install";
  const start = () => install(card, { replace: replaces });
  return el("button", { type: "button", ariaLabel: `${text} ${card.name}`, onclick: start }, text);
}

const problem = (now) =>
  now?.state !== "failed" ? "" : now.code === "name_taken" ? "Another soft prompt has this name." : now.error;

/** Who made it, where it is, and its tags. */
function about(card) {
  const tags = [card.rating === "general" ? "" : card.rating, ...card.tags].filter(Boolean).join(", ");
  return [card.author ? `by ${card.author}` : "", card.from, card.licence, tags].filter(Boolean).join(" · ");
}

function facts(card) {
  const known = [card.n_tokens ? size(card) : "", weight(card.bytes)];
  return known.filter(Boolean).join(" · ");
}

const weight = (count) => (count === null ? "" : count < 1e6 ? `${Math.ceil(count / 1e3)} kB` : bytes(count));

const gain = (card, most) =>
  bar("gain", Math.max(0, card.gain) / most, card.gain.toFixed(2), `${card.gain.toFixed(2)} nats per token`);

const compare = (card) =>
  card.samples.length
    ? el("details", { class: "compare" }, el("summary", {}, "With and without it"), ...card.samples.map(sample))
    : card.source.startsWith("hf:")
      ? el("p", { class: "soft small compare" }, "What its card says, unchecked")
      : null;

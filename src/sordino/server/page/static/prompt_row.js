// A soft prompt in the list: what it is, how well it fits, what it is worth, and what can be done with it.

import { call, confirming, el, percent } from "./dom.js";
import { badge, canLoad } from "./fit.js";
import { gainOf, keptOf } from "./heldout.js";
import { live } from "./live.js";
import { menu } from "./menu.js";
import { choice, NONE } from "./status.js";
import { toast } from "./toast.js";
import { load as loadModel } from "./models.js";

export const place = (id, part = "") => `#prompts/${encodeURIComponent(id)}${part && `/${part}`}`;

/** The largest gain of all, which its bars are drawn to. */
export const scale = (cards) => cards.reduce((most, card) => Math.max(most, gainOf(card.heldout) ?? 0), 0.01);

/** Its size and kind. */
export const size = (card) =>
  card.components
    ? `mixture of ${card.components}, ${card.n_tokens} tokens`
    : `${card.n_tokens} tokens${card.kind === "KV prompt" ? ", KV prompt" : ""}`;

export const isActive = (card) => choice.name === card.id;

/** A button that makes it the one that this tab writes with, or no longer: {button, light}; light shows which. */
export function loader(card) {
  const button = el("button", { type: "button", onclick: () => choice.choose(isActive(card) ? NONE : card.id) });
  const light = () => {
    button.textContent = isActive(card) ? "Unload" : "Load";
    button.ariaLabel = `${button.textContent} ${card.name || card.id}`;
  };
  light();
  return { button, light };
}

/** Why it does not fit the model, and the ways on. */
export function unfit(card) {
  if (!card.unfit) return null;
  const model = live.state?.model?.name;
  return el(
    "p",
    { class: "unfit" },
    `${card.unfit} `,
    card.model &&
      el(
        "button",
        { type: "button", class: "link", onclick: () => loadModel(card.model.name) },
        `Load ${card.model.title}${amount(card.model.download)}`,
      ),
    card.model && model ? " · " : "",
    model && el("a", { href: "#train" }, `Train one for ${model}`),
  );
}

const amount = (download) => (download ? ` (about ${(download / 1e9).toFixed(download < 1e9 ? 1 : 0)} GB)` : "");

/** A button that moves it to the trash, and offers to put it back. done: called after each. */
export function remover(card, done) {
  return confirming(el("button", { type: "button" }, "Delete"), card.file, async () => {
    const undo = (trash) => async () => {
      try {
        await call("ui/prompts/restore", { method: "POST", json: { trash } });
      } catch (error) {
        toast(error.message, "bad");
      }
      done();
    };
    try {
      const { trash } = await call(`ui/prompts/${encodeURIComponent(card.id)}`, { method: "DELETE" });
      toast(`${card.file} moved to the library's trash`, "", { label: "Undo", run: undo(trash) });
    } catch (error) {
      toast(error.message, "bad");
    }
    done();
  });
}

/** {element, light}; light shows whether it is active. most: of `scale`. done: called when the library has changed. */
export function row(card, most, done) {
  if (card.error) return { element: brokenRow(card, done), light: () => {} };
  const name = card.name || card.id,
    load = canLoad(card) ? loader(card) : null;
  const element = el(
    "li",
    { dataset: { file: card.file } },
    el(
      "div",
      { class: "what" },
      el("a", { class: "name", href: place(card.id) }, name),
      el("span", { class: "soft small about" }, about(card)),
      text(card),
      unfit(card),
    ),
    el("div", { class: "facts" }, badge(card.fit), el("span", { class: "soft small" }, size(card))),
    el("div", { class: "worth" }, ...bars(card, most)),
    el(
      "div",
      { class: "do" },
      load?.button,
      menu(`More about ${name}`, [
        el("a", { href: place(card.id), ariaLabel: `Details of ${name}` }, "Details"),
        el("a", { href: place(card.id, "export") }, "Export"),
        el("a", { href: place(card.id, "metadata") }, "Edit"),
        remover(card, done),
      ]),
    ),
  );
  const light = () => {
    if (isActive(card)) element.setAttribute("aria-current", "true");
    else element.removeAttribute("aria-current");
    load?.light();
  };
  return { element, light };
}

const brokenRow = (card, done) =>
  el(
    "li",
    { dataset: { file: card.file } },
    el(
      "div",
      { class: "what" },
      el("b", { class: "name" }, card.file),
      el("p", { dataset: { kind: "bad" } }, `Broken: ${card.error}`),
    ),
    el("div", { class: "do" }, menu(`More about ${card.file}`, [remover(card, done)])),
  );

/** Two lines of what it writes, or what the file says of it. */
function text(card) {
  if (!card.sample?.with) return card.description ? el("p", { class: "lines" }, card.description) : null;
  return el(
    "p",
    { class: "lines text" },
    card.sample.prompt ? el("span", { class: "soft" }, card.sample.prompt) : null,
    card.sample.with,
  );
}

/** Who made it, and its tags. */
function about(card) {
  const tags = [card.rating, ...card.tags].filter(Boolean).join(", ");
  return [card.author ? `by ${card.author}` : "", tags].filter(Boolean).join(" · ");
}

function bars(card, most) {
  const gain = gainOf(card.heldout),
    kept = keptOf(card.heldout).at(-1);
  return [
    gain === null ? null : bar("gain", Math.max(0, gain) / most, gain.toFixed(2), `${gain.toFixed(2)} nats per token`),
    kept ? bar("kept", kept[1], percent(kept[1]), `${percent(kept[1])} after ${kept[0]} tokens of other text`) : null,
  ].filter(Boolean);
}

/** A number as a bar. shown: beside it; said: for screen readers. */
export const bar = (label, share, shown, said) =>
  el(
    "span",
    { class: "bar-line" },
    el("span", { class: "soft" }, label),
    el(
      "span",
      { class: "track", role: "img", ariaLabel: `${label}: ${said}` },
      el("span", { style: `width: ${100 * Math.min(1, share)}%` }),
    ),
    el("span", { ariaHidden: "true" }, shown),
  );

/** The same opening, without and with. */
export function sample(one) {
  const side = (title, text, kind) =>
    el(
      "div",
      { class: `card sample ${kind}` },
      el("h4", {}, title),
      el("p", { class: "text" }, el("span", { class: "soft" }, one.prompt ?? ""), text),
    );
  return el(
    "div",
    { class: "pair" },
    one.without ? side("Without", one.without, "") : null,
    side("With", one.with ?? "", "with"),
  );
}

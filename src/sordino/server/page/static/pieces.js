// A story in pieces, as text and on the screen.

import { el } from "./dom.js";
import { within } from "./ranges.js";

// Characters of a piece.
export const PIECE = 8_000;

/** A text in pieces: at ends of lines where there are any, else between words. */
export function cut(text) {
  const pieces = [];
  for (let from = 0, to; from < text.length; from = to) {
    to = from + PIECE;
    if (to < text.length) {
      const next = text.slice(to, to + PIECE),
        end = next.includes("\n") ? next.indexOf("\n") : next.search(/\s/);
      // Not between the two halves of a character.
      to += end < 0 ? Number((next.charCodeAt(0) & 0xfc00) === 0xdc00) : end + 1;
    }
    pieces.push(text.slice(from, to));
  }
  return pieces;
}

/** As a text field has it, which knows no other line ends. */
export const plain = (text) => (text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text);

/** A part's text as nodes: what the model does not see, what it wrote, and the rest. */
export function nodes({ text, unseen, written }) {
  const made = unseen ? [el("mark", {}, text.slice(0, unseen))] : [];
  let at = unseen;
  for (const [from, to] of within(written, unseen, text.length).map((range) => range.map((place) => place + unseen))) {
    made.push(text.slice(at, from), el("span", { class: "written" }, text.slice(from, to)));
    at = to;
  }
  return [...made, text.slice(at)];
}

/** The text under the pointer: a node, and a place in it. */
export function caretAt({ clientX, clientY }) {
  const position = document.caretPositionFromPoint?.(clientX, clientY);
  if (position) return [position.offsetNode, position.offset];
  const range = document.caretRangeFromPoint?.(clientX, clientY);
  return [range?.startContainer, range?.startOffset];
}

// Drawers and side lists: parts of a place that fold away. On a narrow window they lie over it.

import { el, local } from "./dom.js";
import { icon } from "./icons.js";

/** A window where they do. */
export const NARROW = matchMedia("(max-width: 60rem)");

/** Fold `part` away and back with `button`. name: where it is remembered; open: at the first visit. */
export function folding(part, button, { name, open = false }) {
  const show = (shown, { focus = false, remember = !NARROW.matches } = {}) => {
    part.hidden = !shown;
    button.setAttribute("aria-expanded", String(shown));
    if (remember) local.set(`open:${name}`, shown);
    part.dispatchEvent(new CustomEvent("fold", { detail: shown }));
    if (shown && focus) part.querySelector("button, input, select, textarea, a")?.focus();
  };
  const close = () => {
    show(false);
    button.focus();
  };
  button.setAttribute("aria-controls", part.id);
  button.addEventListener("click", () => show(part.hidden, { focus: true }));
  part.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector(":popover-open")) return;
    event.stopPropagation();
    close();
  });
  part.prepend(
    el("button", { type: "button", class: "quiet fold", ariaLabel: "Close", onclick: close }, icon("close")),
  );
  const restore = () => show(!NARROW.matches && local.get(`open:${name}`, open));
  NARROW.addEventListener("change", restore);
  restore();
  return show;
}

// Less wide than this, in pixels, a window has no room for both.
const ROOM = 1400;

/** Fold `other` away while `part` is open, where there is no room for both. fold: of `other`, from `folding`. */
export function makeRoom(part, other, fold) {
  let isAway = false;
  part.addEventListener("fold", ({ detail: isOpen }) => {
    if (isOpen ? other.hidden || innerWidth >= ROOM : !isAway) return;
    isAway = isOpen && !NARROW.matches;
    // In a narrow window it would lie over the page.
    if (isOpen || !NARROW.matches) fold(!isOpen, { remember: false });
  });
}

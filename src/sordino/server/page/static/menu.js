// A menu of actions behind a button.

import { el } from "./dom.js";
import { icon } from "./icons.js";

// Between a menu and the window's edge, in pixels.
const EDGE = 8;

/** A button with a menu. items: buttons or links, which close it; null ones are left out. label: for screen readers.
 * text: on the button, in place of three dots. */
export function menu(label, items, text = null) {
  const list = el("div", { class: "menu", popover: "auto", role: "group", ariaLabel: label }, ...items);
  const button = text
    ? el("button", { type: "button" }, text, icon("down"))
    : el("button", { type: "button", class: "quiet", ariaLabel: label }, icon("more"));
  button.popoverTargetElement = list;
  list.addEventListener("beforetoggle", ({ newState }) => {
    if (newState === "open") place(button, list);
  });
  // Its width is known once it is shown.
  list.addEventListener("toggle", () => {
    const { left, right } = list.getBoundingClientRect();
    if (left < EDGE && right > EDGE) list.style.right = `${parseFloat(list.style.right) - EDGE + left}px`;
    if (right > innerWidth - EDGE) Object.assign(list.style, { left: "auto", right: `${EDGE}px` });
  });
  // An action that asks for confirmation keeps the menu open for its second press.
  list.addEventListener("click", ({ target }) => {
    const item = target.closest("button, a");
    if (item && item.dataset.sure !== "yes") list.hidePopover();
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    // Radios have these keys themselves.
    if (!step || event.target.type === "radio") return;
    event.preventDefault();
    const all = [...list.querySelectorAll("button:enabled, a, input")];
    all.at((all.indexOf(document.activeElement) + step) % all.length)?.focus();
  });
  return el("span", { class: "menu-place" }, button, list);
}

/** Below the button or above it, on the side where the window has more room. */
function place(button, list) {
  const at = button.getBoundingClientRect(),
    isLow = at.bottom > innerHeight * 0.6,
    isLeft = at.left < innerWidth - at.right;
  list.style.top = isLow ? "auto" : `${at.bottom + 4}px`;
  list.style.bottom = isLow ? `${innerHeight - at.top + 4}px` : "auto";
  list.style.left = isLeft ? `${at.left}px` : "auto";
  list.style.right = isLeft ? "auto" : `${Math.max(EDGE, innerWidth - at.right)}px`;
}

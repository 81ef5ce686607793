// A menu of actions behind a button.

import { el } from "./dom.js";
import { icon } from "./icons.js";

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
    const over = 8 - list.getBoundingClientRect().left;
    if (list.matches(":popover-open") && over > 0) list.style.right = `${parseFloat(list.style.right) - over}px`;
  });
  // An action that asks for confirmation keeps the menu open for its second press.
  list.addEventListener("click", ({ target }) => {
    const item = target.closest("button, a");
    if (item && item.dataset.sure !== "yes") list.hidePopover();
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...list.querySelectorAll("button:enabled, a")];
    all.at((all.indexOf(document.activeElement) + step) % all.length)?.focus();
  });
  return el("span", { class: "menu-place" }, button, list);
}

/** Below the button, inside the window. */
function place(button, list) {
  const at = button.getBoundingClientRect();
  list.style.top = at.bottom > innerHeight * 0.6 ? "auto" : `${at.bottom + 4}px`;
  list.style.bottom = at.bottom > innerHeight * 0.6 ? `${innerHeight - at.top + 4}px` : "auto";
  list.style.right = `${Math.max(8, innerWidth - at.right)}px`;
}

// The keys of the page Write.

import { shown } from "./dom.js";

/** actions: go, stop, undo, redo, retry. */
export function startKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (!shown("write") || document.querySelector("dialog[open], :popover-open")) return;
    const command = event.ctrlKey || event.metaKey,
      // By its place on keyboards that have other letters.
      key = (event.key > "\x7f" ? event.code.replace("Key", "") : event.key).toLowerCase();
    if (key === "enter" && command) event.shiftKey ? actions.retry() : actions.go();
    if (key === "escape") actions.stop();
    const asked = !command ? "" : key === "y" || (key === "z" && event.shiftKey) ? "redo" : key === "z" ? "undo" : "";
    // Other fields have the browser's own.
    if (!asked || event.target.matches("input, textarea:not(#story, #output)")) return;
    event.preventDefault();
    actions[asked]();
  });
}

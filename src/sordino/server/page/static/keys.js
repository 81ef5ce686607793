// The keys of the page Write.

import { shown } from "./dom.js";

/** actions: go, stop, undo, redo, retry. text: what the story is now. */
export function startKeys(actions, text) {
  document.addEventListener("keydown", (event) => {
    if (!shown("write") || document.querySelector("dialog[open], :popover-open")) return;
    const command = event.ctrlKey || event.metaKey,
      key = event.key.toLowerCase();
    if (key === "enter" && command) event.shiftKey ? actions.retry() : actions.go();
    if (key === "escape") actions.stop();
    if (command && key === "z") afterTyping(event, text, event.shiftKey ? actions.redo : actions.undo);
    if (command && key === "y") afterTyping(event, text, actions.redo);
  });
}

/** In the story the browser takes back what was typed first; a continuation, where there is nothing of that kind. */
function afterTyping({ target }, text, doing) {
  if (target.matches("input, textarea:not(#story, #output)")) return;
  const had = text();
  setTimeout(() => text() === had && doing());
}

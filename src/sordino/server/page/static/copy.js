// A button that copies a text.

import { el } from "./dom.js";

/** value: the text, or a function that gives it. named: what it is, for screen readers. */
export function copier(value, named = value) {
  const button = el("button", {
    type: "button",
    class: "copy",
    onclick: async () => {
      try {
        await navigator.clipboard.writeText(typeof value === "function" ? value() : value);
        say("Copied");
      } catch {
        say("Select it and copy");
      }
      setTimeout(() => say("Copy"), 1500);
    },
  });
  // A button's name begins with what is on it.
  function say(text) {
    button.textContent = text;
    button.ariaLabel = `${text} ${named}`;
  }
  say("Copy");
  return button;
}

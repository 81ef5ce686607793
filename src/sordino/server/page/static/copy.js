// A button that copies a text.

import { el } from "./dom.js";

/** value: the text, or a function that gives it. named: what it is, for screen readers. */
export function copier(value, named = value) {
  const button = el(
    "button",
    {
      type: "button",
      class: "copy",
      ariaLabel: `Copy ${named}`,
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(typeof value === "function" ? value() : value);
          button.textContent = "Copied";
        } catch {
          button.textContent = "Select it and copy";
        }
        setTimeout(() => {
          button.textContent = "Copy";
        }, 1500);
      },
    },
    "Copy",
  );
  return button;
}

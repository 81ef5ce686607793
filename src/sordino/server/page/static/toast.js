// Short messages at the corner of the window, for what happened elsewhere than where the user looks.

import { $, el } from "./dom.js";
import { icon } from "./icons.js";

const SHOWN_MS = 6000,
  MOST = 4;

/** Show a message. Returns its element, to be removed once it no longer holds. kind: "", "good", "bad" or "question"; the
 * last two stay until they are closed. actions: {label, run} each, a button. */
export function toast(text, kind = "", ...actions) {
  const close = () => made.remove();
  const made = el(
    "div",
    { class: "toast", role: kind === "bad" ? "alert" : "status", dataset: { kind } },
    el("p", {}, text),
    actions.filter(Boolean).map(({ label, run }) =>
      el("button", {
        type: "button",
        textContent: label,
        onclick: () => {
          close();
          run();
        },
      }),
    ),
    el("button", { type: "button", class: "quiet", ariaLabel: "Close", onclick: close }, icon("close")),
  );
  if (kind !== "bad" && kind !== "question") closeLater(made, close);
  $("toasts").append(made);
  while ($("toasts").children.length > MOST) $("toasts").firstElementChild.remove();
  return made;
}

/** Close a message after a while, in which neither the pointer nor the focus was on it. */
function closeLater(made, close) {
  let timer;
  const start = () => {
    clearTimeout(timer);
    if (!made.matches(":hover, :focus-within")) timer = setTimeout(close, SHOWN_MS);
  };
  for (const event of ["pointerenter", "focusin"]) made.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["pointerleave", "focusout"]) made.addEventListener(event, () => setTimeout(start));
  start();
}

// What the user types in a chat: a field that grows, Enter to send, Escape to stop; and how long answers may get.

import { $, local } from "./dom.js";
import { live } from "./live.js";

// An answer ends by itself: this is where one is cut off.
const ANSWER_TOKENS = 240;

/** How many tokens an answer may have: half of the context at most. */
export const answerTokens = () =>
  Math.max(1, Math.min(local.get("answer-tokens", ANSWER_TOKENS), Math.floor((live.state?.model?.context ?? 0) / 2)));

/** send: called with Enter, or the button. stop: called with Escape, or the button. changed: called when answers may
 * get longer or shorter. Returns {insert}, which adds a text to the message. */
export function startComposer({ send, stop, changed }) {
  const most = $("answer-tokens");
  most.value = local.get("answer-tokens", ANSWER_TOKENS);
  most.addEventListener("change", () => {
    if (most.value !== "" && most.checkValidity()) local.set("answer-tokens", most.valueAsNumber);
    most.value = local.get("answer-tokens", ANSWER_TOKENS);
    changed();
  });
  const field = $("say-text");
  const grow = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
  };
  $("say").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
    grow();
  });
  field.addEventListener("input", grow);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
    grow();
  });
  $("chat").addEventListener("keydown", ({ key }) => {
    if (key === "Escape" && !document.querySelector(":popover-open")) stop();
  });
  $("chat-stop").addEventListener("click", stop);
  const insert = (text) => {
    field.value = [field.value, text].filter((one) => one.trim()).join("\n\n");
    field.focus();
    grow();
  };
  return { insert };
}

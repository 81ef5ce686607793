// What this tab asks the engine for, with the soft prompt, weights, attention and settings that are chosen.

import { attention } from "./attention.js";
import { setStatus } from "./dom.js";
import { live } from "./live.js";
import { weights } from "./mixing.js";
import { settings } from "./settings.js";
import { choice } from "./status.js";

/** Continue a text. onMessage: as in live.ask. Returns a function that stops it. */
export const write = (text, onMessage, soft_prompts = [choice.name]) =>
  live.ask(
    { do: "write", text, soft_prompts, weights: weights(), ...attention(), settings: settings() },
    onMessage,
  );

/** Show in `meter` how much of the context a text takes. onDropped: called with what of it does not fit. */
export function measureContext(text, meter, onDropped) {
  const { max_tokens } = settings();
  live.ask({ do: "measure", text, soft_prompt: choice.name, max_tokens }, (message) => {
    if (message.is === "measured") {
      const soft = message.soft ? ` + ${message.soft} soft` : "";
      setStatus(meter, `${message.used}${soft} + ${message.room} new of ${message.total} tokens`);
      onDropped(message.dropped);
    } else if (message.is === "error") setStatus(meter, message.message, "bad");
  });
}

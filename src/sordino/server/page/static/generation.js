// What this tab asks the engine for, with the soft prompt, weights, attention and settings that are chosen.

import { attention } from "./attention.js";
import { setStatus } from "./dom.js";
import { live } from "./live.js";
import { weights } from "./mixing.js";
import { settings } from "./settings.js";
import { choice } from "./status.js";

/** Continue a text, with each of these soft prompts. onMessage: as in live.ask. Returns a function that stops it. */
export function write(text, onMessage, { prompts = [choice.name], max_tokens = settings().max_tokens } = {}) {
  const chosen = { weights: weights(), ...attention(), settings: { ...settings(), max_tokens } };
  const message = { do: "write", text, soft_prompts: prompts, ...chosen };
  const timed = timing();
  return live.ask(message, (answer) => {
    timed(answer);
    onMessage(answer);
  });
}

/** Tokens a second from the first word on, of all columns together, said as an event "rate" of `live`. */
function timing() {
  let began = 0,
    tokens = 0;
  return ({ is, tokens: more }) => {
    if (is === "text") began ||= performance.now();
    if (is === "end") tokens += more;
    const seconds = (performance.now() - began) / 1000;
    if (is === "done" && began && tokens > 1 && seconds > 0.2)
      live.dispatchEvent(new CustomEvent("rate", { detail: tokens / seconds }));
  };
}

// The last question about each meter: an answer to an older one is another text's.
const measuring = new WeakMap();

/** Show nothing in `meter`: another text is open. */
export function clearMeter(meter) {
  measuring.delete(meter);
  setStatus(meter, "");
  delete meter.dataset.short;
  meter.removeAttribute("style");
}

/** Show in `meter` how much of the context a text takes. onDropped: called with what of it does not fit. */
export function measureContext(text, meter, onDropped, max_tokens = settings().max_tokens) {
  const mine = Symbol("measurement");
  measuring.set(meter, mine);
  live.ask({ do: "measure", text, soft_prompt: choice.name, max_tokens }, (message) => {
    if (measuring.get(meter) !== mine) return;
    if (message.is === "measured") {
      const { used, soft, room, total } = message;
      // An encoder-decoder's output has a context of its own.
      const apart = live.state?.model?.encoder_decoder,
        taken = used + soft + (apart ? 0 : room);
      const text = `${used} tokens of text${soft ? ` + ${soft} of the soft prompt` : ""}`;
      setStatus(meter, apart ? `${text}, of ${total}` : `${text} + ${room} to write, of ${total}`);
      // In its place where there is little room.
      meter.dataset.short = `${taken} of ${total} tokens`;
      meter.style.setProperty("--full", `${Math.min(100, (100 * taken) / total)}%`);
      onDropped(message.dropped);
    } else if (message.is === "error") {
      delete meter.dataset.short;
      setStatus(meter, message.message, "bad");
    }
  });
}

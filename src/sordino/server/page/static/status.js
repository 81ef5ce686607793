// The status lamp, and which soft prompt this tab's next generation uses.

import { $, clearNoAnswer, local, setStatus } from "./dom.js";
import { live } from "./live.js";
import { toast } from "./toast.js";

// Values of the choice besides names: no file can have these.
export const DEFAULT = "/default";
export const NONE = "/none";

// By list of soft prompts: how many of them have each title.
const titles = new WeakMap();

/** A soft prompt in a list: its title, and its name where another has that title too. */
export function label({ title, name }) {
  const { prompts } = live.state;
  if (!titles.has(prompts)) {
    const counts = new Map();
    for (const one of prompts) counts.set(one.title, (counts.get(one.title) ?? 0) + 1);
    titles.set(prompts, counts);
  }
  return titles.get(prompts).get(title) > 1 ? `${title} (${name})` : title;
}

// What the lamp calls an active one.
const KINDS = { "embedding prompt": "soft prompt", "KV prompt": "KV prompt" };

// Tokens a second of the last text, while its model is in use.
let speed = "";

class Choice extends EventTarget {
  #chosen = DEFAULT;
  #model = null;

  /** The name of the soft prompt that the next generation uses; "" for none. */
  get name() {
    if (!live.state?.model) return "";
    const name = this.#chosen === DEFAULT ? live.state.default : this.#chosen === NONE ? "" : this.#chosen;
    return this.prompt(name) ? name : "";
  }

  prompt(name) {
    return live.state?.prompts.find((one) => one.name === name) ?? null;
  }

  /** What was chosen: a name of the library, DEFAULT or NONE. */
  get chosen() {
    return this.#chosen;
  }

  /** As `chosen`. */
  choose(chosen) {
    this.#chosen = chosen;
    if (this.#model) local.set(`choice:${this.#model}`, chosen);
    this.show();
    this.dispatchEvent(new Event("chosen"));
  }

  show() {
    const state = live.state;
    if (state?.model && state.model.key !== this.#model) {
      this.#model = state.model.key;
      speed = "";
      this.#chosen = local.get(`choice:${this.#model}`, DEFAULT);
    }
    this.#light(state);
    this.dispatchEvent(new Event("change"));
  }

  /** Chosen, and deleted or broken since. */
  get isGone() {
    return ![DEFAULT, NONE].includes(this.#chosen) && !this.prompt(this.#chosen);
  }

  #light(state) {
    const prompt = this.prompt(this.name);
    const [kind, text] = !live.connected
      ? ["grey", $("login").open ? "The server needs its key" : "The server does not answer"]
      : !state?.model
        ? ["grey", state?.loading ? `Loading ${state.loading.name}: ${state.loading.line}` : "No model is loaded"]
        : prompt
          ? [
              "green",
              prompt.components
                ? `Active mixture (${prompt.components} soft prompts, ${prompt.tokens} tokens): ${prompt.title}`
                : `Active ${KINDS[prompt.kind]} (${prompt.tokens} tokens): ${prompt.title}`,
            ]
          : [
              "blue",
              `Model ready: ${state.model.name}. ` +
                (this.isGone
                  ? `The soft prompt ${this.#chosen} is gone: choose another`
                  : "No soft prompt is active"),
            ];
    $("lamp").dataset.kind = kind;
    $("lamp-open").title = text;
    setStatus($("lamp-text"), text);
    $("no-model").hidden = !live.connected || Boolean(state?.model) || Boolean(state?.loading);
    const without = !state ? "Connecting" : kind === "blue" ? "No soft prompt" : "Not ready";
    $("lamp-name").textContent = !live.connected && state ? "No connection" : (prompt?.title ?? without);
    $("lamp-open").disabled = !state?.model;
    const none = !state ? "Model" : state.loading ? `Loading ${state.loading.name}` : "Choose a model";
    $("model-name").textContent = state?.model?.name ?? none;
    $("model-facts").textContent = `${state?.model?.runner ?? ""}${speed}`;
  }
}

export const choice = new Choice();

// Why the server left its default out, as last told.
let leftOut = "";

function tellLeftOut() {
  const now = live.state.left_out ?? "";
  if (now && now !== leftOut) toast(now, "bad");
  leftOut = now;
}

// What was active when it was looked at last: {name, title, model}.
let active = {},
  gone = null;

/** Say that the soft prompt that this tab writes with was removed: what is written next has none. */
function tellGone() {
  const model = live.state?.model?.key;
  // The file was only being replaced, or another one is chosen.
  if (!choice.isGone) gone?.remove();
  else if (choice.chosen === active.name && model === active.model)
    gone = toast(`${active.title} is gone from the library. What is written next has no soft prompt.`, "bad");
  active = { name: choice.name, title: choice.prompt(choice.name)?.title, model };
}

export function startLamp() {
  choice.addEventListener("change", tellGone);
  live.addEventListener("state", () => choice.show());
  live.addEventListener("state", tellLeftOut);
  live.addEventListener("connection", () => {
    if (live.connected) clearNoAnswer();
    choice.show();
  });
  live.addEventListener("rate", ({ detail }) => {
    speed = ` · ${detail.toFixed(0)} tokens/s`;
    choice.show();
  });
  choice.show();
}

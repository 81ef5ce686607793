// The status lamp, and which soft prompt this tab's next generation uses.

import { $, el, local, setStatus } from "./dom.js";
import { live } from "./live.js";

// Values of the choice besides names: no file can have these.
const DEFAULT = "/default";
export const NONE = "/none";

/** A soft prompt in a list: its title, which may not be unique, and its name where that differs. */
export const label = ({ title, name }) => (title === name ? name : `${title} (${name})`);

// What the lamp calls an active one.
const KINDS = { "embedding prompt": "soft prompt", "KV prompt": "KV prompt" };

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
      this.#chosen = local.get(`choice:${this.#model}`, DEFAULT);
    }
    this.#fill(state);
    this.#light(state);
    this.dispatchEvent(new Event("change"));
  }

  #fill(state) {
    const standard = state?.default
      ? `server's default (${this.prompt(state.default)?.title ?? state.default})`
      : "server's default (none)";
    $("choice").replaceChildren(
      el("option", { value: DEFAULT }, standard),
      el("option", { value: NONE }, "none"),
      ...(state?.prompts ?? []).map((one) => el("option", { value: one.name }, label(one))),
      ...(this.#isGone() ? [el("option", { value: this.#chosen }, `${this.#chosen} (gone)`)] : []),
    );
    $("choice").value = this.#chosen;
    $("choice").disabled = !state?.model;
  }

  /** Chosen, and deleted or broken since. */
  #isGone() {
    return ![DEFAULT, NONE].includes(this.#chosen) && !this.prompt(this.#chosen);
  }

  #light(state) {
    const prompt = this.prompt(this.name);
    const [kind, text] = !live.connected
      ? ["grey", $("login").open ? "The server asks for its key" : "The server does not answer"]
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
                (this.#isGone()
                  ? `The soft prompt ${this.#chosen} is gone: choose another`
                  : "No soft prompt is active"),
            ];
    $("lamp").dataset.kind = kind;
    $("lamp").title = text;
    setStatus($("lamp-text"), text);
    $("no-model").hidden = !live.connected || Boolean(state?.model) || Boolean(state?.loading);
    $("no-prompts").hidden = !live.connected || !state || state.count > 0;
    $("model-open").textContent = state?.model ? `Model: ${state.model.name}` : "Model";
  }
}

export const choice = new Choice();

export function startLamp() {
  $("choice").addEventListener("change", ({ target }) => choice.choose(target.value));
  live.addEventListener("state", () => choice.show());
  live.addEventListener("connection", () => choice.show());
  choice.show();
}

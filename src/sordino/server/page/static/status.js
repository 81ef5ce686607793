// The lamp, and which soft prompt this tab's next generation uses.

import { $, el, kept, say } from "./dom.js";
import { live } from "./live.js";

// What the choice says besides names: these no file can be called.
const DEFAULT = "/default";
export const NONE = "/none";

/** What a soft prompt is called in a list: its title, which another may have too; its name where that says more. */
export const called = (voice) => (voice.title === voice.name ? voice.name : `${voice.title} (${voice.name})`);

class Choice extends EventTarget {
  #said = DEFAULT;
  #model = null;

  /** The name of the soft prompt that the next generation uses; "" for none. */
  get name() {
    if (!live.state?.model) return "";
    const name = this.#said === DEFAULT ? live.state.default : this.#said === NONE ? "" : this.#said;
    return this.voice(name) ? name : "";
  }

  voice(name) {
    return live.state?.voices.find((one) => one.name === name) ?? null;
  }

  /** What was chosen: a name of the library, or one of the two that no file can have. */
  get said() {
    return this.#said;
  }

  /** As `said`. */
  choose(said) {
    this.#said = said;
    if (this.#model) kept.set(`choice:${this.#model}`, said);
    this.show();
    this.dispatchEvent(new Event("chosen"));
  }

  show() {
    const state = live.state;
    if (state?.model && state.model.key !== this.#model) {
      this.#model = state.model.key;
      this.#said = kept.get(`choice:${this.#model}`, DEFAULT);
    }
    this.#fill(state);
    this.#light(state);
    this.dispatchEvent(new Event("change"));
  }

  #fill(state) {
    const standard = state?.default
      ? `server's default (${this.voice(state.default)?.title ?? state.default})`
      : "server's default (none)";
    $("choice").replaceChildren(
      el("option", { value: DEFAULT }, standard),
      el("option", { value: NONE }, "none"),
      ...(state?.voices ?? []).map((one) => el("option", { value: one.name }, called(one))),
      ...(this.#isGone() ? [el("option", { value: this.#said }, `${this.#said} (gone)`)] : []),
    );
    $("choice").value = this.#said;
    $("choice").disabled = !state?.model;
  }

  /** Chosen, and deleted or broken since. */
  #isGone() {
    return ![DEFAULT, NONE].includes(this.#said) && !this.voice(this.#said);
  }

  #light(state) {
    const voice = this.voice(this.name);
    const [kind, told] = !live.connected
      ? ["grey", $("login").open ? "The server asks for its key" : "The server does not answer"]
      : !state?.model
        ? ["grey", state?.loading ? `Loading ${state.loading.name}: ${state.loading.line}` : "No model is loaded"]
        : voice
          ? [
              "green",
              voice.components
                ? `Active mixture (${voice.components} soft prompts, ${voice.tokens} tokens): ${voice.title}`
                : `Active soft prompt (${voice.tokens} tokens): ${voice.title}`,
            ]
          : [
              "blue",
              `Model ready: ${state.model.name}. ` +
                (this.#isGone()
                  ? `The soft prompt ${this.#said} is gone: choose another`
                  : "No soft prompt is active"),
            ];
    $("lamp").dataset.kind = kind;
    $("lamp").title = told;
    say($("lamp-says"), told);
    $("no-model").hidden = !live.connected || Boolean(state?.model) || Boolean(state?.loading);
    $("no-voices").hidden = !live.connected || !state || state.count > 0;
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

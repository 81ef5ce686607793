// Write with an encoder-decoder: the story is its input, and what it writes is a text of its own.

import { copier } from "./copy.js";
import { $ } from "./dom.js";
import { live } from "./live.js";

/** Whether the model in use reads an input and writes an output. */
export const isPair = () => Boolean(live.state?.model?.encoder_decoder);

// What differs on the page: the heading of the list, the story's label and placeholder, the button, what a wait is for.
const STORY = {
  list: "Stories",
  label: "Story",
  placeholder: "Start writing, then press Continue.",
  go: "Continue",
  reading: "Reading the story ...",
};
const PAIR = {
  list: "Texts",
  label: "Input",
  placeholder: "Write or paste what the model reads, then press Generate.",
  go: "Generate",
  reading: "Reading the input ...",
};
export const words = () => (isPair() ? PAIR : STORY);

/** The output's field, with those parts of the editor's interface that a continuation needs. */
export class Output {
  #field = $("output");

  #copy = copier(() => this.text, "the output");

  constructor() {
    this.#copy.disabled = true;
    $("result").querySelector("p").append(this.#copy);
  }

  get text() {
    return this.#field.value;
  }

  open(text) {
    this.#field.value = text;
    this.#copy.disabled = !text;
  }

  append(text) {
    const field = this.#field,
      isAtEnd = field.scrollHeight - field.scrollTop - field.clientHeight < 40;
    this.open(field.value + text);
    if (isAtEnd) field.scrollTop = field.scrollHeight;
  }
}

/** Show the page for the model in use. changed: called where it is of the other kind than before. */
export function startForm(changed) {
  const show = () => {
    const { list, label, placeholder, go } = words();
    $("write").dataset.form = isPair() ? "pair" : "story";
    $("result").hidden = !isPair();
    $("stories-side").querySelector("h2").textContent = list;
    $("story-label").textContent = label;
    $("story-label").classList.toggle("hidden", !isPair());
    $("story").placeholder = placeholder;
    $("go-label").textContent = go;
    // It stands within the story, which an input is not.
    $("note").closest("label").hidden = isPair();
  };
  let had = null;
  live.addEventListener("state", () => {
    // Without a model the page stays as it is.
    if (!live.state.model || isPair() === had) return;
    had = isPair();
    show();
    changed();
  });
  show();
}

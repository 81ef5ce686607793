// The list of stories, or of chats: a row each, with a menu.

import { ago, arrange, confirming, el } from "./dom.js";
import { menu } from "./menu.js";
import { nameOf } from "./story_fields.js";

export class StoryList {
  #place;
  #doing;
  // By id: the row, and what of it changes.
  #rows = new Map();
  #unnamed;

  /** doing: {open, rename, save, remove}, called with an id. unnamed: what one without a name is called. */
  constructor(place, doing, unnamed) {
    this.#unnamed = unnamed;
    this.#place = place;
    this.#doing = doing;
  }

  /** stories: {id, changed, isOpen, isUnsent} each, and what `nameOf` needs. Rows stay in place: a menu stays open. */
  draw(stories) {
    arrange(this.#place, stories.map((one) => this.#row(one)));
  }

  #row({ id, changed, isOpen, isUnsent, ...story }) {
    if (!this.#rows.has(id)) this.#rows.set(id, this.#made(id));
    const { row, button, name, when } = this.#rows.get(id);
    name.textContent = nameOf(story) || this.#unnamed;
    when.textContent = isUnsent ? "in this browser only" : changed ? ago(changed) : "new";
    if (isOpen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    return row;
  }

  #made(id) {
    const name = el("span", { class: "name" }),
      when = el("small", { class: "soft" });
    const button = el(
      "button",
      { type: "button", class: "quiet", onclick: () => this.#doing.open(id) },
      name,
      when,
    );
    const row = el("li", {}, button);
    const rename = () => {
      const input = el("input", { value: name.textContent, maxLength: 300, ariaLabel: "Name" });
      let isOver = false;
      const done = (isKept) => {
        // Taken out, the field loses the focus: a second end.
        if (isOver) return;
        isOver = true;
        input.replaceWith(button);
        if (isKept && input.value.trim() !== name.textContent) this.#doing.rename(id, input.value.trim());
      };
      input.addEventListener("blur", () => done(true));
      input.addEventListener("keydown", (event) => {
        if (!["Enter", "Escape"].includes(event.key)) return;
        // Escape would fold the list away.
        event.stopPropagation();
        done(event.key === "Enter");
      });
      button.replaceWith(input);
      input.focus();
      input.select();
    };
    row.append(
      menu("Actions", [
        el("button", { type: "button", onclick: rename }, "Rename"),
        el("button", { type: "button", onclick: () => this.#doing.save(id) }, "Export"),
        confirming(el("button", { type: "button" }, "Delete"), id, () => this.#doing.remove(id)),
      ]),
    );
    return { row, button, name, when };
  }
}

// The list of stories, or of chats: a row each, with a menu.

import { confirming, el } from "./dom.js";
import { menu } from "./menu.js";
import { nameOf } from "./story_fields.js";

/** When it was changed, in seconds since 1970, for people. */
function ago(seconds) {
  const date = new Date(1000 * seconds),
    now = new Date(),
    passed = (now - date) / 1000;
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (date.toDateString() === now.toDateString())
    return date.toLocaleTimeString([], { hour: "numeric", minute: "2-digit" });
  const year = date.getFullYear() === now.getFullYear() ? {} : { year: "numeric" };
  return date.toLocaleDateString([], { day: "numeric", month: "short", ...year });
}

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
    const rows = stories.map((one) => this.#row(one));
    const now = [...this.#place.children];
    if (rows.length !== now.length || rows.some((row, at) => row !== now[at])) this.#place.replaceChildren(...rows);
  }

  #row({ id, changed, isOpen, isUnsent, ...story }) {
    if (!this.#rows.has(id)) this.#rows.set(id, this.#made(id));
    const { row, button, name, when } = this.#rows.get(id);
    name.textContent = nameOf(story) || this.#unnamed;
    when.textContent = isUnsent ? "in this browser only" : changed ? ago(changed) : "";
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

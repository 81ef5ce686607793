// The story on the screen. The part around the caret, or the end, is in a text field; the rest is text that the
// browser lays out only where it is seen, and that a click makes editable. So a long story types as a short one does,
// and searching in the page finds all of it.

import { el } from "./dom.js";
import { caretAt, cut, nodes, PIECE, plain } from "./pieces.js";
import { difference, edited, extended, within } from "./ranges.js";

// Characters of the field: as many as it gets, and where it is filled anew.
const FIELD = 24_000,
  MOST = 60_000;
// Nearer to the end than this, in pixels, the view follows what is written.
const NEAR = 80;
// For pieces that were not laid out yet: characters of a line, and its height.
const LINE = 66,
  LINE_HEIGHT = 30;

export class Editor {
  #parts;
  #changed;
  // The story: pieces before the field, what the field had, pieces after it; and the pieces of each side joined.
  #before = [];
  #had = "";
  #after = [];
  #joined = ["", ""];
  // Ranges that the model wrote; the end of what it does not see any more.
  #written = [];
  #unseen = 0;
  // How each line of the field, and each piece, was drawn.
  #lines = [];
  #drawn = new WeakMap();
  #following = true;

  /** parts: {sheet, earlier, backdrop, field, later}, elements. changed: called when the user edited. */
  constructor(parts, changed) {
    this.#parts = parts;
    this.#changed = changed;
    parts.field.addEventListener("input", () => this.#input());
    parts.field.addEventListener("keydown", (event) => this.#key(event));
    parts.sheet.addEventListener("scroll", () => {
      this.#following = parts.sheet.scrollHeight - parts.sheet.scrollTop - parts.sheet.clientHeight < NEAR;
    });
    // The end stays in view where there is less room for it: a keyboard, or a comparison.
    new ResizeObserver(() => this.follow()).observe(parts.sheet);
    for (const place of [parts.earlier, parts.later]) place.addEventListener("click", (event) => this.#click(event));
  }

  /** The whole story. */
  get text() {
    return this.#joined[0] + this.#parts.field.value + this.#joined[1];
  }

  /** Ranges of it that the model wrote, and nobody has edited since. */
  get written() {
    return this.#written;
  }

  /** Show another story, at its end. */
  open(given, written) {
    const text = plain(given);
    this.#written = within(written, 0, text.length);
    this.#unseen = 0;
    this.#place(cut(text), text.length);
    this.toEnd();
  }

  /** The story as it is, for `restore`. Texts that it shares with others of it take no memory. */
  snapshot() {
    const { field } = this.#parts,
      caret = [field.selectionStart, field.selectionEnd];
    return { before: this.#before, field: field.value, caret, after: this.#after, written: this.#written };
  }

  restore({ before, field, caret, after, written }) {
    this.#written = written;
    this.#set(before, field, after);
    this.#parts.field.setSelectionRange(...caret);
    if (field.length > MOST) this.#settle();
    this.follow();
  }

  /** Add what the model wrote. Caret and selection stay, and so does the view, unless it was at the end. */
  append(given) {
    const { field } = this.#parts,
      text = plain(given),
      end = this.text.length;
    this.#written = extended(this.#written, end, end + text.length);
    if (this.#after.length) {
      this.#set(this.#before, field.value, [...this.#after.slice(0, -1), this.#after.at(-1) + text]);
    } else {
      field.setRangeText(text, field.value.length, field.value.length, "preserve");
      this.#had = field.value;
      if (this.#had.length > MOST) this.#settle();
      else this.#drawField();
    }
    this.follow();
  }

  /** Whether the story ends with `text`. */
  endsWith(text) {
    const { value } = this.#parts.field;
    return !this.#after.length && value.length >= text.length ? value.endsWith(text) : this.text.endsWith(text);
  }

  /** Remove so many code units at the end. */
  drop(count) {
    const text = this.text.slice(0, -count);
    this.#written = within(this.#written, 0, text.length);
    this.#place(cut(text), text.length);
    this.follow();
  }

  /** Shade so many code units at the beginning. */
  shade(unseen) {
    if (unseen === this.#unseen) return;
    this.#unseen = unseen;
    this.#drawField();
    this.#drawPieces();
  }

  /** Show the end, and have it in the field. The caret stays, if its place is there too. */
  toEnd() {
    const { field } = this.#parts,
      caret = this.#joined[0].length + field.selectionStart;
    if (this.#after.length || field.value.length > FIELD + 2 * PIECE) {
      this.#place(this.#pieces(), this.text.length);
      const place = caret - this.#joined[0].length;
      if (place >= 0) field.setSelectionRange(place, place);
    }
    this.#following = true;
    this.follow();
  }

  /** Show the end, if it was in view. */
  follow() {
    if (!this.#following) return;
    const { sheet } = this.#parts;
    requestAnimationFrame(() => {
      sheet.scrollTop = sheet.scrollHeight;
    });
  }

  // What the user does ------------------------------------------------------------------------------

  #input() {
    const { value } = this.#parts.field,
      { at, removed, added } = difference(this.#had, value);
    this.#written = edited(this.#written, this.#joined[0].length + at, removed, added);
    this.#had = value;
    if (value.length > MOST) this.#settle();
    else this.#drawField();
    this.#changed();
  }

  /** Where the caret leaves the field, the field moves on. With everything selected it holds everything. */
  #key(event) {
    const { field } = this.#parts,
      command = event.ctrlKey || event.metaKey,
      isAt = (place) => field.selectionStart === place && field.selectionEnd === place,
      start = this.#joined[0].length;
    if (!this.#before.length && !this.#after.length) return;
    if (command && event.key === "a") this.#set([], this.text, []);
    else if (command && event.key === "Home") this.#edit(0);
    else if (command && event.key === "End") this.#edit(this.text.length);
    else if (["ArrowUp", "ArrowLeft"].includes(event.key) && isAt(0) && start) this.#edit(start - 1);
    else if (["ArrowDown", "ArrowRight"].includes(event.key) && isAt(field.value.length) && this.#after.length)
      this.#edit(start + field.value.length + 1);
    else return;
    if (event.key !== "a") event.preventDefault();
  }

  #click(event) {
    const piece = event.target.closest(".piece");
    if (!piece || !getSelection().isCollapsed) return;
    const [node, offset] = caretAt(event);
    if (!node || !piece.contains(node)) return;
    const range = document.createRange();
    range.setStart(piece, 0);
    range.setEnd(node, offset);
    const { earlier, field } = this.#parts,
      isEarlier = earlier.contains(piece),
      pieces = isEarlier ? this.#before : this.#after,
      index = [...piece.parentElement.children].indexOf(piece),
      start = isEarlier ? 0 : this.#joined[0].length + field.value.length;
    this.#edit(start + pieces.slice(0, index).join("").length + range.toString().length);
  }

  /** Put the field around a place of the story, and the caret there. */
  #edit(place) {
    this.#place(this.#pieces(), place);
    this.#parts.field.focus();
  }

  /** Keep in the field what is around the caret. */
  #settle() {
    const { field } = this.#parts,
      start = this.#joined[0].length,
      [from, to] = [start + field.selectionStart, start + field.selectionEnd];
    this.#place(this.#pieces(), from);
    if (to > from) field.setSelectionRange(field.selectionStart, field.selectionStart + to - from);
  }

  // Drawing -----------------------------------------------------------------------------------------

  #pieces() {
    return [...this.#before, ...cut(this.#parts.field.value), ...this.#after];
  }

  /** Put the pieces around `place` into the field, and the caret there. */
  #place(pieces, place) {
    let at = 0,
      left = place;
    while (at < pieces.length - 1 && left > pieces[at].length) {
      left -= pieces[at].length;
      at += 1;
    }
    let [from, to] = [at, Math.min(at + 1, pieces.length)];
    for (let size = pieces[at]?.length ?? 0; size < FIELD && (from > 0 || to < pieces.length); ) {
      if (to < pieces.length) size += pieces[to++].length;
      if (from > 0 && size < FIELD) size += pieces[--from].length;
    }
    const before = pieces.slice(0, from);
    this.#set(before, pieces.slice(from, to).join(""), pieces.slice(to));
    const caret = place - this.#joined[0].length;
    this.#parts.field.setSelectionRange(caret, caret);
  }

  #set(before, value, after) {
    const { field } = this.#parts;
    [this.#before, this.#after, this.#had] = [before, after, value];
    this.#joined = [before.join(""), after.join("")];
    if (field.value !== value) field.value = value;
    this.#drawField();
    this.#drawPieces();
  }

  /** Behind the field's text: the same text, with marks. A paragraph is drawn again only where it changed. */
  #drawField() {
    const { backdrop, field } = this.#parts;
    let at = this.#joined[0].length;
    const lines = field.value.split("\n").map((text) => {
      const line = this.#marked(text, at);
      at += text.length + 1;
      return line;
    });
    const had = this.#lines,
      most = Math.min(had.length, lines.length);
    let [top, bottom] = [0, 0];
    while (top < most && had[top].key === lines[top].key) top += 1;
    while (bottom < most - top && had.at(-1 - bottom).key === lines.at(-1 - bottom).key) bottom += 1;
    for (let gone = had.length - top - bottom; gone > 0; gone -= 1) backdrop.children[top].remove();
    const made = lines.slice(top, lines.length - bottom).map((line) => el("div", {}, ...nodes(line)));
    backdrop.children[top] ? backdrop.children[top].before(...made) : backdrop.append(...made);
    this.#lines = lines;
  }

  #drawPieces() {
    const { earlier, field, later } = this.#parts;
    this.#drawInto(earlier, this.#before, 0);
    this.#drawInto(later, this.#after, this.#joined[0].length + field.value.length);
  }

  #drawInto(place, pieces, start) {
    let at = start;
    pieces.forEach((text, index) => {
      const piece = this.#marked(text, at);
      at += text.length;
      const shown = place.children[index] ?? place.appendChild(el("div", { class: "piece text" }));
      if (this.#drawn.get(shown) === piece.key) return;
      this.#drawn.set(shown, piece.key);
      shown.style.containIntrinsicBlockSize = `auto ${Math.ceil(text.length / LINE) * LINE_HEIGHT}px`;
      shown.replaceChildren(...nodes(piece));
    });
    while (place.children.length > pieces.length) place.lastElementChild.remove();
  }

  /** A part of the story that begins at `at`, with its marks. */
  #marked(text, at) {
    const unseen = Math.max(0, Math.min(text.length, this.#unseen - at)),
      written = within(this.#written, at, at + text.length);
    return { text, unseen, written, key: `${unseen} ${written.join(" ")} ${text}` };
  }
}

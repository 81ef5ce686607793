// What Undo and Redo bring back: the text before each continuation and before what was typed, and what Undo took away.
// A browser's own history does not know what a script put into the field, and mixes up both.

// What is typed is taken back in steps: a step ends after this pause, after so many edits, and where another kind of edit begins.
const PAUSE_MS = 1000,
  EDITS = 40;
// As many of these steps are kept.
const MOST = 200;

export class History {
  // {snapshot, isTyped}.
  #before = [];
  #undone = [];
  // The step that is being typed; the snapshot before an edit that is about to begin another.
  #typing = { kind: "", edits: 0, at: 0 };
  #pending = null;

  get canUndo() {
    return this.#before.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  clear() {
    this.#before = [];
    this.#undone = [];
    this.#typing.kind = "";
  }

  /** A continuation begins at `snapshot`. */
  begin(snapshot) {
    this.#before.push({ snapshot, isTyped: false });
    this.#undone = [];
    this.#typing.kind = "";
  }

  /** The last continuation brought nothing. */
  cancel() {
    this.#before.pop();
  }

  /** The user is about to edit. kind: an InputEvent's inputType. snapshot: gives the text as it is. */
  edit(kind, snapshot) {
    const now = Date.now(),
      { kind: had, edits, at } = this.#typing,
      goesOn = had === kind && edits < EDITS && now - at < PAUSE_MS;
    this.#pending = goesOn ? null : snapshot();
    this.#typing = { kind, edits: goesOn ? edits + 1 : 1, at: now };
  }

  /** The text has changed: a key that changes nothing is no step. */
  edited() {
    if (!this.#pending) return;
    while (this.#undone.at(-1)?.isTyped) this.#undone.pop();
    this.#before.push({ snapshot: this.#pending, isTyped: true });
    this.#pending = null;
    const typed = this.#before.filter(({ isTyped }) => isTyped);
    if (typed.length > MOST) this.#before.splice(this.#before.indexOf(typed[0]), 1);
  }

  /** The step to take back, {snapshot, isTyped}, or null. now: the text as it is, which Redo brings back. */
  undo(now) {
    return this.#step(this.#before, this.#undone, now);
  }

  redo(now) {
    return this.#step(this.#undone, this.#before, now);
  }

  #step(from, to, now) {
    this.#typing.kind = "";
    const step = from.pop();
    if (step) to.push({ ...step, snapshot: now });
    return step ?? null;
  }
}

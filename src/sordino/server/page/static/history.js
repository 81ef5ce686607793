// What Undo and Redo bring back: the story before each continuation, and what Undo took away.

export class History {
  #before = [];
  #undone = [];

  get canUndo() {
    return this.#before.length > 0;
  }

  get canRedo() {
    return this.#undone.length > 0;
  }

  clear() {
    this.#before = [];
    this.#undone = [];
  }

  /** A continuation begins at `snapshot`. */
  begin(snapshot) {
    this.#before.push(snapshot);
    this.#undone = [];
  }

  /** The last continuation brought nothing. */
  cancel() {
    this.#before.pop();
  }

  /** The snapshot to go back to, or null. now: the story as it is, which Redo brings back with what was typed. */
  undo(now) {
    return step(this.#before, this.#undone, now);
  }

  redo(now) {
    return step(this.#undone, this.#before, now);
  }
}

function step(from, to, now) {
  if (!from.length) return null;
  to.push(now);
  return from.pop();
}

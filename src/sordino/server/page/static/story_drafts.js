// Drafts: stories, or chats, as this browser keeps them until the server has them.

import { call, local, tab } from "./dom.js";
import { newId } from "./story_fields.js";

/** An id for each load of this page. */
export const PAGE_ID = newId();
// The id of the tab's last load: after a reload its drafts are continued.
const PREVIOUS_PAGE_ID = tab.get("life");
tab.set("life", PAGE_ID);

export const pathOf = (id) => `ui/stories/${encodeURIComponent(id)}`;

export class Drafts {
  #kind;

  /** kind: "story" or "chat". */
  constructor(kind) {
    this.#kind = kind;
  }

  /** Keep a story. Returns whether there was room for it. */
  keep(story) {
    return local.set(this.#nameOf(story.id), story);
  }

  /** Remove this page's draft of a story. */
  remove(id) {
    local.remove(this.#nameOf(id));
  }

  /** Remove the drafts that all tabs have of a story. */
  removeAll(id) {
    this.#names(id).forEach(local.remove);
  }

  /** A story by its id: its draft, else the server's copy. isDraft: which. moved(): call it once this page keeps the draft.
   * Throws an Error. */
  async read(id) {
    const own = [PAGE_ID, PREVIOUS_PAGE_ID].map((pageId) => this.#nameOf(id, pageId)).find((name) => local.get(name));
    const name = own ?? (await this.#elsewhere(id));
    const draft = name && { ...local.get(name), ...(own ? {} : { after: "" }) };
    const moved = () => name !== this.#nameOf(id) && local.remove(name);
    return { story: draft || (await call(pathOf(id))), isDraft: Boolean(draft), moved };
  }

  /** Those that the server does not list, each story once. stored: the ids that it lists. */
  unsent(stored) {
    const names = this.#names().filter((name) => !stored.has(name.split(":")[1]));
    const drafts = names.map((name) => local.get(name)).filter(Boolean);
    return [...new Map(drafts.map((one) => [one.id, one])).values()];
  }

  /** The draft of another tab, which may be closed; null where the server has the same or a newer revision. */
  async #elsewhere(id) {
    const [name] = this.#names(id);
    const stored = name && (await call(pathOf(id)).catch(() => null));
    return !name || (stored && stored.revision !== local.get(name).revision) ? null : name;
  }

  #nameOf(id, pageId = PAGE_ID) {
    return `${this.#kind}:${id}:${pageId}`;
  }

  /** The names of all drafts of a story, or of all stories. */
  #names(id = "") {
    return local.names().filter((name) => name.startsWith(id ? this.#nameOf(id, "") : `${this.#kind}:`));
  }
}

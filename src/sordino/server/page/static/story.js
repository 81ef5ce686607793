// A story, or a chat: its text, what is kept in view of the model, and where it is stored.

import { $, call, download, el, kept, say, surely, tab } from "./dom.js";

// The server has it half a second after a change. What it has not got yet lies in this browser as a draft.
const SAVE_AFTER = 500;
const DRAFT_AFTER = 200;

// One for each time that this page is opened, and the tab's before that: a reload goes on with what the last one
// had not stored.
const newId = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(16).slice(2)}`;

const LIFE = newId(),
  EARLIER = tab.get("life");
tab.set("life", LIFE);

const blank = (isChat) => ({
  id: newId(),
  title: "",
  text: "",
  memory: "",
  note: "",
  chat: isChat ? [] : null,
  character: null,
  revision: 0,
  after: "",
});

/** What is open on a page, and its buttons (`ids`). show: called with what is open now; leave: before another is. */
export class Keeper {
  #timer = null;
  #drafting = null;
  #saving = null;
  #dirty = false;
  #listed = "";

  constructor(ids, { isChat, show, leave, read }) {
    this.ids = ids;
    this.isChat = isChat;
    this.show = show;
    this.leave = leave;
    this.name = isChat ? "chat" : "story";
    this.story = blank(isChat);
    $(ids.fresh).addEventListener("click", () => this.fresh());
    $(ids.list).addEventListener("change", () => this.#choose());
    $(ids.file).addEventListener("click", () =>
      download(`${this.story.title || this.name}.json`, JSON.stringify(this.story, null, 1)),
    );
    surely($(ids.forget), ids.forget, () => this.#forget());
    $(ids.theirs).addEventListener("click", () => this.#takeTheirs());
    $(ids.mine).addEventListener("click", () => {
      $(ids.conflict).hidden = true;
      this.save({ over: true });
    });
    if (ids.load)
      $(ids.load).addEventListener("change", ({ target }) => {
        this.#load(target.files[0], read);
        target.value = "";
      });
    addEventListener("pagehide", () => {
      this.#draft();
      this.save();
    });
    document.addEventListener("visibilitychange", () => document.hidden && this.save());
  }

  /** Take up where this browser stopped: the server's copy, or what it had not got yet. */
  async resume() {
    // This tab's own, which a reload keeps; in a new tab, the one that was open last anywhere.
    const id = tab.get(this.name) ?? kept.get(this.name);
    try {
      await this.#take(id);
    } catch (error) {
      if (error.status !== 404) say($(this.ids.saved), error.message, "bad");
      this.open(this.story);
    }
    this.list();
  }

  /** Begin a new one. */
  async fresh() {
    if (!(await this.#left())) return false;
    this.open(blank(this.isChat));
    this.list();
    return true;
  }

  /** Whether what is open is kept somewhere, so that another can be opened. */
  async #left() {
    this.leave();
    await this.save();
    // In this browser it is listed until the server has it.
    if (!this.#dirty || this.#draft()) return true;
    say($(this.ids.saved), "not kept: save it to a file first", "bad");
    return false;
  }

  open(story) {
    this.story = story;
    this.#dirty = false;
    $(this.ids.conflict).hidden = true;
    tab.set(this.name, story.id);
    kept.set(this.name, story.id);
    say($(this.ids.saved), "");
    this.show(story);
  }

  /** Open a story by its id: what the server has not got yet, else what it has. */
  async #take(id) {
    if (!id) return this.open(blank(this.isChat));
    const mine = [this.#draftOf(id), this.#draftOf(id, EARLIER)].find((name) => kept.get(name));
    const name = mine ?? (await this.#newer(id));
    const draft = name && { ...kept.get(name), ...(mine ? {} : { after: "" }) };
    this.open({ ...blank(this.isChat), ...(draft || (await call(this.#path(id)))) });
    if (!draft) return;
    // Begun from what the server has: it goes there. From something older: the server says so.
    this.change({});
    if (this.#draft() && name !== this.#draftOf(id)) kept.remove(name);
  }

  /** The draft of another tab, perhaps one that is gone; null where the server has it, or something newer. */
  async #newer(id) {
    const [name] = this.#drafts(id);
    const stored = name && (await call(this.#path(id)).catch(() => null));
    return !name || (stored && stored.revision !== kept.get(name).revision) ? null : name;
  }

  #draftOf(id, life = LIFE) {
    return `${this.name}:${id}:${life}`;
  }

  /** The names of all drafts of a story, or of all stories. */
  #drafts(id = "") {
    return kept.names().filter((name) => name.startsWith(id ? this.#draftOf(id, "") : `${this.name}:`));
  }

  change(values) {
    Object.assign(this.story, values);
    this.#dirty = true;
    this.#drafting ??= setTimeout(() => this.#draft(), DRAFT_AFTER);
    say($(this.ids.saved), "");
    this.#timer ??= setTimeout(() => this.save(), SAVE_AFTER);
  }

  /** Store what has changed. The server keeps the one that came first; the other is told. */
  async save({ over = false } = {}) {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#saving) await this.#saving;
    if (!this.#dirty && !over) return;
    this.#dirty = false;
    const story = this.story;
    const json = { ...story, over, writer: LIFE };
    // From now on this may be what the server has, whether or not its answer comes.
    story.after = LIFE;
    this.#saving = call(this.#path(story.id), { method: "PUT", json, keepalive: true })
      .then((stored) => {
        const isNew = story.revision === 0;
        story.revision = stored.revision;
        if (!this.#dirty) kept.remove(this.#draftOf(story.id));
        if (story !== this.story) return;
        say($(this.ids.saved), "saved");
        // All stories are looked at for that: not at every save of a long one.
        if (isNew || this.#listed !== story.id + story.title) this.list();
      })
      .catch((error) => {
        this.#dirty = true;
        const drafted = this.#draft();
        if (error.status === 409) {
          $(this.ids.conflict).hidden = false;
          return;
        }
        say(
          $(this.ids.saved),
          `${drafted ? "kept in this browser only" : "not kept, save it to a file"}: ${error.message}`,
          "bad",
        );
        this.#timer ??= setTimeout(() => this.save(), 2000);
      })
      .finally(() => {
        this.#saving = null;
      });
    await this.#saving;
  }

  async list() {
    this.#listed = this.story.id + this.story.title;
    const stored = (await call("ui/stories").catch(() => [])).filter((one) => one.is_chat === this.isChat);
    const stories = [...stored, ...this.#unsent(new Set(stored.map((one) => one.id)))];
    const dated = (one) => (one.changed ? `untitled, ${new Date(one.changed * 1000).toLocaleString()}` : "untitled");
    const named = (one) => (one.title || dated(one)) + (stored.includes(one) ? "" : " (in this browser only)");
    $(this.ids.list).replaceChildren(
      el("option", { value: "" }, stories.length ? "open ..." : "none yet"),
      ...stories.map((one) =>
        el("option", { value: one.id }, one.id === this.story.id ? `${named(one)} (open)` : named(one)),
      ),
    );
  }

  /** What the server never got: opened, it goes there. */
  #unsent(stored) {
    const drafts = this.#drafts()
      .map((name) => kept.get(name))
      .filter((one) => one && !stored.has(one.id) && one.id !== this.story.id);
    return [...new Map(drafts.map((one) => [one.id, one])).values()];
  }

  #draft() {
    clearTimeout(this.#drafting);
    this.#drafting = null;
    return this.#dirty && kept.set(this.#draftOf(this.story.id), this.story);
  }

  #path(id) {
    return `ui/stories/${encodeURIComponent(id)}`;
  }

  async #choose() {
    const list = $(this.ids.list),
      id = list.value;
    list.value = "";
    if (!id || !(await this.#left())) return;
    try {
      await this.#take(id);
    } catch (error) {
      say($(this.ids.saved), error.message, "bad");
    }
    this.list();
  }

  async #load(file, read) {
    if (!file || !(await this.#left())) return;
    try {
      this.open({ ...blank(this.isChat), ...(await read(file)) });
      this.change({});
    } catch (error) {
      say($(this.ids.saved), `${file.name}: ${error.message}`, "bad");
    }
  }

  async #takeTheirs() {
    this.leave();
    try {
      const theirs = await call(this.#path(this.story.id));
      kept.remove(this.#draftOf(this.story.id));
      this.open(theirs);
    } catch (error) {
      say($(this.ids.saved), error.message, "bad");
    }
  }

  async #forget() {
    this.leave();
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#dirty = false;
    // It would be there again.
    await this.#saving;
    this.#dirty = false;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#drafts(this.story.id).forEach(kept.remove);
    await call(this.#path(this.story.id), { method: "DELETE" }).catch(() => {});
    this.open(blank(this.isChat));
    this.list();
  }
}

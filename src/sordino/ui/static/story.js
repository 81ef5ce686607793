// A story, or a chat: its text, what is kept in view of the model, and where it is stored.

import { $, call, download, el, kept, say, surely } from "./dom.js";

// The server has it half a second after a change, this browser at once.
const SAVE_AFTER = 500;

const newId = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(16).slice(2)}`;

const blank = (isChat) => ({
  id: newId(), title: "", text: "", memory: "", note: "", chat: isChat ? [] : null, character: null, revision: 0,
});

/** What is open on a page, and its buttons: `ids` are theirs. show: called with what is open now. */
export class Keeper {
  #timer = null;
  #saving = null;
  #dirty = false;

  constructor(ids, { isChat, show, read }) {
    this.ids = ids;
    this.isChat = isChat;
    this.show = show;
    this.name = isChat ? "chat" : "story";
    this.story = blank(isChat);
    $(ids.fresh).addEventListener("click", async () => { await this.save(); this.open(blank(isChat)); });
    $(ids.list).addEventListener("change", () => this.#choose());
    $(ids.file).addEventListener("click", () => download(`${this.story.title || this.name}.json`, JSON.stringify(this.story, null, 1)));
    surely($(ids.forget), () => this.#forget());
    $(ids.theirs).addEventListener("click", async () => this.open(await call(this.#path(this.story.id))));
    $(ids.mine).addEventListener("click", () => { $(ids.conflict).hidden = true; this.save({ over: true }); });
    if (ids.load) $(ids.load).addEventListener("change", ({ target }) => { this.#load(target.files[0], read); target.value = ""; });
    addEventListener("pagehide", () => this.save());
    document.addEventListener("visibilitychange", () => document.hidden && this.save());
  }

  /** Take up where this browser stopped: the server's copy, or what it had not got yet. */
  async resume() {
    const draft = kept.get(this.name);
    if (draft?.id) {
      let stored = null;
      try {
        stored = await call(this.#path(draft.id));
      } catch (error) {
        if (error.status !== 404) say($(this.ids.saved), error.message, "bad");
      }
      // A draft that was begun from what the server has, or from what it has lost.
      const newer = draft.revision >= (stored?.revision ?? 0);
      this.story = { ...blank(this.isChat), ...(newer ? draft : stored) };
      const same = stored && ["text", "memory", "note", "title", "chat"].every((key) => JSON.stringify(stored[key]) === JSON.stringify(draft[key]));
      if (newer && !same) this.change({});
    }
    this.show(this.story);
    this.list();
  }

  open(story) {
    this.story = story;
    this.#dirty = false;
    $(this.ids.conflict).hidden = true;
    kept.set(this.name, story);
    say($(this.ids.saved), "");
    this.show(story);
  }

  change(values) {
    Object.assign(this.story, values);
    kept.set(this.name, this.story);
    this.#dirty = true;
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
    this.#saving = call(this.#path(story.id), { method: "PUT", json: { ...story, over }, keepalive: true })
      .then((stored) => {
        story.revision = stored.revision;
        kept.set(this.name, this.story);
        say($(this.ids.saved), "saved");
        return this.list();
      })
      .catch((error) => {
        this.#dirty = true;
        if (error.status === 409) {
          $(this.ids.conflict).hidden = false;
          return;
        }
        say($(this.ids.saved), `kept in this browser only: ${error.message}`, "bad");
        this.#timer ??= setTimeout(() => this.save(), 2000);
      })
      .finally(() => { this.#saving = null; });
    await this.#saving;
  }

  async list() {
    const stories = (await call("ui/stories").catch(() => [])).filter((one) => one.is_chat === this.isChat);
    const named = (one) => one.title || `untitled, ${new Date(one.changed * 1000).toLocaleString()}`;
    $(this.ids.list).replaceChildren(
      el("option", { value: "" }, stories.length ? "open ..." : "none yet"),
      ...stories.map((one) => el("option", { value: one.id }, one.id === this.story.id ? `${named(one)} (open)` : named(one))),
    );
  }

  #path(id) {
    return `ui/stories/${encodeURIComponent(id)}`;
  }

  async #choose() {
    const list = $(this.ids.list), id = list.value;
    list.value = "";
    if (!id) return;
    await this.save();
    try {
      this.open(await call(this.#path(id)));
    } catch (error) {
      say($(this.ids.saved), error.message, "bad");
    }
  }

  async #load(file, read) {
    if (!file) return;
    await this.save();
    try {
      this.open({ ...blank(this.isChat), ...(await read(file)) });
      this.change({});
    } catch (error) {
      say($(this.ids.saved), `${file.name}: ${error.message}`, "bad");
    }
  }

  async #forget() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#dirty = false;
    await call(this.#path(this.story.id), { method: "DELETE" }).catch(() => {});
    this.open(blank(this.isChat));
    this.list();
  }
}

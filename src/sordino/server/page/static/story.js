// A story or a chat: what is open, and where it is stored.

import { $, call, confirming, download, el, local, setStatus, tab } from "./dom.js";

// A change is saved on the server after half a second. Until then this browser has it as a draft.
const SAVE_AFTER = 500;
const DRAFT_AFTER = 200;

// An id for each load of this page, and the id of the tab's last load: after a reload its drafts are continued.
const newId = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(16).slice(2)}`;

const PAGE_ID = newId(),
  PREVIOUS_PAGE_ID = tab.get("life");
tab.set("life", PAGE_ID);

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

/** What is open on a page, with its buttons (`ids`). show: called with the open story; leave: before another opens. */
export class StoryStore {
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
    confirming($(ids.remove), ids.remove, () => this.#remove());
    $(ids.theirs).addEventListener("click", () => this.#openTheirs());
    $(ids.mine).addEventListener("click", () => {
      $(ids.conflict).hidden = true;
      this.save({ overwrite: true });
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

  /** Open what was open last in this browser: its draft, or the server's copy. */
  async resume() {
    // After a reload, this tab's own; in a new tab, the one that was open last anywhere.
    const id = tab.get(this.name) ?? local.get(this.name);
    try {
      await this.#openById(id);
    } catch (error) {
      if (error.status !== 404) setStatus($(this.ids.saved), error.message, "bad");
      this.open(this.story);
    }
    this.list();
  }

  /** Begin a new one. */
  async fresh() {
    if (!(await this.#leave())) return false;
    this.open(blank(this.isChat));
    this.list();
    return true;
  }

  /** Save what is open. Returns whether it is stored somewhere, so that another can be opened. */
  async #leave() {
    this.leave();
    await this.save();
    // A draft stays listed until the server has it.
    if (!this.#dirty || this.#draft()) return true;
    setStatus($(this.ids.saved), "not stored: save it to a file first", "bad");
    return false;
  }

  open(story) {
    this.story = story;
    this.#dirty = false;
    $(this.ids.conflict).hidden = true;
    tab.set(this.name, story.id);
    local.set(this.name, story.id);
    setStatus($(this.ids.saved), "");
    this.show(story);
  }

  /** Open a story by its id: its draft, else the server's copy. */
  async #openById(id) {
    if (!id) return this.open(blank(this.isChat));
    const mine = [this.#draftOf(id), this.#draftOf(id, PREVIOUS_PAGE_ID)].find((name) => local.get(name));
    const name = mine ?? (await this.#draftElsewhere(id));
    const draft = name && { ...local.get(name), ...(mine ? {} : { after: "" }) };
    this.open({ ...blank(this.isChat), ...(draft || (await call(this.#path(id)))) });
    if (!draft) return;
    // A draft of the server's revision is saved; for one of an older revision the server reports a conflict.
    this.change({});
    if (this.#draft() && name !== this.#draftOf(id)) local.remove(name);
  }

  /** The draft of another tab, which may be closed; null where the server has the same or a newer revision. */
  async #draftElsewhere(id) {
    const [name] = this.#drafts(id);
    const stored = name && (await call(this.#path(id)).catch(() => null));
    return !name || (stored && stored.revision !== local.get(name).revision) ? null : name;
  }

  #draftOf(id, pageId = PAGE_ID) {
    return `${this.name}:${id}:${pageId}`;
  }

  /** The names of all drafts of a story, or of all stories. */
  #drafts(id = "") {
    return local.names().filter((name) => name.startsWith(id ? this.#draftOf(id, "") : `${this.name}:`));
  }

  change(values) {
    Object.assign(this.story, values);
    this.#dirty = true;
    this.#drafting ??= setTimeout(() => this.#draft(), DRAFT_AFTER);
    setStatus($(this.ids.saved), "");
    this.#timer ??= setTimeout(() => this.save(), SAVE_AFTER);
  }

  /** Save changes. Of two writers the server keeps the first; the second gets a conflict. */
  async save({ overwrite = false } = {}) {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#saving) await this.#saving;
    if (!this.#dirty && !overwrite) return;
    this.#dirty = false;
    const story = this.story;
    const json = { ...story, overwrite, writer: PAGE_ID };
    // From now on the server may have this, whether or not its answer arrives.
    story.after = PAGE_ID;
    this.#saving = call(this.#path(story.id), { method: "PUT", json, keepalive: true })
      .then((stored) => {
        const isNew = story.revision === 0;
        story.revision = stored.revision;
        if (!this.#dirty) local.remove(this.#draftOf(story.id));
        if (story !== this.story) return;
        setStatus($(this.ids.saved), "saved");
        // Listing reads all stories on the server: not at every save.
        if (isNew || this.#listed !== story.id + story.title) this.list();
      })
      .catch((error) => {
        this.#dirty = true;
        const drafted = this.#draft();
        if (error.status === 409) {
          $(this.ids.conflict).hidden = false;
          return;
        }
        setStatus(
          $(this.ids.saved),
          `${drafted ? "stored in this browser only" : "not stored, save it to a file"}: ${error.message}`,
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

  /** Drafts that the server never got: once opened they are saved there. */
  #unsent(stored) {
    const drafts = this.#drafts()
      .map((name) => local.get(name))
      .filter((one) => one && !stored.has(one.id) && one.id !== this.story.id);
    return [...new Map(drafts.map((one) => [one.id, one])).values()];
  }

  #draft() {
    clearTimeout(this.#drafting);
    this.#drafting = null;
    return this.#dirty && local.set(this.#draftOf(this.story.id), this.story);
  }

  #path(id) {
    return `ui/stories/${encodeURIComponent(id)}`;
  }

  async #choose() {
    const list = $(this.ids.list),
      id = list.value;
    list.value = "";
    if (!id || !(await this.#leave())) return;
    try {
      await this.#openById(id);
    } catch (error) {
      setStatus($(this.ids.saved), error.message, "bad");
    }
    this.list();
  }

  async #load(file, read) {
    if (!file || !(await this.#leave())) return;
    try {
      this.open({ ...blank(this.isChat), ...(await read(file)) });
      this.change({});
    } catch (error) {
      setStatus($(this.ids.saved), `${file.name}: ${error.message}`, "bad");
    }
  }

  async #openTheirs() {
    this.leave();
    try {
      const theirs = await call(this.#path(this.story.id));
      local.remove(this.#draftOf(this.story.id));
      this.open(theirs);
    } catch (error) {
      setStatus($(this.ids.saved), error.message, "bad");
    }
  }

  async #remove() {
    this.leave();
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#dirty = false;
    // A save that ends later would bring it back.
    await this.#saving;
    this.#dirty = false;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#drafts(this.story.id).forEach(local.remove);
    await call(this.#path(this.story.id), { method: "DELETE" }).catch(() => {});
    this.open(blank(this.isChat));
    this.list();
  }
}

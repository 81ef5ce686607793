// A story or a chat: what is open, and where it is stored.

import { $, call, download, local, setStatus, tab } from "./dom.js";
import { live } from "./live.js";
import { Drafts, PAGE_ID, pathOf } from "./story_drafts.js";
import { blank, nameOf } from "./story_fields.js";
import { StoryList } from "./story_list.js";
import { toast } from "./toast.js";

// A change is saved on the server after half a second. Until then this browser has it as a draft. Writing a long story
// takes a moment, in which no key is answered: it is done less often.
const SAVE_AFTER = 500,
  DRAFT_AFTER = 200,
  PER_CHARACTER = 1 / 200,
  AT_MOST = 10_000;

/** What is open on a page, with its controls (`ids`). show: called with the open story; leave: before another opens;
 * read: a story from a file. */
export class StoryStore {
  #timer = null;
  #drafting = null;
  #saving = null;
  #dirty = false;
  // What a message last said of where it is instead of on the server.
  #told = "";
  // What the server and this browser have, as listed last; whether the server did not answer since.
  #stored = [];
  #isOld = false;
  #rows;
  #drafts;

  constructor(ids, { isChat, show, leave, read }) {
    const name = isChat ? "chat" : "story";
    this.#drafts = new Drafts(name);
    Object.assign(this, { ids, isChat, show, leave, read, name, story: blank(isChat) });
    $(ids.fresh).addEventListener("click", () => this.fresh());
    const doing = {
      open: (id) => this.#choose(id),
      rename: (id, title) => this.#rename(id, title),
      save: (id) => this.#export(id),
      remove: (id) => this.#remove(id),
    };
    this.#rows = new StoryList($(ids.list), doing, isChat ? "New chat" : "Untitled");
    $(ids.theirs).addEventListener("click", () => this.#openTheirs());
    $(ids.mine).addEventListener("click", () => {
      $(ids.conflict).hidden = true;
      this.save({ overwrite: true });
    });
    $(ids.load)?.addEventListener("change", ({ target }) => {
      this.load(target.files[0]);
      target.value = "";
    });
    live.addEventListener("connection", () => live.connected && this.#isOld && this.list());
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
      this.open(this.story);
      if (error.status !== 404) {
        // It may be there at the next load.
        tab.set(this.name, id);
        toast(error.message, "bad");
      }
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
    toast(`This ${this.name} is not saved: export it to a file first.`, "bad");
    return false;
  }

  open(story) {
    // What was typed while this one was fetched.
    this.#draft();
    this.story = story;
    this.#dirty = false;
    $(this.ids.conflict).hidden = true;
    tab.set(this.name, story.id);
    local.set(this.name, story.id);
    setStatus($(this.ids.saved), "");
    this.show(story);
    this.#draw();
  }

  /** Open a story by its id: its draft, else the server's copy. */
  async #openById(id) {
    if (!id) return this.open(blank(this.isChat));
    const { story, isDraft, moved } = await this.#drafts.read(id);
    this.open({ ...blank(this.isChat), ...story });
    if (!isDraft) return;
    // A draft of the server's revision is saved; for one of an older revision the server reports a conflict.
    this.change({});
    if (this.#draft()) moved();
  }

  change(values) {
    const named = nameOf(this.story);
    Object.assign(this.story, values);
    this.#dirty = true;
    const more = Math.min(AT_MOST, PER_CHARACTER * this.story.text.length);
    this.#drafting ??= setTimeout(() => this.#draft(), DRAFT_AFTER + more);
    this.#timer ??= setTimeout(() => this.save(), SAVE_AFTER + more);
    if ($(this.ids.saved).textContent) setStatus($(this.ids.saved), "");
    if (nameOf(this.story) !== named) this.#draw();
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
    this.#saving = call(pathOf(story.id), { method: "PUT", json, keepalive: true })
      .then((stored) => {
        this.#told = "";
        const isNew = story.revision === 0;
        story.revision = stored.revision;
        // What was changed meanwhile is saved next.
        if (!this.#dirty) this.#drafts.remove(story.id);
        if (story !== this.story) return;
        if (!this.#dirty) setStatus($(this.ids.saved), "saved");
        // Listing reads all stories on the server: not at every save.
        const listed = this.#stored.find((one) => one.id === story.id);
        if (isNew || !listed) return this.list();
        Object.assign(listed, { title: story.title, changed: stored.changed });
        this.#draw();
      })
      .catch((error) => {
        this.#dirty = true;
        const drafted = this.#draft();
        if (error.status === 409) {
          $(this.ids.conflict).hidden = false;
          return;
        }
        const where = drafted ? "Saved in this browser only" : "Not saved, export it to a file";
        if (this.#told !== where) toast(`${where}: ${error.message}`, drafted ? "" : "bad");
        this.#told = where;
        setStatus($(this.ids.saved), drafted ? "in this browser only" : "not saved", "bad");
        this.#timer ??= setTimeout(() => this.save(), 2000);
      })
      .finally(() => {
        this.#saving = null;
      });
    await this.#saving;
  }

  async list() {
    try {
      this.#stored = (await call("ui/stories")).filter((one) => one.is_chat === this.isChat);
      this.#isOld = false;
    } catch {
      // Those of before stay in view.
      this.#isOld = true;
    }
    this.#draw();
  }

  #draw() {
    const { id, title, text, chat } = this.story,
      ids = new Set(this.#stored.map((one) => one.id));
    const unsent = this.#drafts.unsent(new Set([...ids, id])).map((one) => ({ ...one, isUnsent: true }));
    // The open one is listed from its first word on.
    const fresh = ids.has(id) ? [] : [{ id }];
    const open = { title, text, chat, begins: null, isOpen: true };
    this.#rows.draw([...fresh, ...this.#stored, ...unsent].map((one) => (one.id === id ? { ...one, ...open } : one)));
  }

  #draft() {
    clearTimeout(this.#drafting);
    this.#drafting = null;
    return this.#dirty && this.#drafts.keep(this.story);
  }

  async #choose(id) {
    if (id === this.story.id || !(await this.#leave())) return;
    try {
      await this.#openById(id);
    } catch (error) {
      toast(error.message, "bad");
    }
    this.list();
  }

  async #rename(id, title) {
    await this.#choose(id);
    if (this.story.id !== id) return;
    this.open({ ...this.story, title });
    this.change({});
  }

  async #export(id) {
    try {
      const story = id === this.story.id ? this.story : (await this.#drafts.read(id)).story;
      const content = new Blob([JSON.stringify(story, null, 1)], { type: "application/json" });
      download(`${nameOf(story) || this.name}.json`, content);
    } catch (error) {
      toast(error.message, "bad");
    }
  }

  /** Open a story from a file. */
  async load(file) {
    if (!file || !(await this.#leave())) return;
    try {
      this.open({ ...blank(this.isChat), ...(await this.read(file)) });
      this.change({});
    } catch (error) {
      toast(`${file.name}: ${error.message}`, "bad");
    }
  }

  async #openTheirs() {
    this.leave();
    this.#settle();
    try {
      const theirs = await call(pathOf(this.story.id));
      this.#drafts.remove(this.story.id);
      this.open(theirs);
    } catch (error) {
      toast(error.message, "bad");
    }
  }

  async #remove(id) {
    const isOpen = id === this.story.id,
      hadChanges = isOpen && this.#dirty;
    if (isOpen) {
      this.leave();
      this.#settle();
      // A save that ends later would bring it back.
      await this.#saving;
      this.#settle();
    }
    try {
      await call(pathOf(id), { method: "DELETE" });
      this.#drafts.removeAll(id);
      if (isOpen) this.open(blank(this.isChat));
    } catch (error) {
      toast(`Not deleted: ${error.message}`, "bad");
      if (hadChanges) this.change({});
    }
    this.list();
  }

  /** Nothing of it is to be saved any more. */
  #settle() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#dirty = false;
  }
}

// A conversation, for models that have a chat template; with a character from a card, or without.

import { $, call, debounce, el, local, setStatus, shown } from "./dom.js";
import { choice } from "./status.js";
import { live } from "./live.js";
import { measureContext, write } from "./generation.js";
import { StoryStore } from "./story.js";

let store;
// The running answer: {stop}.
let running = null;

const turns = () => store.story.chat;
const character = () => store.story.character ?? { name: "", system: "" };

export async function startChat() {
  store = new StoryStore(
    {
      fresh: "chat-new",
      list: "chats",
      file: "chat-save",
      remove: "chat-forget",
      saved: "chat-saved",
      conflict: "chat-conflict",
      theirs: "chat-take-theirs",
      mine: "chat-keep-mine",
    },
    { isChat: true, show, leave },
  );
  $("card").addEventListener("change", ({ target }) => {
    loadCard(target.files[0]);
    target.value = "";
  });
  for (const id of ["who-name", "who-system"]) {
    $(id).addEventListener("input", () => {
      store.change({ character: { name: $("who-name").value, system: $("who-system").value } });
      draw();
      buttons();
    });
  }
  $("who-distil").addEventListener("click", distil);
  $("say").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("say-text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  $("chat-stop").addEventListener("click", () => running?.stop());
  $("chat-retry").addEventListener("click", retry);
  document.addEventListener("page", () => {
    if (shown("chat")) {
      restoreChoice();
      measure();
    }
  });
  choice.addEventListener("change", () => {
    buttons();
    measure();
  });
  choice.addEventListener("chosen", () => {
    if (shown("chat") && character().name) local.set(`character:${character().name}`, choice.chosen);
  });
  live.addEventListener("connection", buttons);
  await store.resume();
}

/** Choose the soft prompt that was last used with this character. */
function restoreChoice() {
  const chosen = character().name && local.get(`character:${character().name}`);
  if (chosen && chosen !== choice.chosen) choice.choose(chosen);
}

/** A chat that "Save to a file" wrote: title, character and turns. null for other files. */
async function savedChat(file) {
  const saved = file.name.endsWith(".json")
    ? await file
        .text()
        .then(JSON.parse)
        .catch(() => null)
    : null;
  if (!Array.isArray(saved?.chat)) return null;
  const turns = saved.chat.filter(
    (one) => ["user", "assistant"].includes(one?.role) && typeof one.content === "string",
  );
  const { name = "", system = "" } = saved.character ?? {};
  return {
    title: String(saved.title ?? "").slice(0, 300),
    character: { name: String(name), system: String(system) },
    chat: turns.map(({ role, content }) => ({ role, content })),
  };
}

async function loadCard(file) {
  if (!file) return;
  const form = new FormData();
  form.append("file", file);
  try {
    const saved = await savedChat(file);
    if (saved) {
      if (!(await store.fresh())) return;
      store.change(saved);
      show(store.story);
      return;
    }
    const card = await call("ui/cards", { method: "POST", form });
    if (!(await store.fresh())) return;
    store.change({
      title: card.name,
      character: { name: card.name, system: card.text },
      chat: card.first_message ? [{ role: "assistant", content: card.first_message }] : [],
    });
    show(store.story);
  } catch (error) {
    setStatus($("chat-saved"), `${file.name}: ${error.message}`, "bad");
  }
}

/** Queue a run that makes the instructions a soft prompt; the page Train shows it. */
async function distil() {
  try {
    await call("ui/distil", { method: "POST", json: { name: character().name, text: character().system } });
    setStatus($("who-status"), "Its run is on the page Train. Afterwards leave the instructions empty.", "good");
  } catch (error) {
    setStatus($("who-status"), error.message, "bad");
  }
}

/** Stop answering: the answer belongs to the chat that is closed. An empty answer is removed. */
function leave() {
  applyEdit?.();
  if (running && !turns().at(-1).content) store.change({ chat: turns().slice(0, -1) });
  running?.stop();
  running = null;
  buttons();
}

function show(story) {
  running?.stop();
  running = null;
  story.chat ??= [];
  $("who-name").value = character().name;
  $("who-system").value = character().system;
  if (shown("chat")) restoreChoice();
  draw();
  buttons();
  measure();
}

function draw() {
  applyEdit = null;
  $("who-summary").textContent = character().name ? `Who answers: ${character().name}` : "Who answers";
  $("turns").replaceChildren(...turns().map(turn));
  $("turns").scrollTop = $("turns").scrollHeight;
}

function turn(one, at) {
  const body = el("p", {}, one.content);
  const edit = el("button", { type: "button", onclick: () => editTurn(at) }, "Edit");
  const cut = el(
    "button",
    {
      type: "button",
      onclick: () => {
        if (!running) {
          applyEdit?.();
          store.change({ chat: turns().slice(0, at) });
          draw();
          buttons();
        }
      },
    },
    "Delete from here",
  );
  return el(
    "article",
    { class: "turn", dataset: { role: one.role } },
    el(
      "header",
      {},
      el("b", {}, one.role === "user" ? "You" : character().name || "Model"),
      el("span", {}, edit, " ", cut),
    ),
    body,
  );
}

// Applies the edit that is open.
let applyEdit = null;

function editTurn(at) {
  if (running) return;
  applyEdit?.();
  const field = el("textarea", { rows: 4, value: turns()[at].content, ariaLabel: "This turn" });
  applyEdit = () => {
    turns()[at].content = field.value;
    store.change({});
    draw();
  };
  const done = el("button", { type: "button", class: "main", onclick: () => applyEdit() }, "Done");
  $("turns").children[at].replaceChildren(field, done);
  field.style.width = "100%";
  field.focus();
}

function send() {
  applyEdit?.();
  const text = $("say-text").value.trim();
  if (running || !ready() || (!text && turns().at(-1)?.role !== "user")) return;
  if (text) store.change({ chat: [...turns(), { role: "user", content: text }] });
  $("say-text").value = "";
  answer();
}

function retry() {
  applyEdit?.();
  if (running || turns().at(-1)?.role !== "assistant") return;
  store.change({ chat: turns().slice(0, -1) });
  answer();
}

const messages = () => [...(character().system ? [{ role: "system", content: character().system }] : []), ...turns()];

function answer() {
  setStatus($("chat-status"), "");
  const chat = messages();
  const reply = { role: "assistant", content: "" };
  store.change({ chat: [...turns(), reply] });
  draw();
  const body = $("turns").lastElementChild.querySelector("p");
  const ended = (text = "", kind = "") => {
    running = null;
    if (!reply.content) store.change({ chat: turns().slice(0, -1) });
    setStatus($("chat-status"), text, kind);
    draw();
    buttons();
    measure();
  };
  const handlers = {
    text: ({ text }) => {
      const log = $("turns"),
        tail = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      reply.content += text;
      body.append(text);
      store.change({});
      if (tail) log.scrollTop = log.scrollHeight;
    },
    done: () => ended(),
    error: ({ message }) => ended(message, "bad"),
    lost: () => ended("The server stopped while it wrote. Its text so far is here; Retry when it is back.", "bad"),
  };
  const mine = (running = {});
  mine.stop = write({ chat }, (message) => running === mine && handlers[message.is]?.(message));
  buttons();
}

const ready = () => live.connected && Boolean(live.state?.model?.chat);

function buttons() {
  $("chat-go").disabled = Boolean(running) || !ready();
  $("chat-stop").disabled = !running;
  $("who-distil").disabled = !character().system.trim();
  $("chat-retry").disabled = Boolean(running) || turns().at(-1)?.role !== "assistant";
  if (live.state?.model && !live.state.model.chat)
    setStatus($("chat-status"), "This model has no chat template: write with it on the page Write.", "bad");
}

const measure = debounce(() => {
  if (!ready() || !shown("chat") || !turns().length) return;
  measureContext({ chat: messages() }, $("chat-meter"), (dropped) =>
    [...$("turns").children].forEach((one, at) => {
      if (at < dropped) one.dataset.dropped = "yes";
      else delete one.dataset.dropped;
    }),
  );
}, 250);

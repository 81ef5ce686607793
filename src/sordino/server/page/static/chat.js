// A conversation, for models that have a chat template; with a character from a card, or without.

import { $, call, el, kept, later, say, shown } from "./dom.js";
import { choice } from "./status.js";
import { live } from "./live.js";
import { weights } from "./mixing.js";
import { settings } from "./settings.js";
import { Keeper } from "./story.js";

let keeper;
// The turn that is being said: {stop}.
let running = null;

const turns = () => keeper.story.chat;
const character = () => keeper.story.character ?? { name: "", system: "" };

export async function startChat() {
  keeper = new Keeper(
    {
      fresh: "chat-new",
      list: "chats",
      file: "chat-save",
      forget: "chat-forget",
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
      keeper.change({ character: { name: $("who-name").value, system: $("who-system").value } });
      draw();
    });
  }
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
      recall();
      measure();
    }
  });
  choice.addEventListener("change", () => {
    buttons();
    measure();
  });
  choice.addEventListener("chosen", () => {
    if (shown("chat") && character().name) kept.set(`character:${character().name}`, choice.said);
  });
  live.addEventListener("connection", buttons);
  await keeper.resume();
}

/** A character's own soft prompt, as it was chosen when this chat's page was last used with it. */
function recall() {
  const said = character().name && kept.get(`character:${character().name}`);
  if (said && said !== choice.said) choice.choose(said);
}

/** What "Save to a file" wrote, if it is that: its title, who answers, and the turns. */
async function savedChat(file) {
  const said = file.name.endsWith(".json")
    ? await file
        .text()
        .then(JSON.parse)
        .catch(() => null)
    : null;
  if (!Array.isArray(said?.chat)) return null;
  const turns = said.chat.filter(
    (one) => ["user", "assistant"].includes(one?.role) && typeof one.content === "string",
  );
  const { name = "", system = "" } = said.character ?? {};
  return {
    title: String(said.title ?? "").slice(0, 300),
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
      if (!(await keeper.fresh())) return;
      keeper.change(saved);
      show(keeper.story);
      return;
    }
    const card = await call("ui/cards", { method: "POST", form });
    const about = [
      card.system,
      card.description,
      card.personality && `Personality: ${card.personality}`,
      card.scenario && `Scenario: ${card.scenario}`,
      card.examples && `Examples of how ${card.name} talks:\n${card.examples}`,
      card.after,
    ];
    const system = [`You are ${card.name}.`, ...about].filter(Boolean).join("\n\n");
    if (!(await keeper.fresh())) return;
    keeper.change({
      title: card.name,
      character: { name: card.name, system },
      chat: card.first_message ? [{ role: "assistant", content: card.first_message }] : [],
    });
    show(keeper.story);
  } catch (error) {
    say($("chat-saved"), `${file.name}: ${error.message}`, "bad");
  }
}

/** What is being said belongs to the chat that is left; where nothing was said yet, there is no turn. */
function leave() {
  edited?.();
  if (running && !turns().at(-1).content) keeper.change({ chat: turns().slice(0, -1) });
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
  if (shown("chat")) recall();
  draw();
  buttons();
  measure();
}

function draw() {
  edited = null;
  $("who-says").textContent = character().name ? `Who answers: ${character().name}` : "Who answers";
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
          edited?.();
          keeper.change({ chat: turns().slice(0, at) });
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

// Keeps what is being edited.
let edited = null;

function editTurn(at) {
  if (running) return;
  edited?.();
  const field = el("textarea", { rows: 4, value: turns()[at].content, ariaLabel: "This turn" });
  edited = () => {
    turns()[at].content = field.value;
    keeper.change({});
    draw();
  };
  const done = el("button", { type: "button", class: "main", onclick: () => edited() }, "Done");
  $("turns").children[at].replaceChildren(field, done);
  field.style.width = "100%";
  field.focus();
}

function send() {
  edited?.();
  const text = $("say-text").value.trim();
  if (running || !ready() || (!text && turns().at(-1)?.role !== "user")) return;
  if (text) keeper.change({ chat: [...turns(), { role: "user", content: text }] });
  $("say-text").value = "";
  answer();
}

function retry() {
  edited?.();
  if (running || turns().at(-1)?.role !== "assistant") return;
  keeper.change({ chat: turns().slice(0, -1) });
  answer();
}

const messages = () => [...(character().system ? [{ role: "system", content: character().system }] : []), ...turns()];

function answer() {
  say($("chat-told"), "");
  const asked = messages();
  const said = { role: "assistant", content: "" };
  keeper.change({ chat: [...turns(), said] });
  draw();
  const body = $("turns").lastElementChild.querySelector("p");
  const ended = (told = "", kind = "") => {
    running = null;
    if (!said.content) keeper.change({ chat: turns().slice(0, -1) });
    say($("chat-told"), told, kind);
    draw();
    buttons();
    measure();
  };
  const hear = {
    text: ({ text }) => {
      const log = $("turns"),
        tail = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      said.content += text;
      body.append(text);
      keeper.change({});
      if (tail) log.scrollTop = log.scrollHeight;
    },
    done: () => ended(),
    error: ({ message }) => ended(message, "bad"),
    lost: () => ended("The server stopped while it wrote. What it said is here; Retry when it is back.", "bad"),
  };
  const mine = (running = {});
  mine.stop = live.ask(
    { do: "write", text: { chat: asked }, soft_prompts: [choice.name], weights: weights(), settings: settings() },
    (told) => running === mine && hear[told.is]?.(told),
  );
  buttons();
}

const ready = () => live.connected && Boolean(live.state?.model?.chat);

function buttons() {
  $("chat-go").disabled = Boolean(running) || !ready();
  $("chat-stop").disabled = !running;
  $("chat-retry").disabled = Boolean(running) || turns().at(-1)?.role !== "assistant";
  if (live.state?.model && !live.state.model.chat)
    say($("chat-told"), "This model has no chat template: write with it on the page Write.", "bad");
}

const measure = later(() => {
  if (!ready() || !shown("chat") || !turns().length) return;
  live.ask(
    { do: "measure", text: { chat: messages() }, soft_prompt: choice.name, max_tokens: settings().max_tokens },
    (said) => {
      if (said.is === "measured") {
        say(
          $("chat-meter"),
          `${said.used}${said.soft ? ` + ${said.soft} soft` : ""} + ${said.room} new of ${said.total} tokens`,
        );
        [...$("turns").children].forEach((one, at) => {
          if (at < said.dropped) one.dataset.dropped = "yes";
          else delete one.dataset.dropped;
        });
      } else if (said.is === "error") say($("chat-meter"), said.message, "bad");
    },
  );
}, 250);

// A conversation, for models that have a chat template; with a character from a card, or without.

import { aboutLore, characterOf, chatOf, distil, messagesOf, NOBODY, prose, USER } from "./character.js";
import { answerTokens, startComposer } from "./composer.js";
import { $, debounce, el, fill, local, setStatus, shown, STOPPED } from "./dom.js";
import { folding, NARROW } from "./drawer.js";
import { dropZone } from "./drop.js";
import { openOrAdd } from "./dropped.js";
import { clearMeter, measureContext, write } from "./generation.js";
import { live } from "./live.js";
import { isPair } from "./output.js";
import { choice } from "./status.js";
import { StoryStore } from "./story.js";
import { toast } from "./toast.js";
import { answersOf, picture, turnElement } from "./turns.js";
import { waitingIn } from "./waiting.js";

let store;
// Shows the list of chats, or folds it away.
let fold = () => {};
// The running answer: {stop}.
let running = null;
// Applies the edit that is open.
let applyEdit = null;

const turns = () => store.story.chat;
const character = () => store.story.character ?? NOBODY;

export async function startChat() {
  store = new StoryStore(
    {
      fresh: "chat-new",
      list: "chats",
      saved: "chat-saved",
      conflict: "chat-conflict",
      theirs: "chat-take-theirs",
      mine: "chat-keep-mine",
    },
    { isChat: true, show, leave },
  );
  fold = folding($("chats-side"), $("chats-open"), { name: "chats", open: true });
  folding($("who"), $("who-open"), { name: "who" });
  const composer = startComposer({ send, stop: () => running?.stop(), changed: measure });
  for (const id of ["card", "card-too"])
    $(id).addEventListener("change", ({ target }) => {
      loadCard(target.files[0]);
      target.value = "";
    });
  dropZone($("chat"), (files) =>
    openOrAdd(files, /\.(json|png)$/i, loadCard, $("say").hidden ? null : composer.insert),
  );
  for (const id of ["who-name", "who-system"])
    $(id).addEventListener("input", () => {
      applyEdit?.();
      store.change({ character: { ...character(), name: $("who-name").value, system: $("who-system").value } });
      draw();
      measure();
    });
  $("who-user").placeholder = USER;
  $("who-user").value = local.get("user-name", "");
  $("who-user").addEventListener("input", ({ target }) => {
    applyEdit?.();
    local.set("user-name", target.value.trim());
    draw();
  });
  $("who-distil").addEventListener("click", () => distil(character()));
  document.addEventListener("page", () => {
    if (!shown("chat")) return;
    restoreChoice();
    measure();
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
  if (chosen && chosen !== choice.chosen && (chosen.startsWith("/") || choice.prompt(chosen))) choice.choose(chosen);
}

async function loadCard(file) {
  if (!file) return;
  try {
    const opened = await chatOf(file);
    if (!(await store.fresh())) return;
    store.change(opened);
    show(store.story);
  } catch (error) {
    toast(`${file.name}: ${error.message}`, "bad");
  }
}

/** Stop answering: the answer belongs to the chat that is closed. */
function leave() {
  applyEdit?.();
  if (running) settle();
  running?.stop();
  running = null;
  buttons();
}

/** The last turn is answered: with what came, else as it was before, else not at all. */
function settle() {
  const reply = turns().at(-1);
  const swipes = [...new Set([...(reply.swipes ?? []), reply.content])].filter(Boolean);
  reply.content ||= swipes.at(-1) ?? "";
  if (swipes.length > 1) reply.swipes = swipes;
  else delete reply.swipes;
  store.change(reply.content ? {} : { chat: turns().slice(0, -1) });
}

function show(story) {
  running?.stop();
  running = null;
  story.chat ??= [];
  if (story.character) story.character = characterOf(story.character);
  $("who-name").value = character().name;
  $("who-system").value = character().system;
  for (const id of ["who-status", "chat-status"]) setStatus($(id), "");
  if (shown("chat")) restoreChoice();
  if (NARROW.matches) fold(false);
  clearMeter($("chat-meter"));
  draw();
  measure();
}

function draw() {
  applyEdit = null;
  const { name, avatar } = character();
  fill($("chat-with"), picture(avatar, name || "Model"), el("b", {}, name || "Model"));
  fill($("who-picture"), picture(avatar, name || "Model"));
  $("who-lore").textContent = aboutLore(character(), turns());
  fill(
    $("turns"),
    ...turns().map((one, at) =>
      turnElement(one, at, {
        character: character(),
        doing: { edit, cut, retry, swipe },
        isLast: at === turns().length - 1,
        isBusy: Boolean(running),
      }),
    ),
  );
  $("turns").scrollTop = $("turns").scrollHeight;
  buttons();
}

function cut(at) {
  if (running) return;
  applyEdit?.();
  store.change({ chat: turns().slice(0, at) });
  draw();
  measure();
}

function edit(at) {
  if (running) return;
  applyEdit?.();
  const one = turns()[at];
  const field = el("textarea", { rows: 4, value: one.content, ariaLabel: "This turn" });
  applyEdit = () => {
    one.swipes = one.swipes?.map((text) => (text === one.content ? field.value : text));
    one.content = field.value;
    store.change({});
    draw();
  };
  const ended = (end) => () => {
    end();
    $("turns").children[at]?.querySelector("header button").focus();
  };
  const done = el("button", { type: "button", class: "main", onclick: ended(() => applyEdit()) }, "Done");
  const cancel = el("button", { type: "button", onclick: ended(draw) }, "Cancel");
  fill($("turns").children[at], el("div", {}, field, el("div", { class: "bar" }, done, cancel)));
  field.focus();
}

/** Another of the answers, or greetings, of the last turn. */
function swipe(step) {
  const one = turns().at(-1),
    answers = answersOf(one);
  one.content = answers[answers.indexOf(one.content) + step] ?? one.content;
  store.change({});
  draw();
  measure();
  // The pressed button is drawn anew; at the last answer it is disabled.
  const [previous, next] = $("turns").lastElementChild.querySelectorAll(".swipes button");
  const [same, other] = step < 0 ? [previous, next] : [next, previous];
  (same.disabled ? other : same).focus();
}

function send() {
  applyEdit?.();
  const text = $("say-text").value.trim();
  if (running || !ready() || (!text && turns().at(-1)?.role !== "user")) return;
  if (text) store.change({ chat: [...turns(), { role: "user", content: text }] });
  $("say-text").value = "";
  answer([]);
}

/** Another answer, beside those that are there. */
function retry() {
  applyEdit?.();
  const last = turns().at(-1);
  if (running || last?.role !== "assistant" || turns().length < 2) return;
  store.change({ chat: turns().slice(0, -1) });
  answer(last.swipes ?? [last.content]);
  $("chat-stop").focus();
}

/** before: the answers that were there. */
function answer(before) {
  setStatus($("chat-status"), "");
  const chat = messagesOf(character(), turns());
  const reply = { role: "assistant", content: "", swipes: before };
  const mine = (running = {});
  store.change({ chat: [...turns(), reply] });
  draw();
  // Looked up each time: a new name redraws the turns.
  const body = () => $("turns").lastElementChild.querySelector("p");
  const mark = el("span", { class: "soft" });
  body().append(mark);
  const begun = waitingIn(mark, "Reading the conversation ...");
  const ended = (text = "", kind = "") => {
    const hadFocus = document.activeElement === $("chat-stop");
    begun();
    running = null;
    settle();
    setStatus($("chat-status"), text, kind);
    draw();
    measure();
    // Stop is gone: Retry is where it was pressed.
    if (hadFocus) $("turns").querySelector(".swipes > button:last-child")?.focus();
  };
  const handlers = {
    text: ({ text }) => {
      const log = $("turns"),
        tail = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      begun();
      reply.content += text;
      body().replaceChildren(...prose(reply.content));
      store.change({});
      if (tail) log.scrollTop = log.scrollHeight;
    },
    done: () => ended(),
    error: ({ message }) => ended(message, "bad"),
    lost: () => ended(`${STOPPED} The text so far is kept. Retry when the server is back.`, "bad"),
  };
  const onMessage = (message) => running === mine && handlers[message.is]?.(message);
  mine.stop = write({ chat }, onMessage, { max_tokens: answerTokens() });
}

const ready = () => live.connected && Boolean(live.state?.model?.chat);

const NO_TEMPLATE = "This model has no chat template. Use it under Write.";

function buttons() {
  $("chat-go").disabled = Boolean(running) || !ready();
  $("chat-go").hidden = Boolean(running);
  $("chat-stop").hidden = !running;
  // No distillation with an encoder-decoder.
  $("who-distil").hidden = isPair() || !character().system.trim();
  const cannot = Boolean(live.state?.model && !live.state.model.chat),
    isEmpty = !turns().length;
  $("chat-empty").hidden = cannot || !isEmpty;
  $("chat-cannot").hidden = !cannot || !isEmpty;
  $("chat-pair").hidden = !isPair();
  $("say").hidden = $("say-foot").hidden = cannot;
  if (cannot && !isEmpty) setStatus($("chat-status"), NO_TEMPLATE, "bad");
  else if ($("chat-status").textContent === NO_TEMPLATE) setStatus($("chat-status"), "");
}

const measure = debounce(() => {
  if (!ready() || !shown("chat")) return;
  if (!turns().length) return clearMeter($("chat-meter"));
  const shade = (dropped) =>
    [...$("turns").children].forEach((one, at) => {
      if (at < dropped) one.dataset.dropped = "yes";
      else delete one.dataset.dropped;
    });
  measureContext({ chat: messagesOf(character(), turns()) }, $("chat-meter"), shade, answerTokens());
}, 250);

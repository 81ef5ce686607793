// Who answers in a chat: a character with its texts, lorebook and picture; the names in place of {{char}} and {{user}}.

import { $, call, local, setStatus } from "./dom.js";
import { toast } from "./toast.js";
import { waiting } from "./waiting.js";

// The user, where no name is set.
export const USER = "User";
const PLACEHOLDER = /\{\{(char|user)\}\}|<(bot|user)>/gi;
// A text with names in place of its placeholders may be far longer than its file; beyond this it stays as it is.
const MOST_FILLED = 1_000_000;
// Keywords of a lorebook are looked for in the last turns, and what they call for has this much room, in characters.
const SCANNED = 4;
const MOST_LORE = 6000;
// A picture's longer side, in pixels.
const SIDE = 256;

export const NOBODY = { name: "", system: "", avatar: "", greetings: [], lore: { entries: [], patterns: 0 } };

export const userName = () => local.get("user-name", "") || USER;

/** A text with its placeholders for the two speakers filled in. */
export function filled(text, { name }) {
  const names = { char: name || "Assistant", user: userName() };
  names.bot = names.char;
  const named = (_, one, other) => names[(one ?? other).toLowerCase()];
  const count = text.match(PLACEHOLDER)?.length ?? 0;
  const longest = Math.max(names.char.length, names.user.length);
  return text.length + count * longest > MOST_FILLED ? text : text.replace(PLACEHOLDER, named);
}

/** A text of `turns` with *actions* in italics and **stress** in bold, as elements. */
export const prose = (text) =>
  text.split(/(\*\*(?=\S)[^*\n]*[^\s*]\*\*|\*(?=\S)[^*\n]*[^\s*]\*)/).map((part, at) => {
    if (at % 2 === 0) return part;
    const strong = part.startsWith("**");
    const made = document.createElement(strong ? "strong" : "em");
    made.textContent = strong ? part.slice(2, -2) : part.slice(1, -1);
    return made;
  });

/** The entries of a lorebook that the last turns call for, in order, as far as there is room. turns: their texts. */
function calledFor({ entries }, turns) {
  const recent = turns.slice(-SCANNED).join("\n");
  const wanted = entries
    .filter((one) => one.constant || occurs(one.keys, one, recent))
    .filter((one) => one.constant || !one.secondary_keys.length || occurs(one.secondary_keys, one, recent))
    .sort((one, other) => one.order - other.order);
  let room = MOST_LORE;
  return wanted.filter(({ content }) => (room -= content.length) >= 0);
}

/** Whether one of the words is in a text, as a whole word. */
const occurs = (keys, { case_sensitive }, text) =>
  keys.some((key) =>
    new RegExp(
      `(?<![\\p{L}\\p{N}])${key.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")}(?![\\p{L}\\p{N}])`,
      case_sensitive ? "u" : "iu",
    ).test(text),
  );

/** How a character's lorebook is used, in sentences; "" where there is none. */
export function aboutLore(character, turns) {
  const { entries, patterns } = character.lore;
  if (!entries.length) return "";
  const used = calledFor(character.lore, turns.map((one) => filled(one.content, character))).length;
  const left =
    patterns === 1
      ? " One is left out: its key is a pattern."
      : patterns
        ? ` ${patterns} are left out: their keys are patterns.`
        : "";
  return (
    `Lorebook: ${entries.length} ${entries.length === 1 ? "entry" : "entries"}, used when the last four turns name a ` +
    `keyword; in use now: ${used}.${left}`
  );
}

/** What the model gets: who answers, what its lorebook says of the last turns, and the turns. */
export function messagesOf(character, turns) {
  const said = turns.map(({ role, content }) => ({ role, content: filled(content, character) }));
  const lore = calledFor(character.lore, said.map((one) => one.content));
  const system = [character.system, ...lore.map((one) => one.content)].filter((text) => text.trim()).join("\n\n");
  return [...(system ? [{ role: "system", content: filled(system, character) }] : []), ...said];
}

/** The picture of a card, small, as a data: address; "" for a card without. */
async function avatarOf(file) {
  if (!/\.png$/i.test(file.name)) return "";
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, SIDE / Math.max(picture.width, picture.height));
    const scaled = (side) => Math.max(1, Math.round(side * scale));
    const canvas = document.createElement("canvas");
    canvas.width = scaled(picture.width);
    canvas.height = scaled(picture.height);
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.85);
  } catch {
    // Pixels that no browser reads; the card's text may be whole.
    return "";
  }
}

const texts = (value) => (Array.isArray(value) ? value.filter((one) => typeof one === "string") : []);
const text = (value) => (typeof value === "string" ? value : "");

/** A character from a file or a story, of whichever version. */
export function characterOf(value) {
  const entries = Array.isArray(value?.lore?.entries) ? value.lore.entries : [];
  return {
    name: text(value?.name),
    system: text(value?.system),
    avatar: /^data:image\/(jpeg|png|webp);base64,/.test(value?.avatar) ? value.avatar : "",
    greetings: texts(value?.greetings),
    lore: {
      entries: entries
        .filter((one) => typeof one?.content === "string")
        .map((one) => ({
          content: one.content,
          keys: texts(one.keys),
          secondary_keys: texts(one.secondary_keys),
          constant: one.constant === true,
          case_sensitive: one.case_sensitive === true,
          order: Number.isFinite(one.order) ? one.order : 0,
        })),
      patterns: Number(value?.lore?.patterns) || 0,
    },
  };
}

/** The turns of a chat in a file: {role, content, swipes}; swipes: the answers to choose from, if there are several. */
const turnsOf = (value) =>
  (Array.isArray(value) ? value : [])
    .filter((one) => ["user", "assistant"].includes(one?.role) && typeof one.content === "string")
    .map(({ role, content, swipes }) => {
      const others = texts(swipes);
      return others.includes(content) ? { role, content, swipes: others } : { role, content };
    });

/** The chat in a file: an exported one, or one with the character of a card, who greets. Throws an Error. */
export async function chatOf(file) {
  const saved = /\.json$/i.test(file.name)
    ? await file
        .text()
        .then(JSON.parse)
        .catch(() => null)
    : null;
  if (Array.isArray(saved?.chat)) {
    const title = String(saved.title ?? "").slice(0, 300);
    return { title, character: characterOf(saved.character), chat: turnsOf(saved.chat) };
  }
  const form = new FormData();
  form.append("file", file);
  const { name, text: system, greetings, lore } = await call("ui/cards", { method: "POST", form });
  const swipes = greetings.length > 1 ? { swipes: greetings } : {};
  return {
    title: name,
    character: { name, system, avatar: await avatarOf(file), greetings, lore },
    chat: greetings.length ? [{ role: "assistant", content: greetings[0], ...swipes }] : [],
  };
}

/** Queue a run that turns the instructions into a soft prompt; Train shows it. */
export async function distil(character) {
  const { name, system } = character;
  try {
    const run = await waiting($("who-distil"), "Queueing ...", () =>
      call("ui/distil", { method: "POST", json: { name, text: filled(system, character) } }),
    );
    const text = "The run is under Train. Once it is done, load its result and clear the instructions.";
    setStatus($("who-status"), text, "good");
    toast(`${name || "The instructions"}: the run is under Train.`, "good", {
      label: "Show",
      run: () => (location.hash = `#train/${run.id}`),
    });
  } catch (error) {
    setStatus($("who-status"), error.message, "bad");
  }
}

// What a story or a chat has: its fields, and what it is called.

export const newId = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(16).slice(2)}`;

/** A new story, or chat. */
export const blank = (isChat) => ({
  id: newId(),
  title: "",
  text: "",
  memory: "",
  note: "",
  output: "",
  generated: [],
  chat: isChat ? [] : null,
  character: null,
  revision: 0,
  after: "",
});

// Characters of a name that is made from a text.
const NAMED = 40;

/** What a story or a chat is called: its title, else its first words. story: as the server lists or stores it. */
export function nameOf({ title, begins, text, chat }) {
  if (title) return title;
  const first = begins ?? (chat ? chat.find(({ role }) => role === "user")?.content : text) ?? "";
  const words = first.slice(0, 100).replace(/\s+/g, " ").trim();
  return words.length > NAMED ? `${words.slice(0, NAMED).replace(/ \S*$/, "")} ...` : words;
}

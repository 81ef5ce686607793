// Files that are dropped on a story or a chat, and stories from files.

import { addFiles } from "./prompts.js";
import { toast } from "./toast.js";

const TITLE = 300,
  // More are a folder of texts, dropped in the wrong place.
  MOST = 20;

const parsed = (file) => file.text().then(JSON.parse);

/** Open each file that has one of these endings, and add the others to the library. mkultra's soft prompts are JSON too,
 * and count as others. */
export async function openOrAdd(files, endings, open) {
  const texts = [],
    others = [];
  for (const file of files) {
    const isText = endings.test(file.name) && typeof (await parsed(file).catch(() => null))?.tensor !== "string";
    (isText ? texts : others).push(file);
  }
  if (texts.length > MOST) toast(`${texts.length} files at once: to train on texts, drop them in Train.`, "bad");
  else for (const file of texts) await open(file);
  if (others.length) addFiles(others);
}

/** A story from a file: one of this page's, or any text. */
export async function readStory(file) {
  if (!/\.json$/i.test(file.name))
    return { text: await file.text(), title: file.name.replace(/\.[^.]*$/, "").slice(0, TITLE) };
  const story = await parsed(file).catch(() => {
    throw new Error("it is not JSON");
  });
  if (typeof story?.text !== "string") throw new Error("it contains no story");
  const fields = Object.fromEntries(["title", "text", "memory", "note", "output"].map((key) => [key, String(story[key] ?? "")]));
  return { ...fields, title: fields.title.slice(0, TITLE), generated: ranges(story.generated, story.text.length) };
}

/** Those of a list that are ranges of a text of this length, one after the other. */
function ranges(list, length) {
  let last = 0;
  return (Array.isArray(list) ? list : []).filter((one) => {
    const [from, to] = Array.isArray(one) && one.length === 2 && one.every(Number.isSafeInteger) ? one : [0, 0];
    const isRange = from >= last && from < to && to <= length;
    if (isRange) last = to;
    return isRange;
  });
}

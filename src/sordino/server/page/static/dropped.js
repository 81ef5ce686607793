// Files that are dropped on a story or a chat.

import { addFiles } from "./prompts.js";
import { toast } from "./toast.js";

// More are a folder of texts, dropped in the wrong place.
const MOST = 20;

/** Open each file that has one of these endings, and hand the others on (`addFiles`). mkultra's soft prompts are JSON too,
 * and count as others. inMessage: as in `addFiles`. */
export async function openOrAdd(files, endings, open, inMessage = null) {
  const opened = [],
    others = [];
  for (const file of files) {
    const json = /\.json$/i.test(file.name) && (await file.text().then(JSON.parse).catch(() => null));
    (endings.test(file.name) && typeof json?.tensor !== "string" ? opened : others).push(file);
  }
  if (opened.length > MOST) toast(`${opened.length} files are too many to open. To train on texts, drop them in Train.`, "bad");
  else for (const file of opened) await open(file);
  if (others.length) addFiles(others, inMessage);
}

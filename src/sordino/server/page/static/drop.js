// Files from the user: dropped, or chosen.

import { el } from "./dom.js";

/** A place to drop files on, and folders of them. done: called with the files. */
export function dropZone(place, done) {
  // Text that is dragged goes where the browser puts it.
  const hasFiles = ({ dataTransfer }) => dataTransfer.types.includes("Files");
  place.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    place.classList.remove("over");
    // Read now: after the event there is nothing to read.
    const dropped = [...event.dataTransfer.items].map((one) => [one.webkitGetAsEntry(), one.getAsFile()]);
    const files = dropped.map(([entry, file]) => (entry?.isDirectory ? filesIn(entry) : file));
    done((await Promise.all(files)).flat().filter(Boolean));
  });
}

/** The files in a folder, and in those in it; each with its path, as one that was chosen has. */
async function filesIn(folder) {
  const reader = folder.createReader(),
    entries = [];
  // Some at a time, until there are no more.
  for (let some; (some = await new Promise((...ends) => reader.readEntries(...ends))).length; ) entries.push(...some);
  const files = entries.map(async (entry) => {
    if (entry.isDirectory) return filesIn(entry);
    const file = await new Promise((...ends) => entry.file(...ends));
    return Object.defineProperty(file, "webkitRelativePath", { value: entry.fullPath.slice(1) });
  });
  return (await Promise.all(files)).flat();
}

/** A button that asks for files. done: called with them. */
export function picker(what, props, done) {
  const input = el("input", {
    type: "file",
    multiple: true,
    class: "hidden",
    ...props,
    onchange: () => {
      done([...input.files]);
      input.value = "";
    },
  });
  return el("label", { class: "button" }, `Choose ${what}`, input);
}

// Files from the user: dropped, or chosen.

import { el } from "./dom.js";

/** While `place` is shown, take files and folders that are dropped anywhere on the page; the browser would open them
 * instead of it. done: called with the files. */
export function dropZone(place, done) {
  // Text that is dragged goes where the browser puts it.
  const isHere = ({ dataTransfer }) => !place.hidden && dataTransfer.types.includes("Files"),
    // In front of the place.
    isCovered = () => document.querySelector("dialog[open]") !== null;
  document.addEventListener("dragover", (event) => {
    if (!isHere(event)) return;
    event.preventDefault();
    if (isCovered()) event.dataTransfer.dropEffect = "none";
    else place.classList.add("over");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) place.classList.remove("over");
  });
  document.addEventListener("drop", async (event) => {
    if (!isHere(event)) return;
    event.preventDefault();
    place.classList.remove("over");
    if (isCovered()) return;
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

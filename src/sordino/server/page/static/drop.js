// Files from the user: dropped, or chosen.

import { el } from "./dom.js";

/** A place to drop files on. done: called with them. */
export function dropZone(place, done) {
  // Text that is dragged goes where the browser puts it.
  const hasFiles = ({ dataTransfer }) => dataTransfer.types.includes("Files");
  place.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    place.classList.remove("over");
    done([...event.dataTransfer.files]);
  });
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

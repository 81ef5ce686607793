// The galleries that were added: how many soft prompts each lists, what has changed in it, adding and removing one.

import { $, call, confirming, el, fill, setStatus } from "./dom.js";
import { toast } from "./toast.js";
import { waiting } from "./waiting.js";

// By name, what changed when a gallery was last looked at.
const changes = new Map();
let changed = () => {};

export function startGalleries() {
  $("gallery-add").addEventListener("submit", async (event) => {
    event.preventDefault();
    const field = $("gallery-address");
    setStatus($("gallery-status"), "");
    if (await look(field.value, event.submitter)) field.value = "";
  });
  $("gallery-first").addEventListener("click", () => {
    $("galleries").open = true;
    $("gallery-address").focus();
  });
}

/** done: called when the galleries have changed. */
export function showGalleries(galleries, done) {
  changed = done;
  $("galleries-count").textContent = galleries.length ? `Galleries (${galleries.length})` : "Galleries";
  fill($("gallery-list"), galleries.map(line));
}

/** Add the gallery at an address, or take over what it lists now. Returns whether that went well. */
async function look(address, button) {
  try {
    const found = await waiting(button, "Looking ...", () =>
      call("ui/find/galleries", { method: "POST", json: { address } }),
    );
    changes.set(found.name, [...found.changes, ...found.notes]);
    toast(`${found.title || found.name}: ${counted(found)}`, "good");
    changed();
    return true;
  } catch (error) {
    setStatus($("gallery-status"), error.message, "bad");
    return false;
  }
}

const counted = ({ count }) => `${count} soft prompt${count === 1 ? "" : "s"}`;

function line(gallery) {
  const title = gallery.title || gallery.name;
  const again = el("button", { type: "button", ariaLabel: `Look again at ${title}` }, "Look again");
  again.addEventListener("click", () => look(gallery.address, again));
  const remove = confirming(el("button", { type: "button" }, "Remove"), `gallery:${gallery.name}`, async () => {
    try {
      await call(`ui/find/galleries/${encodeURIComponent(gallery.name)}`, { method: "DELETE" });
    } catch (error) {
      toast(error.message, "bad");
    }
    changed();
  });
  const news = changes.get(gallery.name) ?? [];
  return el(
    "li",
    {},
    el(
      "div",
      { class: "what" },
      el("b", {}, title),
      gallery.error
        ? el("p", { dataset: { kind: "bad" } }, gallery.error)
        : el("p", { class: "soft small" }, `${counted(gallery)}, listed ${gallery.seen} · ${gallery.address}`),
      gallery.is_list && el("p", { class: "soft small" }, "A page of links states no hashes: only sizes are checked."),
      news.length ? el("ul", { class: "small" }, ...news.map((one) => el("li", {}, one))) : null,
    ),
    el("div", { class: "do" }, gallery.error ? null : again, remove),
  );
}

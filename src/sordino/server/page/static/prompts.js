// Prompts: the library as rows, fitting files first; each file has a page of its own.

import { copier } from "./copy.js";
import { $, arrange, call, debounce, el, setStatus } from "./dom.js";
import { dropZone } from "./drop.js";
import { byFit } from "./fit.js";
import { gainOf } from "./heldout.js";
import { live } from "./live.js";
import { showPrompt } from "./prompt.js";
import { row, scale } from "./prompt_row.js";
import { route } from "./route.js";
import { choice } from "./status.js";
import { askWhatFor, isText } from "./texts_for.js";
import { toast } from "./toast.js";
import { upload } from "./uploads.js";

// Rows that are drawn, until more are asked for: thousands would hold up the page.
const MOST_ROWS = 200;

// null before the library was read.
let cards = null;
let most = MOST_ROWS;
// What of a card is searched.
const words = new WeakMap();
let library = null;
// What the rows were drawn from, and the rows: {element, light} by what each was drawn from.
let drawn = "";
let rows = new Map();

export function startPrompts() {
  for (const id of ["search", "filter"])
    $(id).addEventListener("input", () => {
      most = MOST_ROWS;
      draw();
    });
  $("rows-more").addEventListener("click", () => {
    const last = $("rows").lastElementChild;
    most += MOST_ROWS;
    draw();
    last?.nextElementSibling?.querySelector("a, button")?.focus();
  });
  $("upload").addEventListener("change", ({ target }) => {
    addFiles([...target.files]);
    target.value = "";
  });
  for (const place of ["prompts", "find", "connect"]) dropZone($(place), addFiles);
  $("rows").addEventListener("keydown", step);
  live.addEventListener("state", () => {
    const now = JSON.stringify([live.state.library, live.state.model?.key]);
    if (now === library) return;
    library = now;
    read();
  });
  choice.addEventListener("change", draw);
  document.addEventListener("page", turn);
  $("try-examples").addEventListener("click", examples);
}

/** Add files to the library, and show it; ask what the texts among them are for. inMessage: as in `askWhatFor`. */
export function addFiles(files, inMessage = null) {
  const texts = files.filter(isText),
    others = files.filter((file) => !isText(file));
  if (texts.length) askWhatFor(texts, inMessage);
  if (!others.length) return;
  location.hash = "#prompts";
  upload(others, read);
}

/** The list, or the page of the soft prompt that the address names. opened: by the user, at the part that it names. */
function turn(opened = null) {
  const { page, rest } = route();
  const [name, part] = rest.split("/");
  const one = page === "prompts" && name !== "";
  $("library").hidden = one;
  $("prompt").hidden = !one;
  if (one) showPrompt(name, opened && part, read);
}

const read = debounce(async () => {
  try {
    const { prompts, folders, shown } = await call("ui/prompts");
    cards = prompts.sort(byFit);
    $("folder").replaceChildren("Folder: ", el("code", {}, shown[0]), " ", copier(folders[0]));
    setStatus($("prompts-status"), "");
  } catch (error) {
    setStatus($("prompts-status"), error.message, "bad");
    // With the next state, which comes once the server answers again.
    library = null;
  }
  draw();
  turn();
}, 30);

async function examples() {
  try {
    const { added } = await call("ui/prompts/examples", { method: "POST", json: {} });
    location.hash = "#prompts";
    toast(added.length ? `Added to the library: ${added.join(", ")}` : "They are in the library already", "good");
  } catch (error) {
    toast(error.message, "bad");
  }
}

function draw() {
  if (!cards) return;
  const wanted = $("search").value.toLowerCase(),
    kind = $("filter").value;
  const found = cards.filter(
    (card) =>
      wordsOf(card).includes(wanted) &&
      (kind !== "fits" || (!card.error && card.fit !== "no")) &&
      (kind !== "broken" || card.error),
  );
  const shown = found.slice(0, most);
  $("rows-more").hidden = found.length <= most;
  $("rows-more").textContent = `Show more (${(found.length - most).toLocaleString()} left)`;
  const now = JSON.stringify([shown, live.state?.model?.name, cards.length]);
  if (now === drawn) {
    light();
    return;
  }
  drawn = now;
  // A menu that is open, and a question that is asked in it, stay: only rows that changed are drawn anew.
  const gain = scale(cards);
  const keyOf = (card) => JSON.stringify([card, live.state?.model?.name, gain]);
  rows = new Map(shown.map((card) => [keyOf(card), rows.get(keyOf(card)) ?? row(card, gain, read)]));
  light();
  const refocus = focused();
  arrange($("rows"), [...rows.values()].map((one) => one.element));
  refocus();
  $("rows-legend").hidden = !shown.some((card) => gainOf(card.heldout) !== null);
  $("rows-none").hidden = !cards.length || shown.length > 0;
  $("rows-empty").hidden = cards.length > 0;
}

function wordsOf(card) {
  if (!words.has(card)) words.set(card, JSON.stringify(Object.values(card)).toLowerCase());
  return words.get(card);
}

/** Show which one is active. */
function light() {
  for (const one of rows.values()) one.light();
}

/** Remembers the focused control of a row; the function that is returned focuses it again after a redraw. */
function focused() {
  const held = document.activeElement?.closest?.("#rows > li");
  if (!held) return () => {};
  const active = document.activeElement;
  const place = [...held.querySelectorAll("a, button")].indexOf(active);
  return () => {
    if (active.isConnected) active.focus();
    else
      [...$("rows").children]
        .find((one) => one.dataset.file === held.dataset.file)
        ?.querySelectorAll("a, button")
        [place]?.focus();
  };
}

/** Up and down go from row to row. */
function step(event) {
  const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!way || event.target.closest(".menu")) return;
  const links = [...$("rows").querySelectorAll("a.name")];
  const at = links.indexOf(event.target.closest("li")?.querySelector("a.name"));
  if (at < 0 || !links[at + way]) return;
  event.preventDefault();
  links[at + way].focus();
}

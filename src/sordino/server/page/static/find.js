// Find: soft prompts of galleries and of the Hugging Face Hub in one list, what fits the model first.

import { $, arrange, call, debounce, local, setStatus } from "./dom.js";
import { byFit } from "./fit.js";
import { row } from "./find_row.js";
import { showGalleries } from "./galleries.js";
import { follow, startInstalls } from "./installs.js";
import { live } from "./live.js";

const SHOWN_AT_FIRST = 60,
  TYPED_MS = 500;

// Rows of the galleries, null before they were read, and those of the Hub.
let listed = null,
  ofHub = [];
// The search that the rows of the Hub are for, and why there are none.
let searched = null,
  searching = false,
  failed = "";
let most = SHOWN_AT_FIRST;
// What the library and the model were when the rows were made, and the rows by what each was drawn from.
let seen = "",
  rows = new Map();

export function startFind() {
  $("find-hub").checked = local.get("find-hub", false);
  for (const id of ["find-words", "find-fit", "find-mature"])
    $(id).addEventListener("input", () => {
      most = SHOWN_AT_FIRST;
      draw();
    });
  $("find-words").addEventListener("input", debounce(askHub, TYPED_MS));
  $("find-hub").addEventListener("change", ({ target }) => {
    local.set("find-hub", target.checked);
    searched = null;
    askHub();
  });
  $("find-more").addEventListener("click", () => {
    most += SHOWN_AT_FIRST;
    draw();
  });
  document.addEventListener("page", ({ detail }) => detail === "find" && read());
  live.addEventListener("state", () => {
    const now = JSON.stringify([live.state.library, live.state.model?.key]);
    if (now === seen || $("find").hidden) return;
    read();
  });
  startInstalls(() => draw());
}

/** Read what the galleries list, and how well it fits the model that is loaded now. */
async function read() {
  seen = JSON.stringify([live.state?.library, live.state?.model?.key]);
  try {
    const { galleries, found, installs } = await call("ui/find");
    listed = found;
    showGalleries(galleries, read);
    follow(installs);
    setStatus($("find-status"), "");
  } catch (error) {
    setStatus($("find-status"), error.message, "bad");
  }
  draw();
  searched = null;
  askHub();
}

/** The Hub is asked only where that is ticked: it learns what somebody looks for. */
async function askHub() {
  const words = $("find-hub").checked ? $("find-words").value.trim() : null;
  if (words === searched) return;
  searched = words;
  if (words === null) {
    ofHub = [];
    failed = "";
    searching = false;
    draw();
    return;
  }
  searching = true;
  setStatus($("find-hub-status"), "Searching the Hugging Face Hub ...");
  try {
    const { found } = await call(`ui/find/hub?words=${encodeURIComponent(words)}`);
    // A later search was faster.
    if (searched !== words) return;
    ofHub = found;
    failed = "";
  } catch (error) {
    if (searched !== words) return;
    ofHub = [];
    failed = error.message;
  }
  searching = false;
  draw();
}

function draw() {
  if (!listed) return;
  const words = $("find-words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (card) => JSON.stringify(Object.values(card)).toLowerCase();
  const all = [...listed.filter((card) => words.every((word) => text(card).includes(word))), ...ofHub];
  const mature = all.filter((card) => card.rating === "mature" || card.rating === "explicit");
  const wanted = all
    .filter((card) => $("find-mature").checked || !mature.includes(card))
    .filter((card) => $("find-fit").value === "" || (card.fit && card.fit !== "no"))
    .sort((one, other) => byFit(one, other) || (other.gain ?? -1) - (one.gain ?? -1));
  const shown = wanted.slice(0, most);
  const gain = Math.max(0.01, ...listed.map((card) => card.gain ?? 0));
  const keyOf = (card) => JSON.stringify([card, live.state?.model?.name, gain]);
  // Rows that are as they were stay: a comparison that is open in one stays open.
  rows = new Map(shown.map((card) => [keyOf(card), rows.get(keyOf(card)) ?? row(card, gain)]));
  for (const one of rows.values()) one.update();
  arrange($("found"), [...rows.values()].map((one) => one.element));
  $("find-more").hidden = wanted.length <= most;
  $("find-more").textContent = `Show more (${wanted.length - shown.length})`;
  if (!searching) setStatus($("find-hub-status"), failed && `Hugging Face Hub: ${failed}`, "bad");
  const hidden = $("find-mature").checked ? 0 : mature.length;
  const isSearch = all.length > 0 || listed.length > 0 || $("find-hub").checked;
  $("find-none").hidden = shown.length > 0 || !isSearch || searching;
  $("find-none").textContent = `No matches${hidden ? `; ${hidden} mature not shown` : ""}`;
  $("find-empty").hidden = isSearch;
}

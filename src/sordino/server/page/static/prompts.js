// The library as a table: load, upload, details, delete.

import { open } from "./details.js";
import { dropZone } from "./drop.js";
import { $, call, confirming, debounce, el, scrolling, setStatus } from "./dom.js";
import { choice, NONE } from "./status.js";
import { live } from "./live.js";

const FITS = {
  exact: "made for this very model",
  "same family": "made for a model of this family",
  unknown: "may fit: the file does not say",
  no: "does not fit",
};

let cards = [];
let library = null;

export function startPrompts() {
  for (const id of ["search", "filter"]) $(id).addEventListener("input", draw);
  $("upload").addEventListener("change", ({ target }) => {
    upload([...target.files]);
    target.value = "";
  });
  dropZone($("drop"), upload);
  live.addEventListener("state", () => {
    if (live.state.library !== library) {
      library = live.state.library;
      read();
    }
  });
  choice.addEventListener("change", draw);
  $("try-examples").addEventListener("click", examples);
  call("ui/prompts")
    .then(({ folders, shown }) =>
      $("folder").replaceChildren("Folder: ", el("code", {}, shown[0]), " ", copier(folders[0])),
    )
    .catch(() => {});
}

export function copier(value) {
  const button = el(
    "button",
    {
      type: "button",
      ariaLabel: `Copy ${value}`,
      onclick: async () => {
        try {
          await navigator.clipboard.writeText(value);
          button.textContent = "Copied";
        } catch {
          button.textContent = "Select it and copy";
        }
        setTimeout(() => {
          button.textContent = "Copy";
        }, 1500);
      },
    },
    "Copy",
  );
  return button;
}

const read = debounce(async () => {
  try {
    cards = (await call("v1/soft_prompts")).data;
  } catch (error) {
    setStatus($("prompts-status"), error.message, "bad");
  }
  draw();
}, 30);

async function examples() {
  try {
    const { added } = await call("ui/prompts/examples", { method: "POST", json: {} });
    location.hash = "#prompts";
    setStatus($("prompts-status"), `In the library: ${added.join(", ")}. Load one, and write.`, "good");
  } catch (error) {
    setStatus($("prompts-status"), error.message, "bad");
  }
}

/** Remembers the focused button; the function that is returned focuses it again after a redraw. */
function focused() {
  const held = document.activeElement?.closest?.("#table tr");
  if (!held) return () => {};
  const place = [...held.querySelectorAll("button")].indexOf(document.activeElement);
  return () =>
    [...document.querySelectorAll("#table tr")]
      .find((one) => one.dataset.file === held.dataset.file)
      ?.querySelectorAll("button")
      [place]?.focus();
}

function draw() {
  const refocus = focused();
  const words = $("search").value.toLowerCase(),
    kind = $("filter").value;
  const shown = cards.filter(
    (card) =>
      JSON.stringify(Object.values(card)).toLowerCase().includes(words) &&
      (kind !== "fits" || (!card.error && card.fit !== "no")) &&
      (kind !== "broken" || card.error),
  );
  if (!cards.length) {
    $("table").replaceChildren(el("p", {}, "The library is empty."));
    return;
  }
  const head = el(
    "tr",
    {},
    ...["Name", "Author", "Tokens", "Made for", "Fits", "Tags", "Do"].map((title) =>
      el("th", { scope: "col" }, title),
    ),
  );
  $("table").replaceChildren(
    scrolling(
      "Soft prompts of the library",
      el("table", { role: "table" }, el("thead", {}, head), el("tbody", { role: "rowgroup" }, ...shown.map(row))),
    ),
  );
  if (!shown.length) $("table").append(el("p", {}, "No soft prompt matches."));
  refocus();
}

// On a narrow screen a row is a card, and its cells say what they are.
const cell = (label, text) => el("td", { role: "cell", dataset: { label } }, text || null);

function row(card) {
  if (card.error) {
    return el(
      "tr",
      { role: "row", dataset: { file: card.file } },
      el("th", { scope: "row", role: "rowheader" }, card.file),
      el("td", { role: "cell", colSpan: 5, dataset: { kind: "bad" } }, `broken: ${card.error}`),
      el("td", { role: "cell" }, remover(card)),
    );
  }
  const active = choice.name === card.id;
  const load = active
    ? el("button", { type: "button", onclick: () => choice.choose(NONE) }, "Unload")
    : el(
        "button",
        {
          type: "button",
          class: "main",
          disabled: !card.fit || card.fit === "no",
          onclick: () => choice.choose(card.id),
        },
        "Load",
      );
  load.ariaLabel = `${load.textContent} ${card.name || card.id}`;
  return el(
    "tr",
    { role: "row", dataset: { file: card.file }, ariaCurrent: active ? "true" : null },
    el(
      "th",
      { scope: "row", role: "rowheader" },
      card.name || card.id,
      el("br"),
      el("small", {}, card.file),
      card.description ? el("p", {}, card.description) : null,
    ),
    cell("Author", card.author ?? ""),
    cell("Tokens", tokens(card)),
    cell("Made for", card.base_model ?? ""),
    el(
      "td",
      { role: "cell", title: card.fit_reason, dataset: { kind: card.fit === "no" ? "bad" : "" } },
      FITS[card.fit] ?? card.fit_reason,
    ),
    cell("Tags", [card.rating, ...card.tags].filter(Boolean).join(", ")),
    el(
      "td",
      { role: "cell" },
      el(
        "div",
        { class: "bar" },
        load,
        el(
          "button",
          { type: "button", ariaLabel: `Details of ${card.name || card.id}`, onclick: () => open(card.id) },
          "Details",
        ),
        remover(card),
      ),
    ),
  );
}

function remover(card) {
  return confirming(el("button", { type: "button" }, "Delete"), card.file, async () => {
    try {
      await call(`v1/soft_prompts/${encodeURIComponent(card.id)}`, { method: "DELETE" });
      setStatus($("prompts-status"), `${card.file} is in the library's trash`);
    } catch (error) {
      setStatus($("prompts-status"), error.message, "bad");
    }
    read();
  });
}

async function upload(files) {
  const results = [];
  let bad = false;
  for (const file of files) {
    const form = new FormData();
    form.append("file", file);
    try {
      const card = await call("v1/soft_prompts", { method: "POST", form });
      results.push(`${file.name}: in the library as ${card.id}`);
    } catch (error) {
      bad = true;
      const taken = error.code === "name_taken";
      const why = taken
        ? "another soft prompt has this name: delete that one first, or rename the file"
        : error.message;
      results.push(why.startsWith(`${file.name}: `) ? why : `${file.name}: ${why}`);
    }
  }
  setStatus($("prompts-status"), results.join("; "), bad ? "bad" : "good");
  read();
}

const tokens = (card) =>
  card.components
    ? `${card.n_tokens}, mixture of ${card.components}`
    : `${card.n_tokens}${card.kind === "KV prompt" ? ", KV prompt" : ""}`;

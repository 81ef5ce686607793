// The library as a table: load, upload, look closely, change, take along, delete.

import { $, call, el, fill, later, say, surely } from "./dom.js";
import { inside } from "./inside.js";
import { NONE, choice } from "./lamp.js";
import { live } from "./live.js";
import { RULES } from "./mixing.js";

const FITS = { exact: "made for this very model", "same family": "made for a model of this family", unknown: "may fit: the file does not say", no: "does not fit" };
const FORMATS = { kobold: "KoboldAI and Sordino (.zip)", peft: "PEFT (a folder, zipped)", mkultra: "mkultra (.json)", npy: "NumPy (.npy)", safetensors: "safetensors" };

const MIXTURE_FORMATS = { mixture: "Sordino (.mix.zip)" };
// What a file says it measured, in words; a key that is not here is shown as it is.
const HELDOUT = {
  nll: "Loss a token (less is better)", off_domain: "Loss a token on other texts", bits_per_byte: "Bits a byte", tokens: "Tokens measured",
  worth_tokens: "Worth an excerpt of so many tokens", no_prompt: "without", soft_prompt: "with the soft prompt",
  best_instruction: "with the best instruction", best_excerpt: "with the best excerpt",
};

let cards = [];
let library = null;

export function startPrompts() {
  for (const id of ["search", "filter"]) $(id).addEventListener("input", draw);
  $("upload").addEventListener("change", ({ target }) => { upload([...target.files]); target.value = ""; });
  dropZone($("drop"), upload);
  live.addEventListener("state", () => { if (live.state.library !== library) { library = live.state.library; read(); } });
  choice.addEventListener("change", draw);
  $("try-examples").addEventListener("click", examples);
  call("ui/prompts").then(({ folders, shown }) => $("folder").replaceChildren("Folder: ", el("code", {}, shown[0]), " ", copier(folders[0]))).catch(() => {});
}

/** A place to drop files on. done: called with them. */
export function dropZone(place, done) {
  place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("over"); });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    done([...event.dataTransfer.files]);
  });
}

export function copier(value) {
  const button = el("button", { type: "button", ariaLabel: `Copy ${value}`, onclick: async () => {
    try {
      await navigator.clipboard.writeText(value);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it and copy";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return button;
}

const read = later(async () => {
  try {
    cards = (await call("v1/soft_prompts")).data;
  } catch (error) {
    say($("prompts-told"), error.message, "bad");
  }
  draw();
}, 30);

async function examples() {
  try {
    const { added } = await call("ui/prompts/examples", { method: "POST", json: {} });
    location.hash = "#prompts";
    say($("prompts-told"), `In the library: ${added.join(", ")}. Load one, and write.`, "good");
  } catch (error) {
    say($("prompts-told"), error.message, "bad");
  }
}

/** Which row, and which of its buttons, has the focus: drawn anew, it has it still. */
function focused() {
  const held = document.activeElement?.closest?.("#table tr");
  if (!held) return () => {};
  const place = [...held.querySelectorAll("button")].indexOf(document.activeElement);
  return () => [...document.querySelectorAll("#table tr")].find((one) => one.dataset.file === held.dataset.file)?.querySelectorAll("button")[place]?.focus();
}

function draw() {
  const refocus = focused();
  const words = $("search").value.toLowerCase(), kind = $("filter").value;
  const shown = cards.filter((card) =>
    JSON.stringify(Object.values(card)).toLowerCase().includes(words) &&
    (kind !== "fits" || (!card.error && card.fit !== "no")) && (kind !== "broken" || card.error));
  if (!cards.length) {
    $("table").replaceChildren(el("p", {}, "The library is empty."));
    return;
  }
  const head = el("tr", {}, ...["Name", "Author", "Tokens", "Made for", "Fits", "Tags", "Do"].map((title) => el("th", { scope: "col" }, title)));
  $("table").replaceChildren(el("div", { class: "scroll", tabIndex: 0, role: "region", ariaLabel: "Soft prompts of the library" }, el("table", { role: "table" }, el("thead", {}, head), el("tbody", { role: "rowgroup" }, ...shown.map(row)))));
  if (!shown.length) $("table").append(el("p", {}, "None is like that."));
  refocus();
}

// On a narrow screen a row is a card, and its cells say what they are.
const cell = (label, text) => el("td", { role: "cell", dataset: { label } }, text || null);

function row(card) {
  if (card.error) {
    return el("tr", { role: "row", dataset: { file: card.file } }, el("th", { scope: "row", role: "rowheader" }, card.file), el("td", { role: "cell", colSpan: 5, dataset: { kind: "bad" } }, `broken: ${card.error}`), el("td", { role: "cell" }, remover(card)));
  }
  const active = choice.name === card.id;
  const load = active
    ? el("button", { type: "button", onclick: () => choice.choose(NONE) }, "Unload")
    : el("button", { type: "button", class: "main", disabled: !card.fit || card.fit === "no", onclick: () => choice.choose(card.id) }, "Load");
  load.ariaLabel = `${load.textContent} ${card.name || card.id}`;
  return el(
    "tr",
    { role: "row", dataset: { file: card.file }, ariaCurrent: active ? "true" : null },
    el("th", { scope: "row", role: "rowheader" }, card.name || card.id, el("br"), el("small", {}, card.file), card.description ? el("p", {}, card.description) : null),
    cell("Author", card.author ?? ""),
    cell("Tokens", card.components ? `${card.n_tokens}, mixture of ${card.components}` : String(card.n_tokens)),
    cell("Made for", card.base_model ?? ""),
    el("td", { role: "cell", title: card.fit_reason, dataset: { kind: card.fit === "no" ? "bad" : "" } }, FITS[card.fit] ?? card.fit_reason),
    cell("Tags", [card.rating, ...card.tags].filter(Boolean).join(", ")),
    el("td", { role: "cell" }, el("div", { class: "bar" }, load, el("button", { type: "button", ariaLabel: `Details of ${card.name || card.id}`, onclick: () => open(card.id) }, "Details"), remover(card))),
  );
}

function remover(card) {
  return surely(el("button", { type: "button" }, "Delete"), card.file, async () => {
    try {
      await call(`v1/soft_prompts/${encodeURIComponent(card.id)}`, { method: "DELETE" });
      say($("prompts-told"), `${card.file} is in the library's trash`);
    } catch (error) {
      say($("prompts-told"), error.message, "bad");
    }
    read();
  });
}

async function upload(files) {
  const told = [];
  let bad = false;
  for (const file of files) {
    const form = new FormData();
    form.append("file", file);
    try {
      const card = await call("v1/soft_prompts", { method: "POST", form });
      told.push(`${file.name}: in the library as ${card.id}`);
    } catch (error) {
      bad = true;
      const why = error.status === 409 ? "another soft prompt has this name: delete that one first, or rename the file" : error.message;
      told.push(why.startsWith(`${file.name}: `) ? why : `${file.name}: ${why}`);
    }
  }
  say($("prompts-told"), told.join("; "), bad ? "bad" : "good");
  read();
}

// One of them ---------------------------------------------------------------------------------------------------------------

async function open(name) {
  const path = `ui/prompts/${encodeURIComponent(name)}`;
  let told;
  try {
    told = await call(path);
  } catch (error) {
    say($("prompts-told"), error.message, "bad");
    return;
  }
  const words = el("div", {}, el("p", { class: "soft" }, "Looking for them ..."));
  fill(
    $("details"),
    el("div", { class: "bar" }, el("h2", { id: "details-title" }, told.name || name), el("button", { type: "button", onclick: () => $("details").close() }, "Close")),
    el("p", {}, `${told.n_tokens} tokens of width ${told.d_model}, ${told.placement === "after_bos" ? "behind BOS" : "at the very start"}; ${told.base.id ? `made for ${told.base.id}` : "it does not say for which model"}${told.created ? `; ${told.created}` : ""}${told.licence ? `; ${told.licence}` : ""}`),
    told.description ? el("p", {}, told.description) : null,
    ...told.samples.slice(0, 5).map(sample),
    heldout(told.heldout),
    ...(told.mixture
      ? [parts(told.mixture)]
      : [el("h3", {}, "Nearest words of each virtual token"), words, el("h3", {}, "Inside"), inside(path)]),
    Object.keys(told.training).length ? el("details", {}, el("summary", {}, "How it was trained"), pairs(told.training)) : null,
    el("details", {}, el("summary", {}, "Change what it says about itself"), editor(path, told)),
    el("h3", {}, "Take it along"),
    el("p", { class: "bar" }, ...Object.entries(told.mixture ? MIXTURE_FORMATS : FORMATS).map(([to, says]) => exporter(path, to, says))),
    el("p", { id: "details-told", role: "status" }),
  );
  $("details").showModal();
  if (told.mixture) return;
  call(`${path}/words`).then((said) => words.replaceChildren(picture(said.words))).catch((error) => words.replaceChildren(el("p", { class: "soft" }, error.message)));
}

/** A mixture's components, and the weight that each carries. */
function parts({ rule, gated, components }) {
  const rows = components.map((one) => el("tr", {}, el("th", { scope: "row" }, one.name || "unnamed"), el("td", {}, String(one.n_tokens)), el("td", {}, el("meter", { value: one.weight, max: 1, ariaLabel: `Weight of ${one.name || "unnamed"}` }), ` ${one.weight.toFixed(3)}`)));
  return el(
    "div",
    {},
    el("h3", {}, `Mixture of ${components.length}`),
    el("p", {}, `${RULES[rule] ?? rule}${gated ? "; the text decides about the weights, and these are what it gives on average" : ""}.`),
    el("div", { class: "scroll", tabIndex: 0, role: "region", ariaLabel: "Components" }, el("table", {}, el("thead", {}, el("tr", {}, ...["Soft prompt", "Tokens", "Weight"].map((title) => el("th", { scope: "col" }, title)))), el("tbody", {}, ...rows))),
  );
}

function sample(one) {
  return el("div", {}, el("h3", {}, `Sample: ${one.prompt ?? ""}`), el("p", { class: "sample" }, el("b", {}, "with: "), one.with ?? ""), one.without ? el("p", { class: "sample soft" }, el("b", {}, "without: "), one.without) : null);
}

const pairs = (values) => el("table", {}, el("tbody", {}, ...Object.entries(values).map(([key, value]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, typeof value === "object" ? JSON.stringify(value) : String(value))))));

function heldout(said) {
  if (!said || !Object.keys(said).length) return null;
  const plain = {};
  for (const [key, value] of Object.entries(said)) {
    const parts = value && typeof value === "object" && !Array.isArray(value) ? value : { "": value };
    for (const [of, number] of Object.entries(parts)) plain[[HELDOUT[key] ?? key, HELDOUT[of] ?? of].filter(Boolean).join(", ")] = number;
  }
  return el("details", { open: true }, el("summary", {}, "Held-out results"), pairs(plain));
}

/** The nearer a word, the stronger its colour. */
function picture(rows) {
  const cells = rows.flatMap((row, at) => [
    el("span", { class: "soft" }, String(at + 1)),
    ...Array.from({ length: 5 }, (_, place) => {
      const [word, cosine] = row[place] ?? ["", 0];
      return el("span", { title: `${word} (${cosine.toFixed(2)})`, style: `background: color-mix(in srgb, var(--main) ${Math.round(Math.max(0, Math.min(0.45, cosine)) * 100)}%, transparent)` }, word.trim() || JSON.stringify(word));
    }),
  ]);
  return el("div", { class: "scroll", tabIndex: 0, role: "region", ariaLabel: "Nearest words" }, el("div", { class: "words" }, ...cells));
}

function exporter(path, to, says) {
  return el("button", { type: "button", onclick: async () => {
    // Asked for first, so that a refusal is read here and not on a page of its own.
    const answer = await fetch(`${path}/export?to=${to}`).catch(() => null);
    if (!answer?.ok) {
      say($("details-told"), answer ? (await answer.json()).error.message : "the server does not answer", "bad");
      return;
    }
    const name = /filename\*?=(?:utf-8'')?"?([^";]+)/i.exec(answer.headers.get("content-disposition"))?.[1] ?? "soft-prompt";
    const url = URL.createObjectURL(await answer.blob());
    el("a", { href: url, download: decodeURIComponent(name) }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  } }, says);
}

function editor(path, told) {
  const fields = Object.fromEntries(["name", "author", "licence"].map((key) => [key, el("input", { value: told[key], maxLength: 300 })]));
  fields.tags = el("input", { value: told.tags.join(", ") });
  fields.description = el("textarea", { rows: 3, value: told.description });
  fields.rating = el("select", {}, ...["", "general", "mature", "explicit"].map((one) => el("option", { value: one, selected: one === told.rating }, one || "none")));
  const form = el("form", { onsubmit: async (event) => {
    event.preventDefault();
    const json = Object.fromEntries(Object.entries(fields).map(([key, field]) => [key, field.value]));
    json.tags = json.tags.split(",").map((tag) => tag.trim()).filter(Boolean);
    try {
      const now = await call(path, { method: "PATCH", json });
      say($("details-told"), "Written into the file.", "good");
      $("details-title").textContent = now.name || now.id;
    } catch (error) {
      say($("details-told"), error.message, "bad");
    }
  } });
  form.append(...Object.entries(fields).map(([key, field]) => el("label", { class: "field" }, key[0].toUpperCase() + key.slice(1), field)), el("button", {}, "Save"));
  return form;
}

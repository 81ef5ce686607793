// The page of one soft prompt: what it does, what was measured, what is in it, and what can be done with it.

import { compareWith } from "./compare.js";
import { $, NO_ANSWER, call, download, el, fill, redraw, scrolling, table } from "./dom.js";
import { badge, canLoad } from "./fit.js";
import { gainBars, keptCurve, numbers, pairs, sentences } from "./heldout.js";
import { inside } from "./inside.js";
import { live } from "./live.js";
import { menu } from "./menu.js";
import { editor } from "./metadata.js";
import { RULES } from "./mixing.js";
import { loader, remover, sample, unfit } from "./prompt_row.js";
import { choice } from "./status.js";
import { toast } from "./toast.js";

// By kind of prompt.
const FORMATS = {
  "embedding prompt": {
    kobold: "KoboldAI and Sordino (.zip)",
    peft: "PEFT (a folder, zipped)",
    mkultra: "mkultra (.json)",
    npy: "NumPy (.npy)",
    safetensors: "safetensors",
  },
  "KV prompt": {
    kv: "Sordino (.kv.zip)",
    peft: "PEFT prefix tuning (a folder, zipped)",
    cartridge: "PEFT cartridge (a folder, zipped)",
  },
  mixture: { mixture: "Sordino (.mix.zip)" },
};
const SAMPLES = 5;

// The page that is shown: {id, show(details)}.
let open = null;
// Draws the button that loads it anew: what is active may be chosen elsewhere.
let light = () => {};
// The one that was asked for last: an answer about another comes too late.
let latest = "";
choice.addEventListener("change", () => light());

/** Show the soft prompt of this name. part: "export" or "metadata", to go to. done: called when the library changed. */
export async function showPrompt(name, part, done) {
  latest = name;
  const path = `ui/prompts/${encodeURIComponent(name)}`;
  let details;
  try {
    details = await call(path);
  } catch (error) {
    if (latest !== name) return;
    open = null;
    fill($("prompt"), back(), el("p", { role: "alert", dataset: { kind: "bad" } }, error.message));
    return;
  }
  if (latest !== name) return;
  if (open?.id !== details.id) open = pageOf(details.id, path, done);
  open.show(details);
  if (part) go(part);
}

function go(part) {
  const place = $(part === "export" ? "prompt-export" : "prompt-metadata");
  if (!place) return;
  if (place.tagName === "DETAILS") place.open = true;
  place.scrollIntoView({ block: "center" });
  place.querySelector("button, input, summary")?.focus({ preventScroll: true });
}

const back = () => el("a", { class: "back", href: "#prompts" }, "‹ Prompts");
const section = (title, ...children) => el("section", {}, el("h3", {}, title), ...children);

/** Make the page of a soft prompt. Returns {id, show(details)}: only what has changed is drawn anew. */
function pageOf(id, path, done) {
  const part = () => el("div"),
    [about, samples, measured, mixture, within, training] = Array.from({ length: 6 }, part),
    head = el("header"),
    metadata = editor(path);
  fill(
    $("prompt"),
    back(),
    head,
    ...[about, samples, measured, mixture, within, training],
    el("details", { id: "prompt-metadata" }, el("summary", {}, "Metadata"), metadata.form),
  );
  const show = (details) => {
    const { name, description, fit, content_hash, model } = details;
    const hasWords = details.kind === "embedding prompt" && fit !== "no";
    redraw(head, [name, fit, details.file, details.kind], () => heading(details, done));
    redraw(about, [description, facts(details), details.unfit, model], () => [
      description && el("p", { class: "lead" }, description),
      el("p", { class: "soft" }, facts(details)),
      unfit(details),
    ]);
    redraw(samples, details.samples, () => withAndWithout(details.samples));
    redraw(measured, details.heldout, () => measurements(details.heldout ?? {}));
    redraw(mixture, details.mixture, () => details.mixture && parts(details.mixture));
    redraw(within, [hasWords, fit, content_hash, live.state?.model?.key], () =>
      hasWords && section("Inside", inside(path)),
    );
    redraw(training, details.training, () =>
      Object.keys(details.training).length > 0 &&
      el("details", {}, el("summary", {}, "How it was trained"), pairs("How it was trained", details.training)),
    );
    metadata.show(details);
  };
  return { id, show };
}

const heading = (details, done) => [
  el("h2", { id: "details-title" }, details.name || details.id),
  badge(details.fit),
  el("div", { class: "bar", role: "group", ariaLabel: "Actions" }, ...actions(details, done)),
];

const withAndWithout = (samples) =>
  samples.length > 0 && section("With and without", ...samples.slice(0, SAMPLES).map(sample));

const measurements = (heldout) =>
  Object.keys(heldout).length > 0 &&
  section(
    "On held-out texts",
    ...sentences(heldout).map((one) => el("p", {}, one)),
    el("div", { class: "plots" }, ...[gainBars(heldout), keptCurve(heldout)].filter(Boolean)),
    el("details", {}, el("summary", {}, "All numbers"), numbers(heldout)),
  );

function actions(details, done) {
  const write = () => {
    choice.choose(details.id);
    location.hash = "#write";
  };
  const compare = () => {
    write();
    compareWith([details.id]);
  };
  const gone = () => {
    location.hash = "#prompts";
    done();
  };
  const load = loader(details);
  light = load.light;
  return [
    ...(canLoad(details)
      ? [
          el("button", { type: "button", class: "main", onclick: write }, "Try it"),
          load.button,
          el("button", { type: "button", onclick: compare }, "Compare"),
        ]
      : []),
    el("span", { id: "prompt-export", class: "export" }, menu("Export", formats(details), "Export")),
    menu("More", [remover(details, gone)]),
  ];
}

/** What it is, in a line. */
function facts(details) {
  const { kv, n_tokens: tokens, base, attention } = details;
  const place = details.placement === "after_bos" ? "after BOS" : "at the start";
  const size = kv
    ? `KV prompt: ${tokens} positions of ${kv.layers} layers, ${kv.heads} heads of ${kv.channels} channels, ${place}`
    : details.mixture
      ? `mixture of ${details.mixture.components.length}, up to ${tokens} tokens`
      : `${tokens} tokens of width ${details.d_model}, ${place}`;
  return [
    size,
    attention.hold ? `held from ${attention.hold} tokens on` : "",
    attention.strength === 1 ? "" : `strength ${attention.strength}`,
    details.made_for && !details.unfit ? `made for ${base.id || details.made_for}` : "",
    details.author ? `by ${details.author}` : "",
    details.created.slice(0, "2026-01-01".length),
    details.licence,
    [details.rating, ...details.tags].filter(Boolean).join(", "),
    details.file,
  ]
    .filter(Boolean)
    .join(" · ");
}

/** A mixture's components, and the weight that each carries. */
function parts({ rule, gated, components }) {
  const average = gated ? "; the text decides the weights, and these are their averages" : "";
  const rows = components.map(({ name, n_tokens, weight }) => [
    name || "unnamed",
    n_tokens,
    [el("meter", { value: weight, max: 1, ariaLabel: `Weight of ${name || "unnamed"}` }), ` ${weight.toFixed(3)}`],
  ]);
  return section(
    `Mixture of ${components.length}`,
    el("p", {}, `${RULES[rule] ?? rule}${average}.`),
    scrolling("Components", table(["Soft prompt", "Tokens", "Weight"], rows)),
  );
}

const formats = (details) =>
  Object.entries(FORMATS[details.kind]).map(([to, label]) =>
    el(
      "button",
      { type: "button", onclick: () => save(`ui/prompts/${encodeURIComponent(details.id)}/export?to=${to}`) },
      label,
    ),
  );

/** Fetched first, so that an error shows here and not on a page of its own. */
async function save(address) {
  const answer = await fetch(address).catch(() => null);
  if (!answer?.ok) {
    toast(answer ? (await answer.json()).error.message : NO_ANSWER, "bad");
    return;
  }
  const said = answer.headers.get("content-disposition");
  const name = /filename\*?=(?:utf-8'')?"?([^";]+)/i.exec(said)?.[1] ?? "soft-prompt";
  download(decodeURIComponent(name), await answer.blob());
}

// Details of a soft prompt: its metadata, nearest words, other formats.

import { $, call, el, fill, scrolling, setStatus, table } from "./dom.js";
import { inside } from "./inside.js";
import { RULES } from "./mixing.js";

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

// Names of held-out results; other keys are shown as they are.
const HELDOUT = {
  nll: "Loss a token (less is better)",
  off_domain: "Loss a token on other texts",
  bits_per_byte: "Bits a byte",
  tokens: "Tokens measured",
  worth_tokens: "Worth an excerpt of so many tokens",
  no_prompt: "without",
  soft_prompt: "with the soft prompt",
  best_instruction: "with the best instruction",
  best_excerpt: "with the best excerpt",
  gain_kept: "Share of the gain that is left behind so many tokens of other text",
};

/** Show the details of a soft prompt of the library. */
export async function open(name) {
  const path = `ui/prompts/${encodeURIComponent(name)}`;
  let details;
  try {
    details = await call(path);
  } catch (error) {
    setStatus($("prompts-status"), error.message, "bad");
    return;
  }
  const words = el("div", {}, el("p", { class: "soft" }, "Looking for them ..."));
  const made = details.base.id ? `made for ${details.base.id}` : "made for an unknown model";
  const place = details.placement === "after_bos" ? "behind BOS" : "at the very start";
  const { kv, n_tokens: tokens } = details;
  const size = kv
    ? `KV prompt: ${tokens} positions of ${kv.layers} layers, ${kv.heads} heads of ${kv.channels} channels, ${place}`
    : `${tokens} tokens of width ${details.d_model}, ${place}`;
  const hasWords = details.kind === "embedding prompt";
  // A mixture's components have their own.
  const { hold, strength } = details.attention;
  const held = hold ? `held from ${hold} tokens on` : "";
  const facts = [size, held, strength === 1 ? "" : `strength ${strength}`, made, details.created, details.licence];
  fill(
    $("details"),
    el(
      "div",
      { class: "bar" },
      el("h2", { id: "details-title" }, details.name || name),
      el("button", { type: "button", onclick: () => $("details").close() }, "Close"),
    ),
    el("p", {}, facts.filter(Boolean).join("; ")),
    details.description ? el("p", {}, details.description) : null,
    ...details.samples.slice(0, 5).map(sample),
    heldout(details.heldout),
    details.mixture ? parts(details.mixture) : null,
    ...(hasWords
      ? [el("h3", {}, "Nearest words of each virtual token"), words, el("h3", {}, "Inside"), inside(path)]
      : []),
    Object.keys(details.training).length
      ? el("details", {}, el("summary", {}, "How it was trained"), pairs(details.training))
      : null,
    el("details", {}, el("summary", {}, "Change its metadata"), editor(path, details)),
    el("h3", {}, "Export"),
    el(
      "p",
      { class: "bar" },
      ...Object.entries(FORMATS[details.kind]).map(([to, label]) => exporter(path, to, label)),
    ),
    el("p", { id: "details-status", role: "status" }),
  );
  $("details").showModal();
  if (!hasWords) return;
  call(`${path}/words`)
    .then((answer) => words.replaceChildren(picture(answer.words)))
    .catch((error) => words.replaceChildren(el("p", { class: "soft" }, error.message)));
}

/** A mixture's components, and the weight that each carries. */
function parts({ rule, gated, components }) {
  const average = gated ? "; the text decides about the weights, and these are what it gives on average" : "";
  const rows = components.map(({ name, n_tokens, weight }) => [
    name || "unnamed",
    n_tokens,
    [el("meter", { value: weight, max: 1, ariaLabel: `Weight of ${name || "unnamed"}` }), ` ${weight.toFixed(3)}`],
  ]);
  return el(
    "div",
    {},
    el("h3", {}, `Mixture of ${components.length}`),
    el("p", {}, `${RULES[rule] ?? rule}${average}.`),
    scrolling("Components", table(["Soft prompt", "Tokens", "Weight"], rows)),
  );
}

function sample(one) {
  return el(
    "div",
    {},
    el("h3", {}, `Sample: ${one.prompt ?? ""}`),
    el("p", { class: "sample" }, el("b", {}, "with: "), one.with ?? ""),
    one.without ? el("p", { class: "sample soft" }, el("b", {}, "without: "), one.without) : null,
  );
}

const pairs = (values) =>
  table(
    [],
    Object.entries(values).map(([key, value]) => [
      key,
      typeof value === "object" ? JSON.stringify(value) : String(value),
    ]),
  );

function heldout(results) {
  if (!results || !Object.keys(results).length) return null;
  const plain = {};
  for (const [key, value] of Object.entries(results)) {
    const parts = value && typeof value === "object" && !Array.isArray(value) ? value : { "": value };
    for (const [of, number] of Object.entries(parts))
      plain[[HELDOUT[key] ?? key, HELDOUT[of] ?? of].filter(Boolean).join(", ")] = number;
  }
  return el("details", { open: true }, el("summary", {}, "Held-out results"), pairs(plain));
}

/** The nearer a word, the stronger its colour. */
function picture(rows) {
  const cells = rows.flatMap((row, at) => [
    el("span", { class: "soft" }, String(at + 1)),
    ...Array.from({ length: 5 }, (_, place) => {
      const [word, cosine] = row[place] ?? ["", 0];
      const strength = Math.round(Math.max(0, Math.min(0.45, cosine)) * 100);
      return el(
        "span",
        {
          title: `${word} (${cosine.toFixed(2)})`,
          style: `background: color-mix(in srgb, var(--main) ${strength}%, transparent)`,
        },
        word.trim() || JSON.stringify(word),
      );
    }),
  ]);
  return scrolling("Nearest words", el("div", { class: "words" }, ...cells));
}

function exporter(path, to, label) {
  return el(
    "button",
    {
      type: "button",
      onclick: async () => {
        // Fetched first, so that an error shows here and not on a page of its own.
        const answer = await fetch(`${path}/export?to=${to}`).catch(() => null);
        if (!answer?.ok) {
          const reason = answer ? (await answer.json()).error.message : "the server does not answer";
          setStatus($("details-status"), reason, "bad");
          return;
        }
        const name =
          /filename\*?=(?:utf-8'')?"?([^";]+)/i.exec(answer.headers.get("content-disposition"))?.[1] ?? "soft-prompt";
        const url = URL.createObjectURL(await answer.blob());
        el("a", { href: url, download: decodeURIComponent(name) }).click();
        setTimeout(() => URL.revokeObjectURL(url), 10_000);
      },
    },
    label,
  );
}

function editor(path, details) {
  const fields = Object.fromEntries(
    ["name", "author", "licence"].map((key) => [key, el("input", { value: details[key], maxLength: 300 })]),
  );
  fields.tags = el("input", { value: details.tags.join(", ") });
  fields.description = el("textarea", { rows: 3, value: details.description });
  fields.rating = el(
    "select",
    {},
    ...["", "general", "mature", "explicit"].map((one) =>
      el("option", { value: one, selected: one === details.rating }, one || "none"),
    ),
  );
  const form = el("form", {
    onsubmit: async (event) => {
      event.preventDefault();
      const json = Object.fromEntries(Object.entries(fields).map(([key, field]) => [key, field.value]));
      json.tags = json.tags
        .split(",")
        .map((tag) => tag.trim())
        .filter(Boolean);
      try {
        const now = await call(path, { method: "PATCH", json });
        setStatus($("details-status"), "Written into the file.", "good");
        $("details-title").textContent = now.name || now.id;
      } catch (error) {
        setStatus($("details-status"), error.message, "bad");
      }
    },
  });
  form.append(
    ...Object.entries(fields).map(([key, field]) =>
      el("label", { class: "field" }, key[0].toUpperCase() + key.slice(1), field),
    ),
    el("button", {}, "Save"),
  );
  return form;
}

// One soft prompt, looked at closely: what it says about itself, its words, other formats.

import { $, call, el, fill, say } from "./dom.js";
import { inside } from "./inside.js";
import { RULES } from "./mixing.js";

const FORMATS = {
  kobold: "KoboldAI and Sordino (.zip)",
  peft: "PEFT (a folder, zipped)",
  mkultra: "mkultra (.json)",
  npy: "NumPy (.npy)",
  safetensors: "safetensors",
};

const MIXTURE_FORMATS = { mixture: "Sordino (.mix.zip)" };
// What a file says it measured, in words; a key that is not here is shown as it is.
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
};

/** Show what a soft prompt of the library says about itself. */
export async function open(name) {
  const path = `ui/prompts/${encodeURIComponent(name)}`;
  let told;
  try {
    told = await call(path);
  } catch (error) {
    say($("prompts-told"), error.message, "bad");
    return;
  }
  const words = el("div", {}, el("p", { class: "soft" }, "Looking for them ..."));
  const made = told.base.id ? `made for ${told.base.id}` : "it does not say for which model";
  const place = told.placement === "after_bos" ? "behind BOS" : "at the very start";
  const facts = [`${told.n_tokens} tokens of width ${told.d_model}, ${place}`, made, told.created, told.licence];
  fill(
    $("details"),
    el(
      "div",
      { class: "bar" },
      el("h2", { id: "details-title" }, told.name || name),
      el("button", { type: "button", onclick: () => $("details").close() }, "Close"),
    ),
    el("p", {}, facts.filter(Boolean).join("; ")),
    told.description ? el("p", {}, told.description) : null,
    ...told.samples.slice(0, 5).map(sample),
    heldout(told.heldout),
    ...(told.mixture
      ? [parts(told.mixture)]
      : [el("h3", {}, "Nearest words of each virtual token"), words, el("h3", {}, "Inside"), inside(path)]),
    Object.keys(told.training).length
      ? el("details", {}, el("summary", {}, "How it was trained"), pairs(told.training))
      : null,
    el("details", {}, el("summary", {}, "Change what it says about itself"), editor(path, told)),
    el("h3", {}, "Take it along"),
    el(
      "p",
      { class: "bar" },
      ...Object.entries(told.mixture ? MIXTURE_FORMATS : FORMATS).map(([to, says]) => exporter(path, to, says)),
    ),
    el("p", { id: "details-told", role: "status" }),
  );
  $("details").showModal();
  if (told.mixture) return;
  call(`${path}/words`)
    .then((said) => words.replaceChildren(picture(said.words)))
    .catch((error) => words.replaceChildren(el("p", { class: "soft" }, error.message)));
}

/** A mixture's components, and the weight that each carries. */
function parts({ rule, gated, components }) {
  const average = gated ? "; the text decides about the weights, and these are what it gives on average" : "";
  const rows = components.map((one) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, one.name || "unnamed"),
      el("td", {}, String(one.n_tokens)),
      el(
        "td",
        {},
        el("meter", { value: one.weight, max: 1, ariaLabel: `Weight of ${one.name || "unnamed"}` }),
        ` ${one.weight.toFixed(3)}`,
      ),
    ),
  );
  return el(
    "div",
    {},
    el("h3", {}, `Mixture of ${components.length}`),
    el("p", {}, `${RULES[rule] ?? rule}${average}.`),
    el(
      "div",
      { class: "scroll", tabIndex: 0, role: "region", ariaLabel: "Components" },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el("tr", {}, ...["Soft prompt", "Tokens", "Weight"].map((title) => el("th", { scope: "col" }, title))),
        ),
        el("tbody", {}, ...rows),
      ),
    ),
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
  el(
    "table",
    {},
    el(
      "tbody",
      {},
      ...Object.entries(values).map(([key, value]) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, key),
          el("td", {}, typeof value === "object" ? JSON.stringify(value) : String(value)),
        ),
      ),
    ),
  );

function heldout(said) {
  if (!said || !Object.keys(said).length) return null;
  const plain = {};
  for (const [key, value] of Object.entries(said)) {
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
  return el(
    "div",
    { class: "scroll", tabIndex: 0, role: "region", ariaLabel: "Nearest words" },
    el("div", { class: "words" }, ...cells),
  );
}

function exporter(path, to, says) {
  return el(
    "button",
    {
      type: "button",
      onclick: async () => {
        // Asked for first, so that a refusal is read here and not on a page of its own.
        const answer = await fetch(`${path}/export?to=${to}`).catch(() => null);
        if (!answer?.ok) {
          say($("details-told"), answer ? (await answer.json()).error.message : "the server does not answer", "bad");
          return;
        }
        const name =
          /filename\*?=(?:utf-8'')?"?([^";]+)/i.exec(answer.headers.get("content-disposition"))?.[1] ?? "soft-prompt";
        const url = URL.createObjectURL(await answer.blob());
        el("a", { href: url, download: decodeURIComponent(name) }).click();
        setTimeout(() => URL.revokeObjectURL(url), 10_000);
      },
    },
    says,
  );
}

function editor(path, told) {
  const fields = Object.fromEntries(
    ["name", "author", "licence"].map((key) => [key, el("input", { value: told[key], maxLength: 300 })]),
  );
  fields.tags = el("input", { value: told.tags.join(", ") });
  fields.description = el("textarea", { rows: 3, value: told.description });
  fields.rating = el(
    "select",
    {},
    ...["", "general", "mature", "explicit"].map((one) =>
      el("option", { value: one, selected: one === told.rating }, one || "none"),
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
        say($("details-told"), "Written into the file.", "good");
        $("details-title").textContent = now.name || now.id;
      } catch (error) {
        say($("details-told"), error.message, "bad");
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

// The lamp's panel: the soft prompts to choose from. What is chosen is in status.js.

import { $, el, setStatus } from "./dom.js";
import { byFit } from "./fit.js";
import { live } from "./live.js";
import { choice, DEFAULT, NONE } from "./status.js";

// More soft prompts than this can be searched.
const FEW = 8;
// Of thousands, those that are listed: a search finds the others.
const MOST = 200;

// What the list was drawn from: it is drawn again only where that changed, so that a focused row keeps the focus.
let drawn = "";

export function startLampPanel() {
  choice.addEventListener("change", show);
  $("choice-search").addEventListener("input", show);
  $("choices").addEventListener("change", ({ target }) => choice.choose(target.value));
  $("unload").addEventListener("click", () => choice.choose(NONE));
  $("lamp-panel").addEventListener("toggle", ({ newState }) => {
    if (newState === "open") $("choices").querySelector("input:checked")?.focus();
  });
  $("lamp-panel").addEventListener("click", ({ target }) => target.closest("a") && $("lamp-panel").hidePopover());
  show();
}

function show() {
  const { state } = live,
    prompts = [...(state?.prompts ?? [])].sort(byFit),
    listed = few(prompts),
    shown = choice.chosen === DEFAULT && !state?.default ? NONE : choice.chosen;
  const standard = state?.default && (choice.prompt(state.default)?.title ?? state.default);
  const rows = [
    ...(standard ? [[DEFAULT, standard, "the server's default"]] : []),
    [NONE, "No soft prompt", "the model as it is"],
    ...listed.map((one) => [one.name, one.title, facts(one)]),
    ...(choice.isGone ? [[choice.chosen, choice.chosen, "gone: choose another"]] : []),
  ];
  const now = JSON.stringify(rows);
  if (now !== drawn) $("choices").replaceChildren(...rows.map(row));
  drawn = now;
  for (const radio of $("choices").querySelectorAll("input")) radio.checked = radio.value === shown;
  const others = (state?.count ?? 0) - prompts.length;
  $("choices-note").textContent = [
    prompts.length > MOST ? `${prompts.length} fit: a search finds those that are not listed.` : "",
    others ? `${others} more in the library, not for this model.` : "",
  ].join(" ");
  $("choice-search").hidden = prompts.length <= FEW;
  $("unload").disabled = !choice.name;
  filter();
}

/** All, or of thousands the first that match the search, and the one that is chosen. */
function few(prompts) {
  if (prompts.length <= MOST) return prompts;
  const wanted = $("choice-search").value.trim().toLowerCase();
  const matches = prompts.filter((one) => `${one.title} ${one.name}`.toLowerCase().includes(wanted)).slice(0, MOST);
  const chosen = wanted ? null : choice.prompt(choice.chosen);
  return chosen && !matches.includes(chosen) ? [chosen, ...matches] : matches;
}

/** Two may have one title: the file's name tells them apart. */
function facts({ name, title, tokens, kind, components, fit }) {
  const what = components ? `mixture of ${components}` : kind === "KV prompt" ? "KV prompt" : "";
  const other = { "same family": "made for another model of its family", unknown: "may fit" }[fit];
  return [title === name ? "" : name, what, `${tokens} tokens`, other].filter(Boolean).join(" · ");
}

const row = ([value, title, about]) =>
  el(
    "label",
    { class: "option" },
    el("input", { type: "radio", name: "choice", value }),
    el("span", {}, title, el("small", { class: "soft" }, about)),
  );

function filter() {
  const wanted = $("choice-search").hidden ? "" : $("choice-search").value.trim().toLowerCase();
  let found = 0;
  for (const one of $("choices").children) {
    one.hidden = !one.textContent.toLowerCase().includes(wanted);
    found += Number(!one.hidden);
  }
  setStatus($("choices-none"), found ? "" : "No matches");
}

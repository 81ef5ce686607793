// The lamp's panel: the soft prompts to choose from. What is chosen is in status.js.

import { $, focusChosen } from "./dom.js";
import { byFit } from "./fit.js";
import { live } from "./live.js";
import { options } from "./options.js";
import { choice, DEFAULT, NONE } from "./status.js";

const list = options("choices", "Soft prompt", (value) => choice.choose(value));

export function startLampPanel() {
  const panel = $("lamp-panel");
  panel.prepend(list.element);
  choice.addEventListener("change", show);
  $("unload").addEventListener("click", () => choice.choose(NONE));
  focusChosen(panel, "#choices :checked");
  panel.addEventListener("click", ({ target }) => target.closest("a") && panel.hidePopover());
  show();
}

function show() {
  const { state } = live,
    prompts = [...(state?.prompts ?? [])].sort(byFit);
  const standard = state?.default && (choice.prompt(state.default)?.title ?? state.default);
  const rows = [
    ...(standard ? [[DEFAULT, standard, "the server's default"]] : []),
    [NONE, "No soft prompt", "the model as it is"],
    ...prompts.map((one) => [one.name, one.title, facts(one)]),
    ...(choice.isGone ? [[choice.chosen, choice.chosen, "gone: choose another"]] : []),
  ];
  list.show(rows, choice.chosen === DEFAULT && !standard ? NONE : choice.chosen);
  const others = (state?.count ?? 0) - prompts.length;
  $("choices-note").textContent = others
    ? `${others} more in the library ${others === 1 ? "does" : "do"} not fit this model.`
    : "";
  $("unload").disabled = !choice.name;
}

/** Two may have one title: the file's name tells them apart. */
function facts({ name, title, tokens, kind, components, fit }) {
  const what = components ? `mixture of ${components}` : kind === "KV prompt" ? "KV prompt" : "";
  const other = { "same family": "made for another model of its family", unknown: "may fit" }[fit];
  return [title === name ? "" : name, what, `${tokens} tokens`, other].filter(Boolean).join(" · ");
}

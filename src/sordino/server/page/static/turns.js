// A chat's turns, as they are shown: who says what, with what can be done about it.

import { filled, prose, userName } from "./character.js";
import { confirming, el } from "./dom.js";
import { icon } from "./icons.js";
import { menu } from "./menu.js";
import { toast } from "./toast.js";

/** The answers of a turn to choose from, each once. */
export const answersOf = ({ swipes = [] }) => [...new Set(swipes)];

/** doing: {edit(at), cut(at), retry(), swipe(step)}. isLast: of the chat; isBusy: while an answer is written. */
export function turnElement(one, at, { character, doing, isLast, isBusy }) {
  const mine = one.role === "user";
  const name = mine ? userName() : character.name || "Model";
  return el(
    "article",
    { class: "turn", dataset: { role: one.role } },
    picture(mine ? "" : character.avatar, name),
    el(
      "div",
      {},
      el("header", {}, el("b", {}, name), actions(one, at, doing)),
      el("p", { class: "text" }, ...prose(filled(one.content, character))),
      isLast && !mine && !isBusy
        ? el(
            "div",
            { class: "swipes" },
            answersOf(one).length > 1 && swiper(one, at, doing),
            at > 0 && el("button", { type: "button", class: "quiet", onclick: doing.retry }, "Retry"),
          )
        : null,
    ),
  );
}

function actions(one, at, doing) {
  const button = (label, run) => el("button", { type: "button", onclick: run }, label);
  return menu("Actions", [
    button("Edit", () => doing.edit(at)),
    button("Copy", async () => {
      try {
        await navigator.clipboard.writeText(one.content);
      } catch {
        toast("This browser does not let the page copy: select the text and copy it.", "bad");
      }
    }),
    confirming(button("Delete from here"), `turn:${at}`, () => doing.cut(at)),
  ]);
}

/** Between the greetings of a character, or the answers that were written. */
function swiper(one, at, doing) {
  const answers = answersOf(one),
    chosen = answers.indexOf(one.content);
  const what = at === 0 ? "greeting" : "answer";
  const step = (by, label, disabled) =>
    el(
      "button",
      { type: "button", class: "quiet", ariaLabel: `${label} ${what}`, disabled, onclick: () => doing.swipe(by) },
      icon(by < 0 ? "left" : "right"),
    );
  return [
    step(-1, "Previous", chosen <= 0),
    el("span", { class: "soft" }, `${chosen + 1} / ${answers.length}`),
    step(1, "Next", chosen >= answers.length - 1),
  ];
}

export function picture(avatar, name) {
  if (avatar) return el("img", { class: "avatar", src: avatar, alt: "" });
  return el("span", { class: "avatar", ariaHidden: "true" }, [...name][0]?.toUpperCase() ?? "");
}

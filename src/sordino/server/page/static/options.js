// A list to choose from: radios, or boxes to tick; and above a few of them a search.

import { el, focusChosen, redraw, setStatus } from "./dom.js";
import { menu } from "./menu.js";

// More than these can be searched.
const FEW = 8;
// Of thousands, those that are drawn: a search finds the others.
const MOST = 200;

/** {element, show(rows, chosen)}. rows: [value, title, about] each. choose: called with the value of another one.
 * several: any number may be chosen, and `chosen` is the list of their values, for choose too. */
export function options(id, label, choose, { several = false } = {}) {
  let rows = [],
    chosen = several ? [] : "";
  const type = several ? "checkbox" : "radio",
    isChosen = (value) => (several ? chosen.includes(value) : value === chosen);
  const search = el("input", { type: "search", ariaLabel: "Search", placeholder: "Search", oninput: draw }),
    list = el("div", {
      id,
      class: several ? "checks" : "options",
      role: several ? "group" : "radiogroup",
      ariaLabel: label,
    }),
    note = el("p", { class: "soft small", role: "status" });
  list.addEventListener("change", ({ target: { value, checked } }) => {
    const all = rows.map(([one]) => one);
    choose(several ? all.filter((one) => (one === value ? checked : isChosen(one))) : value);
  });

  function draw() {
    const wanted = search.hidden ? "" : search.value.trim().toLowerCase(),
      found = rows.filter((row) => row.join(" ").toLowerCase().includes(wanted)),
      drawn = [...found.slice(MOST).filter(([value]) => isChosen(value)), ...found.slice(0, MOST)];
    const held = list.contains(document.activeElement) && document.activeElement.value;
    redraw(list, drawn, () => drawn.map((row) => option(type, id, row)));
    for (const input of list.querySelectorAll("input")) {
      input.checked = isChosen(input.value);
      if (input.value === held) input.focus();
    }
    const more = `${drawn.length} of ${found.length.toLocaleString("en")} are listed. Search for the others.`;
    setStatus(note, !found.length ? "No matches" : found.length > drawn.length ? more : "");
  }

  function show(now, value) {
    [rows, chosen] = [now, value];
    search.hidden = rows.length <= FEW;
    draw();
  }
  return { element: el("div", {}, search, list, note), show };
}

const option = (type, name, [value, title, about]) =>
  el(
    "label",
    { class: "option" },
    el("input", { type, name, value }),
    el("span", {}, title, about && el("small", { class: "soft" }, about)),
  );

/** As `options`, of which a button says what is chosen, and opens it. The button has the id, and what is chosen as value. */
export function chooser(id, label, choose) {
  const text = el("span"),
    list = options(`${id}-list`, label, choose),
    element = menu(label, [list.element], text),
    [button, panel] = element.children;
  button.id = id;
  focusChosen(panel, ":checked");
  // With the arrow keys one looks at several: the pointer, or Enter, decides.
  panel.addEventListener("click", ({ detail, target }) => detail && target.closest(".option") && panel.hidePopover());
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    panel.hidePopover();
  });
  const show = (rows, chosen) => {
    list.show(rows, chosen);
    // One that is offered no more stays chosen.
    const before = button.value === chosen ? text.textContent : chosen;
    text.textContent = rows.find(([value]) => value === chosen)?.[1] ?? before;
    button.value = chosen;
    button.ariaLabel = `${label}: ${text.textContent}`;
  };
  return { element, show };
}

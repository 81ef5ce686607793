// Elements from values. Text is always text: nothing here parses HTML.

/** An element. props: attributes, `on...` functions, `class`, `dataset`; what is null or false is left out. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(made.dataset, value);
    else if (name in made && name !== "list" && name !== "form") made[name === "class" ? "className" : name] = value;
    else made.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Replace an element's children, which may be in lists; what is null or false is left out. */
export const fill = (where, ...children) =>
  where.replaceChildren(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );

// What each element was filled from.
const drawn = new WeakMap();

/** Fill an element, and return true, where what it shows has changed: else what the focus is on stays. */
export function redraw(where, key, make) {
  const now = JSON.stringify(key);
  if (drawn.get(where) === now) return false;
  drawn.set(where, now);
  fill(where, make());
  return true;
}

/** Make these the children of a list. One that stays is never taken out: a menu in it would close. */
export function arrange(list, wanted) {
  for (const one of [...list.children]) if (!wanted.includes(one)) one.remove();
  wanted.forEach((one, at) => {
    if (list.children[at] !== one) list.insertBefore(one, list.children[at] ?? null);
  });
}

/** Disable a control, or enable it. other: gets the focus that a disabled one loses. */
export function disable(control, isDisabled, other = null) {
  const had = document.activeElement === control;
  control.disabled = isDisabled;
  if (had && isDisabled) other?.focus();
}

/** Let what is chosen have the focus when a panel opens. The event comes later than the panel: somebody may be in it already. */
export function focusChosen(panel, chosen) {
  panel.addEventListener("toggle", ({ newState }) => {
    if (newState === "open" && !panel.contains(document.activeElement)) panel.querySelector(chosen)?.focus();
  });
}

/** A wide element that scrolls by itself. */
export const scrolling = (label, child) =>
  el("div", { class: "scroll", tabIndex: 0, role: "region", ariaLabel: label }, child);

/** A table. heads: of its columns, or none. rows: lists of cells, of which the first is a heading. */
export const table = (heads, rows) =>
  el(
    "table",
    {},
    heads.length ? el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))) : null,
    el(
      "tbody",
      {},
      ...rows.map(([first, ...others]) =>
        el("tr", {}, el("th", { scope: "row" }, first), ...others.map((cell) => el("td", {}, cell))),
      ),
    ),
  );

export const $ = (id) => document.getElementById(id);

/** Show a text in a status element, which screen readers announce. kind: "", "good" or "bad". */
export function setStatus(where, text, kind = "") {
  where.textContent = text;
  where.dataset.kind = kind;
}

// What is said where the server does not answer, and where it stopped in a text: it holds until the server answers again.
export const NO_ANSWER = "the server does not answer";
export const STOPPED = "The server stopped while writing.";

/** Take away what says so. */
export function clearNoAnswer() {
  for (const one of document.querySelectorAll('[data-kind="bad"]')) {
    if (!one.textContent.includes(NO_ANSWER) && !one.textContent.includes(STOPPED)) continue;
    if (one.matches(".toast")) one.remove();
    else setStatus(one, "");
  }
}

let requireKey = () => {};
/** doing: called when the server answers that it needs its key. */
export function onKeyRequired(doing) {
  requireKey = doing;
}

/** `fetch` for JSON: the answer, or an Error with the server's message. */
export async function call(path, { method = "GET", json, form, keepalive = false } = {}) {
  const headers = json === undefined ? {} : { "Content-Type": "application/json" };
  const body = json === undefined ? form : JSON.stringify(json);
  let answer;
  try {
    answer = await fetch(path, { method, headers, body, keepalive: keepalive && body.length < 60_000 });
  } catch {
    throw new Error(NO_ANSWER);
  }
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  if (answer.status === 401) requireKey();
  const error = new Error(said.error?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  // For programs: one status may have several reasons.
  error.code = said.error?.code ?? null;
  throw error;
}

/** Call `doing` once `milliseconds` have passed without another call. */
export function debounce(doing, milliseconds) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => doing(...given), milliseconds);
  };
}

// Confirmations that are pending, and until when: lists may be redrawn meanwhile.
const pending = new Map();
const CONFIRM_MS = 4000;

/** A button that asks for confirmation before it acts. what: identifies the thing it acts on. */
export function confirming(button, what, doing) {
  const text = button.textContent;
  let timer;
  const reset = () => {
    clearTimeout(timer);
    pending.delete(what);
    button.dataset.sure = "";
    button.textContent = text;
  };
  const ask = () => {
    button.dataset.sure = "yes";
    button.textContent = "Really delete?";
    timer = setTimeout(reset, pending.get(what) - Date.now());
  };
  button.addEventListener("click", () => {
    if (button.dataset.sure === "yes") {
      reset();
      doing();
      return;
    }
    pending.set(what, Date.now() + CONFIRM_MS);
    ask();
  });
  if (pending.get(what) > Date.now()) ask();
  return button;
}

/** A share for people. */
export const percent = (share) => `${Math.round(100 * share)}%`;

/** Bytes for people. */
export const bytes = (count) => (count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${Math.round(count / 1e6)} MB`);

/** Seconds for people. */
export function clock(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  return whole < 3600
    ? `${Math.floor(whole / 60)} min ${whole % 60} s`
    : `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

/** A time in seconds since 1970, for people. */
export function ago(seconds) {
  const date = new Date(1000 * seconds),
    now = new Date(),
    passed = (now - date) / 1000;
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (date.toDateString() === now.toDateString())
    return date.toLocaleTimeString([], { hour: "numeric", minute: "2-digit" });
  const year = date.getFullYear() === now.getFullYear() ? {} : { year: "numeric" };
  return date.toLocaleDateString([], { day: "numeric", month: "short", ...year });
}

/** Whether a page of this document is shown. */
export const shown = (page) => !document.hidden && !$(page).hidden;

/** An element of an SVG. */
export function svg(tag, props, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Save a Blob as a file of the user's. */
export function download(name, content) {
  const url = URL.createObjectURL(content);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Storage of this browser, and of this tab over a reload. Where there is none, nothing is stored. */
export const local = box(() => localStorage);
export const tab = box(() => sessionStorage);

function box(storage) {
  // Storage may be full, or forbidden.
  const tried = (doing, otherwise = null) => {
    try {
      return doing() ?? otherwise;
    } catch {
      return otherwise;
    }
  };
  return {
    get: (name, otherwise = null) => tried(() => JSON.parse(storage().getItem(`sordino:${name}`)), otherwise),
    /** Whether it is stored now. */
    set: (name, value) =>
      tried(() => {
        storage().setItem(`sordino:${name}`, JSON.stringify(value));
        return true;
      }, false),
    names: () =>
      tried(
        () =>
          Object.keys(storage())
            .filter((name) => name.startsWith("sordino:"))
            .map((name) => name.slice("sordino:".length)),
        [],
      ),
    remove: (name) => tried(() => storage().removeItem(`sordino:${name}`)),
  };
}

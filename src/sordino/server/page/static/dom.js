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

/** Replace an element's children; what is null or false is left out. */
export const fill = (where, ...children) =>
  where.replaceChildren(
    ...children.flat().filter((child) => child !== null && child !== undefined && child !== false),
  );

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

let requireKey = () => {};
/** doing: called when the server answers that it needs its key. */
export function onKeyRequired(doing) {
  requireKey = doing;
}

/** `fetch` for JSON: the answer, or an Error with the server's message. */
export async function call(path, { method = "GET", json, form, keepalive = false } = {}) {
  const headers = json === undefined ? {} : { "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers,
      body: json === undefined ? form : JSON.stringify(json),
      keepalive: keepalive && JSON.stringify(json).length < 60_000,
    });
  } catch {
    throw new Error("the server does not answer");
  }
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  if (answer.status === 401) requireKey();
  const error = new Error(body.error?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  // For programs: one status may have several reasons.
  error.code = body.error?.code ?? null;
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

/** Whether a page of this document is shown. */
export const shown = (page) => !document.hidden && !$(page).hidden;

/** An element of an SVG. */
export function svg(tag, props, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** An SVG of lines over x. lines: {class, points: [[x, y], ...]} each. */
export function chart(lines, { label, className = "chart", least = null } = {}) {
  const all = lines.flatMap((line) => line.points);
  const [width, height, left, bottom] = [600, 180, 44, 18];
  const picture = svg("svg", {
    class: className,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": label,
  });
  if (!all.length) return picture;
  const xs = all.map(([x]) => x),
    ys = all.map(([, y]) => y);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const [low, high] = [least ?? Math.min(...ys), Math.max(...ys)];
  const [y0, y1] = high > low ? [low, high] : [low - (least === null ? 0.5 : 0), low + 0.5];
  const right = (x) => left + ((x - x0) / (x1 - x0 || 1)) * (width - left - 6);
  const down = (y) => 6 + (1 - (y - y0) / (y1 - y0)) * (height - bottom - 12);
  const place = ([x, y]) => `${right(x).toFixed(1)},${down(y).toFixed(1)}`;
  picture.append(
    svg("line", { class: "axis", x1: left, y1: height - bottom, x2: width, y2: height - bottom }),
    svg("line", { class: "axis", x1: left, y1: 0, x2: left, y2: height - bottom }),
  );
  const format = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2));
  picture.append(
    svg("text", { x: 2, y: 4, "dominant-baseline": "hanging" }, format(y1)),
    svg("text", { x: 2, y: height - bottom - 4 }, format(y0)),
  );
  for (const { class: kind, points } of lines) {
    picture.append(
      svg("polyline", { class: kind, points: points.map(place).join(" "), "vector-effect": "non-scaling-stroke" }),
    );
  }
  return picture;
}

/** Save a text as a file of the user's. */
export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
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

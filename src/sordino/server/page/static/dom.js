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

/** Put these, and nothing else, into an element; what is null or false is left out. */
export const fill = (where, ...children) =>
  where.replaceChildren(
    ...children.flat().filter((child) => child !== null && child !== undefined && child !== false),
  );

export const $ = (id) => document.getElementById(id);

/** Say something that a screen reader reads too. kind: "", "good" or "bad". */
export function say(where, text, kind = "") {
  where.textContent = text;
  where.dataset.kind = kind;
}

let wantKey = () => {};
/** doing: called when the server refuses for want of its key. */
export function onKeyWanted(doing) {
  wantKey = doing;
}

/** `fetch` for JSON: the answer, or an Error with the server's own words. */
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
  const told = await answer.json().catch(() => ({}));
  if (answer.ok) return told;
  if (answer.status === 401) wantKey();
  const error = new Error(told.error?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  // Of OpenAI's shape of errors: what programs go by, where one status has several reasons.
  error.code = told.error?.code ?? null;
  throw error;
}

/** Call `doing` once `milliseconds` have passed without another call. */
export function later(doing, milliseconds) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => doing(...given), milliseconds);
  };
}

// What people were asked about, and until when: lists are drawn anew while they think.
const asked = new Map();
const THINK = 4000;

/** A button that does something for good asks once more first. what: names what it does it to. */
export function surely(button, what, doing) {
  const says = button.textContent;
  let timer;
  const calm = () => {
    clearTimeout(timer);
    asked.delete(what);
    button.dataset.sure = "";
    button.textContent = says;
  };
  const ask = () => {
    button.dataset.sure = "yes";
    button.textContent = "Really delete?";
    timer = setTimeout(calm, asked.get(what) - Date.now());
  };
  button.addEventListener("click", () => {
    if (button.dataset.sure === "yes") {
      calm();
      doing();
      return;
    }
    asked.set(what, Date.now() + THINK);
    ask();
  });
  if (asked.get(what) > Date.now()) ask();
  return button;
}

/** Bytes as people say them. */
export const bytes = (count) => (count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${Math.round(count / 1e6)} MB`);

/** Seconds as people say them. */
export function clock(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  return whole < 3600
    ? `${Math.floor(whole / 60)} min ${whole % 60} s`
    : `${Math.floor(whole / 3600)} h ${Math.round((whole % 3600) / 60)} min`;
}

/** Whether a page of this document is shown. */
export const shown = (page) => !document.hidden && !$(page).hidden;

/** An SVG of lines over x. lines: {class, points: [[x, y], ...]} each. */
export function chart(lines, { label, className = "chart", least = null } = {}) {
  const all = lines.flatMap((line) => line.points);
  const [width, height, left, bottom] = [600, 180, 44, 18];
  const svg = (tag, props, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(props)) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
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
  const said = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2));
  picture.append(
    svg("text", { x: 2, y: 4, "dominant-baseline": "hanging" }, said(y1)),
    svg("text", { x: 2, y: height - bottom - 4 }, said(y0)),
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

/** What this browser keeps, or what this tab keeps over a reload; one that keeps nothing loses only that. */
export const kept = box(() => localStorage);
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
    /** Whether it is kept now. */
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

// Connect: how other programs connect, which do, and the engine's load.

import { chart } from "./charts.js";
import { copier } from "./copy.js";
import { $, bytes, call, el, fill, offer, scrolling, shown, table } from "./dom.js";
import { live } from "./live.js";
import { programs } from "./programs.js";
import { toast } from "./toast.js";

const EVERY = 2000;
// Seconds that the load is shown of.
const SHOWN = 300;
const GRAPHS = {
  tokens: { title: "Tokens written", unit: "tokens per second", digits: 1 },
  rows: { title: "Running", unit: "requests", whole: true },
  waiting: { title: "Waiting", unit: "requests", whole: true },
  hits: { title: "Prefix cache hits", unit: "% of requests", most: 100 },
};

const points = Object.fromEntries(Object.keys(GRAPHS).map((name) => [name, []]));
let last = null;
// What the cards say now, so that they are not drawn anew under the pointer.
let drawn = "";
let isLocked = false;

export function startConnect() {
  $("connect").append(
    el("h2", {}, "Connect other programs"),
    el("p", { class: "soft" }, "Other programs can use the same model and library as this page, at the same time."),
    el("dl", { id: "addresses" }),
    el(
      "p",
      { class: "bar" },
      el(
        "label",
        {},
        "Server's default soft prompt ",
        el("select", { id: "connect-choice", onchange: ({ target }) => setDefault(target.value) }),
      ),
      el("small", { class: "soft" }, "For programs that cannot name one."),
    ),
    el("h2", {}, "Connected"),
    el("div", { id: "clients" }),
    el("h2", {}, "Steps for each program"),
    el("div", { id: "programs" }),
    el("p", { id: "programs-left", class: "soft", hidden: true }),
    el("h2", {}, "Load"),
    el("div", { id: "graphs" }),
    el("p", { id: "cache", class: "soft" }),
  );
  live.addEventListener("state", show);
  document.addEventListener("page", look);
  setInterval(look, EVERY);
}

async function setDefault(name) {
  const path = name ? "v1/soft_prompt/load" : "v1/soft_prompt/unload";
  const json = name ? { soft_prompt_name: name } : undefined;
  await call(path, { method: "POST", json }).catch((error) => toast(error.message, "bad"));
}

function show() {
  const { model, prompts, default: chosen } = live.state;
  const select = $("connect-choice");
  offer(select, [["", "none"], ...prompts.map((one) => [one.name, one.title])], chosen ?? "");
  select.disabled = !model;
  const here = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const base = model?.name ?? "MODEL",
    prompt = chosen ?? prompts[0]?.name;
  const values = { here, model: base, name: prompt ? `${base}:${prompt}` : base, key: isLocked ? "YOUR-KEY" : "none" };
  const chats = !model || model.chat,
    now = JSON.stringify([values, chats]);
  if (now === drawn) return;
  drawn = now;
  const pair = (term, value) => el("div", {}, el("dt", {}, term), el("dd", {}, el("code", {}, value), copier(value)));
  fill(
    $("addresses"),
    pair("OpenAI's API", `${here}/v1`),
    pair("KoboldAI's API", `${here}/api`),
    pair("KoboldCpp's API", here),
    model
      ? pair(prompt ? "Model with a soft prompt" : "Model", values.name)
      : el("div", {}, el("dt", {}, "Model"), el("dd", {}, "none is loaded; below, MODEL stands for its name")),
    el(
      "div",
      {},
      el("dt", {}, "Key"),
      el("dd", {}, isLocked ? "the one that the server was started with" : "not needed; any text works"),
    ),
  );
  const all = programs(values),
    left = all.filter((one) => one.chats && !chats);
  $("programs-left").hidden = !left.length;
  $("programs-left").textContent =
    `Left out, because ${base} has no chat template: ${left.map(({ title }) => title).join("; ")}.`;
  fill($("programs"), ...all.filter((one) => !left.includes(one)).map(card));
}

const card = ({ title, steps, code, after = [] }) =>
  el(
    "article",
    { class: "card", ariaLabel: title },
    el("h3", {}, title),
    stepList(steps),
    code && el("div", { class: "code" }, el("pre", { tabIndex: 0 }, code), copier(code, `the code for ${title}`)),
    after.map((step) => el("p", {}, ...stepOf(step))),
  );

/** steps: sentences, or [what, the value to copy]. */
const stepList = (steps) =>
  steps.length > 0 && el("ol", {}, ...steps.map((step) => el("li", {}, ...stepOf(step))));

const stepOf = (step) =>
  Array.isArray(step) ? [`${step[0]}: `, el("code", {}, step[1]), " ", copier(step[1])] : [step];

async function look() {
  if (!shown("connect")) return;
  try {
    const [text, { tabs, clients, key }] = await Promise.all([
      fetch("metrics").then((answer) => answer.text()),
      call("ui/clients"),
    ]);
    if (key !== isLocked) {
      isLocked = key;
      show();
    }
    draw(text);
    fill(
      $("clients"),
      clients.length
        ? scrolling("Programs", table(["Program", "API", "From", "Requests", "Last"], clients.map(clientCells)))
        : el("p", { class: "soft" }, "No other program in the last ten minutes."),
      el("p", { class: "soft" }, `${tabs} ${tabs === 1 ? "tab" : "tabs"} of this page open.`),
    );
  } catch {
    // The lamp shows that the server does not answer.
  }
}

const clientCells = ({ agent, api, host, requests, ago }) => [
  agent || "unknown program",
  api,
  host,
  String(requests),
  howLongAgo(ago),
];

function howLongAgo(seconds) {
  if (seconds < 5) return "now";
  if (seconds < 60) return "less than a minute ago";
  const minutes = Math.round(seconds / 60);
  return minutes === 1 ? "a minute ago" : `${minutes} minutes ago`;
}

function draw(text) {
  const values = Object.fromEntries(
    [...text.matchAll(/^(\S+?) ([\d.e+-]+)$/gm)].map(([, name, value]) => [name, Number(value)]),
  );
  const now = {
    at: performance.now() / 1000,
    written: values['sordino_tokens_total{kind="written"}'] ?? 0,
    hits: values.sordino_prefix_cache_hits ?? 0,
    misses: values.sordino_prefix_cache_misses ?? 0,
  };
  const add = (name, value) => {
    points[name].push([now.at, value]);
    while (points[name][0][0] < now.at - SHOWN) points[name].shift();
  };
  if (last && now.at > last.at) add("tokens", Math.max(0, now.written - last.written) / (now.at - last.at));
  add("rows", values.sordino_running ?? 0);
  add("waiting", values.sordino_waiting ?? 0);
  add("hits", now.hits + now.misses ? (100 * now.hits) / (now.hits + now.misses) : 0);
  last = now;
  fill($("graphs"), ...Object.entries(GRAPHS).map(([name, graph]) => drawGraph(points[name], graph, now.at)));
  const evicted = [values.sordino_prefix_cache_evictions ?? 0, values.sordino_text_cache_evictions ?? 0];
  $("cache").textContent =
    `Prefixes and texts cached: ${bytes(values.sordino_prefix_cache_bytes ?? 0)}; ` +
    `evicted: ${evicted[0]} prefixes, ${evicted[1]} texts.`;
}

function drawGraph(all, { title, unit, digits = 0, whole = false, most = 1 }, now) {
  const minutes = (seconds) => (seconds === 0 ? "now" : `${-seconds / 60} min ago`);
  return el(
    "figure",
    {},
    el("figcaption", {}, el("b", {}, title), ` ${all.at(-1)?.[1].toFixed(digits) ?? "-"} ${unit}`),
    chart([{ kind: "second", points: all.map(([at, value]) => [at - now, value]) }], {
      label: `${title}, ${unit}, in the last 5 minutes`,
      x: { least: -SHOWN, most: 0, at: [-SHOWN, -150, 0], format: minutes },
      y: { least: 0, most, whole },
    }),
  );
}

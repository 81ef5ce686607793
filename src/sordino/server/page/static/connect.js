// Addresses for other programs, the programs that called, and the engine's load.

import { $, bytes, call, chart, el, scrolling, shown, table } from "./dom.js";
import { live } from "./live.js";
import { copier } from "./prompts.js";

const EVERY = 2000;
const MOST_POINTS = 150;
const GRAPHS = {
  tokens: "Tokens per second",
  rows: "Running rows",
  waiting: "Waiting requests",
  hits: "Prefix cache hits, share of requests",
};
const DIGITS = { tokens: 1, rows: 0, waiting: 0, hits: 2 };

const points = Object.fromEntries(Object.keys(GRAPHS).map((name) => [name, []]));
let last = null;

export function startConnect() {
  const here = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const field = (name, value) => el("p", {}, `${name}: `, el("code", {}, value), " ", copier(value));
  $("connect").append(
    el("h2", {}, "Addresses"),
    el("p", {}, "They use the same model and library as this page, and write beside it."),
    field("OpenAI's clients, SillyTavern's Chat Completion or Text Completion (custom)", `${here}/v1`),
    field("KoboldAI's clients, SillyTavern's KoboldAI Classic", `${here}/api`),
    field("KoboldAI Lite, SillyTavern's KoboldCpp", here),
    el(
      "p",
      {},
      "OpenAI's clients choose a soft prompt by the model's name: ",
      el("code", { id: "connect-models" }),
      ". KoboldAI's clients use the server's default, which is now: ",
      el("b", { id: "connect-default" }),
      ".",
    ),
    el(
      "p",
      { class: "bar" },
      el(
        "label",
        {},
        "Server's default ",
        el("select", { id: "connect-choice", onchange: ({ target }) => setDefault(target.value) }),
      ),
    ),
    el("h2", {}, "Connected programs"),
    el("div", { id: "clients" }),
    el("h2", {}, "What the engine does"),
    el("div", { id: "graphs", class: "grid" }),
    el("p", { id: "cache", class: "soft" }),
  );
  live.addEventListener("state", show);
  document.addEventListener("page", look);
  setInterval(look, EVERY);
}

async function setDefault(name) {
  const path = name ? "v1/soft_prompt/load" : "v1/soft_prompt/unload";
  await call(path, { method: "POST", json: name ? { soft_prompt_name: name } : undefined }).catch(() => {});
}

function show() {
  const { model, prompts, default: chosen } = live.state;
  $("connect-models").textContent = model ? `${model.name}:${prompts[0]?.name ?? "NAME"}` : "MODEL:NAME";
  $("connect-default").textContent = chosen ?? "none";
  const select = $("connect-choice");
  select.replaceChildren(
    el("option", { value: "" }, "none"),
    ...prompts.map((one) => el("option", { value: one.name }, one.title)),
  );
  select.value = chosen ?? "";
  select.disabled = !model;
}

async function look() {
  if (!shown("connect")) return;
  try {
    const [text, { tabs, clients }] = await Promise.all([
      fetch("metrics").then((answer) => answer.text()),
      call("ui/clients"),
    ]);
    draw(text);
    $("clients").replaceChildren(
      el("p", {}, `${tabs} ${tabs === 1 ? "tab" : "tabs"} of this page.`),
      clients.length
        ? scrolling("Programs", table([], clients.map(clientCells)))
        : el("p", { class: "soft" }, "No other program in the last ten minutes."),
    );
  } catch {
    // The lamp shows that the server does not answer.
  }
}

const clientCells = ({ agent, api, host, requests, ago }) => [
  agent || "unknown program",
  api,
  host,
  `${requests} ${requests === 1 ? "request" : "requests"}, the last ${Math.round(ago)} s ago`,
];

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
    points[name].splice(0, points[name].length - MOST_POINTS);
  };
  if (last && now.at > last.at) add("tokens", Math.max(0, now.written - last.written) / (now.at - last.at));
  add("rows", values.sordino_running ?? 0);
  add("waiting", values.sordino_waiting ?? 0);
  add("hits", now.hits + now.misses ? now.hits / (now.hits + now.misses) : 0);
  last = now;
  $("graphs").replaceChildren(
    ...Object.entries(GRAPHS).map(([name, label]) =>
      el(
        "figure",
        {},
        el("figcaption", {}, `${label}: ${points[name].at(-1)?.[1].toFixed(DIGITS[name]) ?? "-"}`),
        chart([{ class: "second", points: points[name] }], { label, least: 0 }),
      ),
    ),
  );
  const evicted = [values.sordino_prefix_cache_evictions ?? 0, values.sordino_text_cache_evictions ?? 0];
  $("cache").textContent =
    `Prefixes and texts cached: ${bytes(values.sordino_prefix_cache_bytes ?? 0)}; ` +
    `evicted: ${evicted[0]} prefixes, ${evicted[1]} texts.`;
}

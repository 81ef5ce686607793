// Connect: how other programs connect, which do, and the engine's load.

import { chart } from "./charts.js";
import { copier } from "./copy.js";
import { $, ago, bytes, call, el, fill, redraw, scrolling, shown, table } from "./dom.js";
import { live } from "./live.js";
import { chooser } from "./options.js";
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
let isLocked = false;
const standard = chooser("connect-choice", "Default soft prompt", setDefault);

export function startConnect() {
  $("connect").append(
    el("h2", {}, "Connect other programs"),
    el("p", { class: "soft" }, "Other programs can use the same model and library as this page, at the same time."),
    el("dl", { id: "addresses" }),
    el(
      "p",
      { class: "bar" },
      el("span", { class: "soft" }, "Default soft prompt"),
      standard.element,
      el("small", { class: "soft" }, "For programs that cannot name one."),
    ),
    el("h2", {}, "Steps for each program"),
    el("div", { id: "programs" }),
    el("p", { id: "programs-left", class: "soft", hidden: true }),
    el("h2", {}, "Connected"),
    el("div", { id: "clients" }),
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
  standard.show([["", "None"], ...prompts.map((one) => [one.name, one.title])], chosen ?? "");
  $("connect-choice").disabled = !model;
  const here = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const base = model?.name ?? "MODEL",
    prompt = chosen ?? prompts[0]?.name;
  const values = { here, model: base, name: prompt ? `${base}:${prompt}` : base, key: isLocked ? "YOUR-KEY" : "none" };
  const chats = !model || model.chat;
  const pair = (term, ...value) => el("div", {}, el("dt", {}, term), el("dd", {}, ...value));
  const addresses = () => [
    pair("OpenAI API", copied(`${here}/v1`)),
    pair("KoboldAI API", copied(`${here}/api`)),
    pair("KoboldCpp API", copied(here)),
    model
      ? pair(prompt ? "Model with a soft prompt" : "Model", copied(values.name))
      : pair("Model", "None is loaded. Below, MODEL stands for its name."),
    pair("Key", isLocked ? "The one that the server was started with" : "Not needed: any text works"),
  ];
  // Not under the pointer.
  if (!redraw($("addresses"), [values, chats], addresses)) return;
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

const stepOf = (step) => (Array.isArray(step) ? [`${step[0]}: `, copied(step[1])] : [step]);

const copied = (value) => el("span", { class: "value" }, el("code", {}, value), copier(value));

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

const clientCells = ({ agent, api, host, requests, ago: seconds }) => [
  agent || "unknown program",
  api,
  host,
  String(requests),
  ago(Date.now() / 1000 - seconds),
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

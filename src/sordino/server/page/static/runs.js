// Training runs: the list of them, and what the server knows of each.

import { $, arrange, call, clock, el, percent, setStatus, shown } from "./dom.js";
import { route } from "./route.js";

const EVERY = 1000;

/** {job, events, results} by the job's id, newest first. events, results: of runs that are open or running. */
export let runs = new Map();
// The run that was open when the list was last read: a list from before may lack a newer one.
let readFor = null;
let changed = () => {};
let polling = null;

/** doing: called when runs may have changed. */
export function startRuns(doing) {
  changed = doing;
  document.addEventListener("page", () => shown("train") && poll());
  setInterval(() => shown("train") && poll(), EVERY);
}

/** Whether the list was read since the open run was opened. */
export const isKnown = () => readFor === route().rest;

/** The jobs that have a result. */
export const finished = () => [...runs.values()].map((run) => run.job).filter((job) => job.state === "done");

/** Read the list and the open run again. */
export function poll() {
  polling ??= read().finally(() => {
    polling = null;
  });
  return polling;
}

async function read() {
  const { rest } = route();
  try {
    const jobs = await call("ui/jobs");
    runs = new Map(jobs.map((job) => [job.id, { events: [], results: null, ...runs.get(job.id), job }]));
    readFor = rest;
    for (const run of runs.values()) if (moves(run.job) || run.job.id === route().rest) await follow(run);
    draw();
    setStatus($("runs-status"), "");
    changed();
  } catch (error) {
    // Where the server does not answer, the lamp says so.
    setStatus($("runs-status"), error.status ? error.message : "", "bad");
  }
}

/** The events since the last time, and the results. A run that is over is read once. */
async function follow(run) {
  if (run.whole === run.job.state) return;
  const news = await call(`ui/jobs/${run.job.id}?after=${run.events.length}`);
  // A run that resumes has fewer events than before.
  run.events = [...run.events.slice(0, news.after), ...news.events];
  run.results = news.results;
  run.whole = moves(news) || news.state === "waiting" ? null : news.state;
}

const moves = ({ state }) => state === "running" || state === "stopping";

const NAMES = {
  waiting: "Queued",
  running: "Training",
  stopping: "Stopping after this step",
  stopped: "Stopped",
  failed: "Failed",
  done: "Done",
};
const KINDS = { done: "good", failed: "bad" };

/** What a run does, and how long it still takes: {what, text, share}; what: the beginning of text. */
export function progressOf({ job, events }) {
  const steps = events.filter((one) => one.kind === "step");
  const at = steps.at(-1)?.step ?? 0;
  let parts = [NAMES[job.state]];
  if (job.state === "running" && job.now) {
    const { what, done, total, left } = job.now;
    parts[0] = what;
    parts.push(total ? percent(done / total) : "gives way to other work on this machine");
    if (left > 1) parts.push(`about ${clock(left)} left`);
    return { what, text: parts.join(" · "), share: total ? done / total : null };
  }
  if (job.state === "running" && !at) parts = ["Preparing the first step", "gives way to other work on this machine"];
  if (at && job.state !== "done") parts.push(`step ${at} of ${job.steps}`);
  if (job.state === "running" && at) {
    const recent = steps.slice(-8),
      seconds = recent.reduce((sum, one) => sum + one.seconds, 0);
    parts.push(
      `${Math.round(recent.reduce((sum, one) => sum + one.tokens, 0) / seconds)} tokens/s`,
      at < job.steps
        ? `about ${clock(((job.steps - at) * seconds) / recent.length)} left, then the evaluation`
        : "evaluating on the held-out texts",
    );
  }
  return { what: parts[0], text: parts.join(" · "), share: job.steps && at ? at / job.steps : null };
}

/** In place: a link that has the focus keeps it. */
function draw() {
  const list = $("runs");
  const items = new Map([...list.children].map((one) => [one.dataset.id, one]));
  const wanted = [...runs.values()].map((run) => item(items.get(run.job.id) ?? newItem(run.job), run));
  arrange(list, wanted);
  $("runs-none").hidden = wanted.length > 0;
}

const newItem = ({ id }) =>
  el(
    "li",
    { dataset: { id } },
    el("a", { href: `#train/${id}` }, el("b"), el("small"), el("progress", { max: 1, ariaLabel: "Steps done" })),
  );

function item(element, { job, events }) {
  const link = element.firstElementChild,
    [name, state, bar] = link.children;
  name.textContent = job.name || "voice";
  const { what, share } = progressOf({ job, events });
  state.textContent = what;
  state.dataset.kind = KINDS[job.state] ?? "";
  bar.hidden = !moves(job);
  bar.value = share ?? 0;
  if (route().rest === job.id) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
  return element;
}

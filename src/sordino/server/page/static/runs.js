// Training runs: progress, curves, samples and results.

import { $, call, chart, clock, confirming, el, fill, setStatus, shown } from "./dom.js";
import { choice } from "./status.js";
import { onPage } from "./recipe.js";

const EVERY = 1000;

let runs = new Map();
// The page Train: again(), train on a run's texts again; goOn(), begin from its result; changed(), called when the
// list may have changed.
let host;

export function startRuns(page) {
  host = page;
  document.addEventListener("page", () => {
    if (shown("train")) poll();
  });
  setInterval(() => shown("train") && poll(), EVERY);
}

/** The jobs that have a result. */
export const finished = () => [...runs.values()].map((run) => run.job).filter((job) => job.state === "done");

let polling = false;

export async function poll() {
  if (polling) return;
  polling = true;
  try {
    const all = await call("ui/jobs");
    const known = runs;
    runs = new Map(
      all.map((job) => [job.id, known.get(job.id) ?? { job, events: [], card: el("article", { class: "run" }) }]),
    );
    for (const job of all) await follow(runs.get(job.id), job);
    const cards = all.map((job) => runs.get(job.id).card);
    const places = [...$("runs").children];
    // Replaced only when the list changes, so that the focus stays.
    if (cards.length !== places.length || cards.some((card, at) => card !== places[at])) {
      $("runs").replaceChildren(...(cards.length ? cards : [el("p", { class: "soft" }, "None yet.")]));
    }
    host.changed();
  } catch (error) {
    setStatus($("train-status"), error.status ? error.message : "", "bad");
  } finally {
    polling = false;
  }
}

async function follow(run, job) {
  const moving = ["running", "stopping"].includes(job.state);
  const changed = JSON.stringify(job) !== JSON.stringify(run.job) || !run.card.children.length;
  if (moving || changed || !run.whole) {
    const news = await call(`ui/jobs/${job.id}?after=${run.events.length}`);
    if (news.after !== run.events.length) run.events = [];
    const more = news.events.length > 0;
    run.events.push(...news.events);
    run.whole = !moving;
    run.job = job;
    if (more || changed) draw(run);
  }
}

const STATES = {
  waiting: "waits for its turn",
  running: "training",
  stopping: "stopping after this step",
  stopped: "stopped",
  failed: "failed",
  done: "done",
};

// What a run does before its first step.
const FIRST = {
  train: "reading the texts and measuring this machine",
  distil: "writing with the text in front",
};

function draw({ job, events, card }) {
  const steps = events.filter((one) => one.kind === "step"),
    validations = events.filter((one) => one.kind === "validation"),
    samples = events.filter((one) => one.kind === "sample");
  const at = steps.at(-1)?.step ?? 0;
  const recent = steps.slice(-8),
    seconds = recent.reduce((sum, one) => sum + one.seconds, 0);
  const parts = [STATES[job.state]];
  if (job.state === "running" && !at) parts.push(FIRST[job.command]);
  if (at) parts.push(`step ${at} of ${job.steps}`);
  if (job.state === "running" && seconds)
    parts.push(
      `${Math.round(recent.reduce((sum, one) => sum + one.tokens, 0) / seconds)} tokens/s`,
      at < job.steps
        ? `about ${clock(((job.steps - at) * seconds) / recent.length)} left`
        : "measuring on the held-out texts",
    );
  if (validations.length) parts.push(`validation loss ${validations.at(-1).loss.toFixed(3)}`);
  card.setAttribute("aria-label", `Run ${job.name}`);
  const open = card.querySelector("details")?.open ?? true;
  fill(
    card,
    el("h3", {}, job.name || "voice"),
    el("p", { class: "state" }, parts.join("; ")),
    job.error ? el("p", { dataset: { kind: "bad" } }, onPage(job)) : null,
    job.steps && !["done"].includes(job.state)
      ? el("progress", { max: job.steps, value: at, ariaLabel: "Steps done" })
      : null,
    steps.length > 1
      ? chart(
          [
            { class: "first", points: steps.map((one) => [one.step, one.loss]) },
            { class: "second", points: validations.map((one) => [one.step, one.loss]) },
          ],
          { label: `Loss of ${job.name}: thin each step, thick validation` },
        )
      : null,
    samples.length
      ? el(
          "details",
          { open },
          el("summary", {}, `The voice arrives: ${samples.length} ${samples.length === 1 ? "sample" : "samples"}`),
          ...samples.map((one) =>
            el(
              "p",
              { class: "sample" },
              el("b", {}, `step ${one.step}: `),
              el("span", { class: "soft" }, one.prompt),
              one.text,
            ),
          ),
        )
      : null,
    el("p", { class: "bar" }, ...actions(job)),
    el("p", { class: "run-status", role: "status" }),
  );
}

function actions(job) {
  const path = `ui/jobs/${job.id}`;
  const button = (label, doing, kind = "") => el("button", { type: "button", class: kind, onclick: doing }, label);
  const post = (what) => async () => {
    try {
      await call(`${path}/${what}`, { method: "POST", json: {} });
    } catch (error) {
      notify(job, error.message, "bad");
    }
    poll();
  };
  const some = [];
  if (job.state === "running") some.push(button("Stop", post("stop")));
  if (job.state === "waiting") some.push(button("Take it out of the queue", post("stop")));
  if (["stopped", "failed"].includes(job.state))
    some.push(button(job.checkpoint ? "Resume" : "Begin again", post("resume"), "main"));
  if (job.state === "done") {
    some.push(
      button("Try it", () => install(job, true), "main"),
      button("Add to library", () => install(job, false)),
      el("a", { class: "button", href: `${path}/file`, download: "" }, "Download"),
      button("Continue with more data", () => host.goOn(job)),
    );
  }
  if (job.report) some.push(el("a", { class: "button", href: `${path}/report`, target: "_blank" }, "Report"));
  if (job.command === "train" && ["stopped", "failed", "done"].includes(job.state))
    some.push(button("Train again with other settings", () => host.again(job)));
  if (job.state !== "waiting") some.push(el("a", { class: "button", href: `${path}/log`, target: "_blank" }, "Log"));
  if (!["running", "stopping"].includes(job.state))
    some.push(
      confirming(el("button", { type: "button" }, "Delete"), path, async () => {
        await call(path, { method: "DELETE" }).catch((error) => notify(job, error.message, "bad"));
        poll();
      }),
    );
  return some;
}

async function install(job, tries) {
  try {
    const { id } = await call(`ui/jobs/${job.id}/install`, { method: "POST", json: {} });
    notify(job, `In the library as ${id}.`, "good");
    if (tries) {
      choice.choose(id);
      location.hash = "#write";
    }
  } catch (error) {
    notify(job, error.message, "bad");
  }
}

/** Show a status in a run's card. */
export function notify(job, text, kind) {
  const where = runs.get(job.id)?.card.querySelector(".run-status");
  if (where) setStatus(where, text, kind);
}

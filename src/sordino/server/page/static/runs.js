// Training runs as they go: their curves, samples and ends.

import { $, call, chart, clock, el, fill, say, shown, surely } from "./dom.js";
import { choice } from "./status.js";
import { onPage } from "./recipe.js";

const EVERY = 1000;

let runs = new Map();
// Of the page: again, train on a run's texts again; goOn, begin from its result; changed, is called when the list may
// be another.
let host;

export function startRuns(page) {
  host = page;
  document.addEventListener("page", () => {
    if (shown("train")) poll();
  });
  setInterval(() => shown("train") && poll(), EVERY);
}

/** What is known of the runs that have a result. */
export const finished = () => [...runs.values()].map((run) => run.told).filter((told) => told.state === "done");

let polling = false;

export async function poll() {
  if (polling) return;
  polling = true;
  try {
    const all = await call("ui/jobs");
    const known = runs;
    runs = new Map(
      all.map((told) => [told.id, known.get(told.id) ?? { told, events: [], card: el("article", { class: "run" }) }]),
    );
    for (const told of all) await follow(runs.get(told.id), told);
    const cards = all.map((told) => runs.get(told.id).card);
    const places = [...$("runs").children];
    // Moved only where the list is another: what has the focus keeps it.
    if (cards.length !== places.length || cards.some((card, at) => card !== places[at])) {
      $("runs").replaceChildren(...(cards.length ? cards : [el("p", { class: "soft" }, "None yet.")]));
    }
    host.changed();
  } catch (error) {
    say($("train-told"), error.status ? error.message : "", "bad");
  } finally {
    polling = false;
  }
}

async function follow(run, told) {
  const moving = ["running", "stopping"].includes(told.state);
  const changed = JSON.stringify(told) !== JSON.stringify(run.told) || !run.card.children.length;
  if (moving || changed || !run.whole) {
    const news = await call(`ui/jobs/${told.id}?after=${run.events.length}`);
    if (news.after !== run.events.length) run.events = [];
    const more = news.events.length > 0;
    run.events.push(...news.events);
    run.whole = !moving;
    run.told = told;
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

function draw({ told, events, card }) {
  const steps = events.filter((one) => one.kind === "step"),
    validations = events.filter((one) => one.kind === "validation"),
    samples = events.filter((one) => one.kind === "sample");
  const at = steps.at(-1)?.step ?? 0;
  const recent = steps.slice(-8),
    seconds = recent.reduce((sum, one) => sum + one.seconds, 0);
  const parts = [STATES[told.state]];
  if (told.state === "running" && !at) parts.push("reading the texts and measuring this machine");
  if (at) parts.push(`step ${at} of ${told.steps}`);
  if (told.state === "running" && seconds)
    parts.push(
      `${Math.round(recent.reduce((sum, one) => sum + one.tokens, 0) / seconds)} tokens/s`,
      at < told.steps
        ? `about ${clock(((told.steps - at) * seconds) / recent.length)} left`
        : "measuring on the held-out texts",
    );
  if (validations.length) parts.push(`validation loss ${validations.at(-1).loss.toFixed(3)}`);
  card.setAttribute("aria-label", `Run ${told.name}`);
  const open = card.querySelector("details")?.open ?? true;
  fill(
    card,
    el("h3", {}, told.name || "voice"),
    el("p", { class: "state" }, parts.join("; ")),
    told.error ? el("p", { dataset: { kind: "bad" } }, onPage(told)) : null,
    told.steps && !["done"].includes(told.state)
      ? el("progress", { max: told.steps, value: at, ariaLabel: "Steps done" })
      : null,
    steps.length > 1
      ? chart(
          [
            { class: "first", points: steps.map((one) => [one.step, one.loss]) },
            { class: "second", points: validations.map((one) => [one.step, one.loss]) },
          ],
          { label: `Loss of ${told.name}: thin each step, thick validation` },
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
    el("p", { class: "bar" }, ...actions(told)),
    el("p", { class: "told", role: "status" }),
  );
}

function actions(told) {
  const path = `ui/jobs/${told.id}`;
  const button = (says, doing, kind = "") => el("button", { type: "button", class: kind, onclick: doing }, says);
  const post = (what) => async () => {
    try {
      await call(`${path}/${what}`, { method: "POST", json: {} });
    } catch (error) {
      tell(told, error.message, "bad");
    }
    poll();
  };
  const some = [];
  if (told.state === "running") some.push(button("Stop", post("stop")));
  if (told.state === "waiting") some.push(button("Take it out of the queue", post("stop")));
  if (["stopped", "failed"].includes(told.state))
    some.push(button(told.checkpoint ? "Resume" : "Begin again", post("resume"), "main"));
  if (told.state === "done") {
    some.push(
      button("Try it", () => keep(told, true), "main"),
      button("Add to library", () => keep(told, false)),
      el("a", { class: "button", href: `${path}/file`, download: "" }, "Download"),
      button("Continue with more data", () => host.goOn(told)),
    );
  }
  if (told.report) some.push(el("a", { class: "button", href: `${path}/report`, target: "_blank" }, "Report"));
  if (["stopped", "failed", "done"].includes(told.state))
    some.push(button("Train again with other settings", () => host.again(told)));
  if (told.state !== "waiting") some.push(el("a", { class: "button", href: `${path}/log`, target: "_blank" }, "Log"));
  if (!["running", "stopping"].includes(told.state))
    some.push(
      surely(el("button", { type: "button" }, "Delete"), path, async () => {
        await call(path, { method: "DELETE" }).catch((error) => tell(told, error.message, "bad"));
        poll();
      }),
    );
  return some;
}

async function keep(told, tries) {
  try {
    const { id } = await call(`ui/jobs/${told.id}/keep`, { method: "POST", json: {} });
    tell(told, `In the library as ${id}.`, "good");
    if (tries) {
      choice.choose(id);
      location.hash = "#write";
    }
  } catch (error) {
    tell(told, error.message, "bad");
  }
}

/** Say something at a run's card. */
export function tell(told, text, kind) {
  const where = runs.get(told.id)?.card.querySelector(".told");
  if (where) say(where, text, kind);
}

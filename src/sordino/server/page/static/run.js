// The page of a training run: what it does, its curve, its samples, and at the end what the result is worth.

import { chart } from "./charts.js";
import { call, confirming, el, fill, redraw, scrolling, setStatus, table } from "./dom.js";
import { canLoad } from "./fit.js";
import { live } from "./live.js";
import { menu } from "./menu.js";
import { load } from "./models.js";
import { onPage } from "./recipe.js";
import { poll, progressOf } from "./runs.js";
import { choice } from "./status.js";

// So many texts are named; of more, their number is said.
const FEW = 3;
// The curve of the training loss is a mean around each step, over this share of all.
const SMOOTHED_SHARE = 12;

/** doing: {again(job), goOn(job)}. Returns {element, show(id, run, {isKnown})}; run: as in runs.js, or undefined. */
export function runPage(doing) {
  const name = el("h2"),
    state = el("p", { class: "state", role: "status" }),
    buttons = el("div", { class: "bar run-actions" }),
    status = el("p", { class: "run-status", role: "status" }),
    bar = el("progress", { max: 1, ariaLabel: "Progress" }),
    error = el("p", { class: "notice", dataset: { kind: "bad" } }),
    verdict = el("div", { class: "verdict" }),
    curve = el("div", { class: "curve" }),
    samples = el("div", { class: "samples" }),
    numbers = el("div");
  const element = el(
    "article",
    { id: "run", class: "run", hidden: true },
    el("header", { class: "between" }, el("div", {}, name, state), buttons),
    status,
    bar,
    error,
    verdict,
    el("div", { class: "columns" }, curve, samples),
    numbers,
  );
  const say = (text, kind = "", button = null) => {
    setStatus(status, text, kind);
    if (button) status.append(" ", button);
  };
  const parts = [buttons, verdict, curve, samples, numbers];
  let open = null;

  function show(id, run, { isKnown }) {
    element.hidden = !id;
    if (!id) return;
    if (open !== id) {
      open = id;
      say("");
    }
    if (!run) {
      name.textContent = isKnown ? "This run is gone" : "Reading the runs ...";
      fill(state, isKnown ? el("a", { href: "#train" }, "Train a new soft prompt") : "");
      for (const one of [bar, error, ...parts]) one.hidden = true;
      return;
    }
    draw(run);
  }

  function draw(run) {
    const { job, events, results } = run;
    const { text, share } = progressOf(run);
    for (const one of parts) one.hidden = false;
    element.setAttribute("aria-label", `Run ${job.name}`);
    name.textContent = job.name || "voice";
    state.textContent = text;
    bar.hidden = !["running", "stopping"].includes(job.state);
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
    error.hidden = !job.error;
    error.textContent = job.error ? onPage(job) : "";
    redraw(buttons, [job.id, job.state, job.checkpoint, job.report], () => actions(job, doing, say));
    const steps = events.filter((one) => one.kind === "step"),
      losses = events.filter((one) => one.kind === "validation"),
      written = events.filter((one) => one.kind === "sample");
    const counts = [job.id, steps.length, losses.length, job.steps];
    redraw(curve, counts, () => steps.length > 1 && lossChart(job, steps, losses));
    if (redraw(samples, [job.id, written.length, Boolean(results)], () => timeline(written, results)))
      samples.lastElementChild?.scrollTo(0, samples.lastElementChild.scrollHeight);
    redraw(verdict, [job.id, Boolean(results), job.state], () => job.state === "done" && verdictOf(results));
    redraw(numbers, [Boolean(results), job.id], () => [results && measurements(results), about(job)]);
  }

  return { element, show };
}

// What can be done with it ----------------------------------------------------------------------------------------

function actions(job, doing, say) {
  const path = `ui/jobs/${job.id}`;
  const tried = (work) => async () => {
    try {
      await work();
    } catch (error) {
      say(error.message, "bad");
    }
  };
  const button = (label, work, kind = "") =>
    el("button", { type: "button", class: kind, onclick: tried(work) }, label);
  const post = (what) => async () => {
    await call(`${path}/${what}`, { method: "POST", json: {} });
    await poll();
  };
  const add = async () => {
    const { id } = await call(`${path}/install`, { method: "POST", json: {} });
    say(`In the library as ${id}.`, "good");
    return id;
  };
  const use = async () => {
    const id = await add();
    if (!canLoad(await call(`ui/prompts/${encodeURIComponent(id)}`))) {
      const loaded = live.state?.model ? `${live.state.model.name} is loaded` : "no model is loaded";
      const text = `It is for ${job.model}, and ${loaded}. Load ${job.model}, then try it.`;
      say(text, "", el("button", { type: "button", onclick: () => load(job.model) }, `Load ${job.model}`));
      return;
    }
    choice.choose(id);
    location.hash = "#write";
  };
  const over = ["stopped", "failed", "done"].includes(job.state);
  const remove = async () => {
    await call(path, { method: "DELETE" });
    location.hash = "#train";
    await poll();
  };
  return [
    job.state === "running" && button("Stop", post("stop")),
    job.state === "waiting" && button("Remove from the queue", post("stop")),
    ["stopped", "failed"].includes(job.state) &&
      button(job.checkpoint ? "Resume" : "Start again", post("resume"), "main"),
    job.state === "done" && [
      button("Try it", use, "main"),
      button("Add to library", add),
      el("a", { class: "button", href: `${path}/file`, download: "" }, "Download"),
    ],
    job.report && el("a", { class: "button", href: `${path}/report`, target: "_blank" }, "Report"),
    menu("Actions", [
      job.state === "done" ? button("Continue with more data", async () => doing.goOn(job)) : null,
      job.command === "train" && over ? button("Train again with other settings", () => doing.again(job)) : null,
      job.state !== "waiting" ? el("a", { href: `${path}/log`, target: "_blank" }, "Log") : null,
      over || job.state === "waiting"
        ? confirming(el("button", { type: "button" }, "Delete"), path, tried(remove))
        : null,
    ].filter(Boolean)),
  ].flat();
}

// What is shown of it ---------------------------------------------------------------------------------------------

function lossChart(job, steps, losses) {
  const points = steps.map((one) => [one.step, one.loss]);
  const measured = losses.map((one) => [one.step, one.loss]);
  const best = losses.reduce((least, one) => (least && least.loss <= one.loss ? least : one), null);
  return [
    el("h3", {}, "Loss"),
    chart(
      [
        { kind: "raw", points },
        { name: "training, smoothed", kind: "first", points: smoothed(points) },
        { name: "validation", kind: "second", points: measured, dots: true },
      ],
      {
        label: `Loss of ${job.name}, in nats per token, by step: training and validation`,
        x: { title: "step", least: 0, most: job.steps, whole: true },
        y: { title: "nats per token" },
      },
    ),
    best && el("p", { class: "soft" }, `Lowest validation loss: ${best.loss.toFixed(3)}, at step ${best.step}.`),
  ];
}

/** The mean around each point. */
function smoothed(points) {
  const reach = Math.max(2, Math.floor(points.length / SMOOTHED_SHARE / 2));
  return points.map(([x], at) => {
    const around = points.slice(Math.max(0, at - reach), at + reach + 1);
    return [x, around.reduce((sum, [, y]) => sum + y, 0) / around.length];
  });
}

function timeline(written, results) {
  if (!written.length) return null;
  const end = results?.samples ?? [];
  return [
    el("h3", {}, "Samples"),
    el("p", { class: "soft" }, "The same opening and the same seed each time."),
    el(
      "ol",
      { class: "timeline", tabIndex: 0 },
      ...written.map((one) =>
        el(
          "li",
          { class: "sample" },
          el("b", {}, `Step ${one.step}`),
          el("p", { class: "text" }, el("span", { class: "soft" }, one.prompt), one.text),
        ),
      ),
      ...end.map((one) =>
        el(
          "li",
          { class: "sample" },
          el("b", {}, "Without the soft prompt"),
          el("p", { class: "text" }, el("span", { class: "soft" }, one.prompt), one.without),
        ),
      ),
    ),
  ];
}

function verdictOf(results) {
  if (!results) return el("p", { class: "soft" }, "The result was not measured, so what it is worth is unknown.");
  const [first, ...others] = results.verdicts;
  if (!first) return el("p", { class: "soft" }, "There were no held-out texts, so what it is worth is unknown.");
  return [
    el("p", { class: "first-verdict" }, first),
    el(
      "details",
      {},
      el("summary", {}, "How it was measured"),
      ...others.map((line) => el("p", { class: "soft" }, line)),
    ),
  ];
}

function measurements(results) {
  const { heldout, distance } = results;
  const spread = (interval) => (interval ? `${interval.map((end) => end.toFixed(3)).join(" to ")}` : "");
  return [
    distance && reachChart(distance),
    heldout.length
      ? el(
          "details",
          {},
          el("summary", {}, "Held-out losses"),
          scrolling(
            "Held-out losses",
            table(
              ["In front of the text", "Tokens", "Loss, nats per token", "95% interval"],
              heldout.map((one) => [
                one.label === one.kind || !one.label ? one.kind : `${one.kind}: ${one.label}`,
                String(one.tokens),
                one.nll.toFixed(3),
                spread(one.interval),
              ]),
            ),
          ),
        )
      : null,
  ].filter(Boolean);
}

const LINES = ["second", "first", "third", "first", "third"];

/** What is left of each gain after other text. */
function reachChart({ lines }) {
  const shown = lines.filter((line) => line.between === lines[0].between);
  const named = ({ kind, hold, as_in_file }) =>
    kind !== "soft prompt" || as_in_file ? kind : hold ? `soft prompt, held from ${hold}` : "soft prompt, not held";
  return el(
    "div",
    { class: "reach" },
    el("h3", {}, "Gain after other text"),
    chart(
      shown.map((line, at) => ({
        name: named(line),
        kind: LINES[at % LINES.length],
        points: line.behind.map(({ distance, gain }) => [distance, gain]),
        dots: true,
      })),
      {
        label: "Gain in nats per token, by the tokens of other text in between",
        x: { title: "tokens of other text in between", least: 0, whole: true },
        y: { title: "nats per token", least: 0 },
      },
    ),
  );
}

function about({ model, settings, created, texts }) {
  const counted = texts.length > FEW ? `${texts.length} texts` : texts.join(", ");
  const kind = settings.kind === "kv" ? "KV prompt" : "embedding prompt";
  const made = `created ${new Date(created * 1000).toLocaleString()}`;
  return el("p", { class: "soft" }, [model, kind, made, counted].join(" · "));
}

// Soft prompt files from the user, added to the library: one toast for all, and a list of those that failed.

import { $, call, el, fill } from "./dom.js";
import { live } from "./live.js";
import { place } from "./prompt_row.js";
import { toast } from "./toast.js";

const NOTICED_MS = 300;

/** Add files. done: called when the last one is in. */
export async function upload(files, done) {
  const cards = [],
    failed = [];
  let at = 0;
  const timer = setInterval(() => {
    $("prompts-status").textContent = `Adding ${at + 1} of ${files.length}: ${files[at]?.name ?? ""} ...`;
  }, NOTICED_MS);
  for (const file of files) {
    try {
      cards.push(await add(file));
    } catch (error) {
      failed.push({ file, error });
    }
    at += 1;
  }
  clearInterval(timer);
  $("prompts-status").textContent = "";
  list(failed, done);
  const [one, another] = cards;
  // Those that do not fit are last in the list.
  const open = { label: "Open", run: () => (location.hash = place(one.id)) };
  const allFit = !failed.length && cards.every(fits);
  toast(summary(cards, failed), allFit ? "good" : "", one && !another ? open : null);
  done();
}

function add(file, replace = false) {
  const form = new FormData();
  form.append("file", file);
  if (replace) form.append("replace", "true");
  return call("v1/soft_prompts", { method: "POST", form });
}

const fits = ({ fit }) => fit !== "no";

/** "12 added, none fits smollm2; 1 failed" */
function summary(cards, failed) {
  const model = live.state?.model?.name;
  const fitting = cards.filter(fits).length;
  const one = cards.length === 1;
  const fit = fitting === cards.length
    ? `${one ? "it fits" : "all fit"} ${model}`
    : fitting
      ? `${fitting} ${fitting === 1 ? "fits" : "fit"} ${model}`
      : `${one ? "it does not fit" : "none fits"} ${model}`;
  const added = cards.length ? [`${cards.length} added`, ...(model ? [fit] : [])] : ["None added"];
  return added.join(", ") + (failed.length ? `; ${failed.length} failed` : "");
}

/** What failed and why, until it is closed. */
function list(failed, done) {
  $("upload-failed").hidden = !failed.length;
  if (!failed.length) return;
  const close = () => {
    $("upload-failed").hidden = true;
  };
  const line = ({ file, error }) => {
    const made = el("li", {}, el("b", {}, file.name), `: ${reason(file, error)} `);
    if (error.code !== "name_taken") return made;
    const replace = async () => {
      try {
        await add(file, true);
        made.remove();
        toast(`${file.name} replaced the old file`, "good");
        done();
      } catch (later) {
        made.append(` ${reason(file, later)}`);
      }
    };
    made.append(el("button", { type: "button", ariaLabel: `Replace with ${file.name}`, onclick: replace }, "Replace"));
    return made;
  };
  fill(
    $("upload-failed"),
    el(
      "div",
      { class: "between" },
      `Not added: ${failed.length}`,
      el("button", { type: "button", onclick: close }, "Close"),
    ),
    el("ul", {}, ...failed.map(line)),
  );
}

const reason = (file, error) =>
  error.code === "name_taken"
    ? "another soft prompt has this name."
    : error.message.startsWith(`${file.name}: `)
      ? error.message.slice(file.name.length + 2)
      : error.message;

// Texts that somebody gave where none is opened: what they are for.

import { add } from "./draft.js";
import { toast } from "./toast.js";

const TRAINED_ON = /\.(txt|text|md|markdown|jsonl|ndjson|csv|tsv|html?)$/i,
  PLAIN = /\.(txt|text|md|markdown)$/i;

/** Whether a file is a text, and no soft prompt. */
export const isText = ({ name }) => TRAINED_ON.test(name);

/** Ask what texts are for. inMessage: puts one into the message that is being typed, where there is one. */
export function askWhatFor(files, inMessage = null) {
  const [one, another] = files,
    train = () => {
      location.hash = "#train";
      add(files);
    };
  const isMessage = inMessage && !another && PLAIN.test(one.name);
  toast(
    another ? `${files.length} texts. Soft prompts are trained on texts.` : `${one.name} is a text. What is it for?`,
    "question",
    { label: another ? "Train on them" : "Train on it", run: train },
    isMessage && { label: "Put it in the message", run: async () => inMessage(await one.text()) },
  );
}

// Installs from galleries and the Hub: started, followed until they have ended, told in a toast.

import { call } from "./dom.js";
import { place } from "./prompt_row.js";
import { toast } from "./toast.js";

const POLL_MS = 400;

// By source, as the server states them.
let installs = new Map();
let changed = () => {};
let polling = false;
// Names of those that this tab started, which it tells of.
const started = new Map();

/** doing: called when one has changed. */
export function startInstalls(doing) {
  changed = doing;
}

export const installOf = (source) => installs.get(source);

const isActive = (one) => one.state === "waiting" || one.state === "running";

/** Take what the server says, and ask again while one is under way. */
export function follow(list) {
  installs = new Map(list.map((one) => [one.source, one]));
  for (const [source, name] of started) {
    const one = installs.get(source);
    if (!one || isActive(one)) continue;
    started.delete(source);
    if (one.state === "done") tell(one, name);
  }
  changed();
  if (!polling && list.some(isActive)) {
    polling = true;
    setTimeout(poll, POLL_MS);
  }
}

const tell = ({ name }, title) =>
  toast(`${title} is in the library`, "good", {
    label: "Open",
    run: () => {
      location.hash = place(name);
    },
  });

async function poll() {
  polling = false;
  try {
    follow((await call("ui/find/installs")).installs);
  } catch {
    // The server is away: the next visit of the place asks again.
  }
}

export async function install(card, { replace = false } = {}) {
  started.set(card.source, card.name);
  await ask(card, "ui/find/install", { source: card.source, replace });
}

export const cancel = (card) => ask(card, "ui/find/installs/cancel", { source: card.source });

async function ask(card, path, json) {
  try {
    follow((await call(path, { method: "POST", json })).installs);
  } catch (error) {
    started.delete(card.source);
    toast(`${card.name}: ${error.message}`, "bad");
  }
}

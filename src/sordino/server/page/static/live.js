// The connection to the server: one WebSocket a tab. Where none gets through (a notebook's proxy), streamed answers to
// POST.
// Browsers allow six connections to a host for all tabs together; WebSockets are counted apart.

const RETRY = [200, 500, 1000, 2000];
const POLL = 1000;

class Live extends EventTarget {
  state = null;
  connected = false;
  #socket = null;
  #opened = false;
  #failed = 0;
  #plain = false;
  #number = 0;
  #waiting = new Map();

  start() {
    this.#open();
  }

  /** Ask for something. told: called with each answer; {is: "lost"} where the connection broke. Returns its stop. */
  ask(message, told) {
    const id = ++this.#number;
    const said = { ...message, id };
    if (this.#plain) return this.#post(said, told);
    if (!this.connected) {
      queueMicrotask(() => told({ is: "lost" }));
      return () => {};
    }
    this.#waiting.set(id, told);
    this.#socket.send(JSON.stringify(said));
    return () => this.#socket.readyState === WebSocket.OPEN && this.#socket.send(JSON.stringify({ do: "stop", id }));
  }

  #open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.#socket = new WebSocket(`${scheme}://${location.host}${new URL("live", base()).pathname}`);
    this.#socket.onopen = () => {
      this.#opened = true;
      this.#failed = 0;
      this.#setConnected(true);
    };
    this.#socket.onmessage = ({ data }) => this.#hear(JSON.parse(data));
    this.#socket.onclose = () => {
      this.#setConnected(false);
      this.#loseAll();
      this.#failed += 1;
      // Never once open: something in between does not let sockets through. The server itself may still answer.
      if (!this.#opened && this.#failed >= 2) {
        this.#plain = true;
        this.#poll();
      } else setTimeout(() => this.#open(), RETRY[Math.min(this.#failed, RETRY.length) - 1]);
    };
  }

  #hear(said) {
    if (said.is === "state") {
      this.state = said;
      this.dispatchEvent(new Event("state"));
      return;
    }
    const told = this.#waiting.get(said.id);
    if (["done", "measured", "error"].includes(said.is)) this.#waiting.delete(said.id);
    told?.(said);
  }

  #loseAll() {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const told of waiting) told({ is: "lost" });
  }

  #setConnected(connected) {
    if (connected === this.connected) return;
    this.connected = connected;
    this.dispatchEvent(new Event("connection"));
  }

  #post(said, told) {
    const ending = new AbortController();
    this.#waiting.set(said.id, told);
    (async () => {
      try {
        const headers = { "Content-Type": "application/json" };
        const answer = await fetch(new URL("ask", base()), {
          method: "POST",
          headers,
          body: JSON.stringify(said),
          signal: ending.signal,
        });
        for await (const line of lines(answer.body)) this.#hear(JSON.parse(line));
      } catch {
        // Stopped, or broken.
      }
      if (this.#waiting.delete(said.id)) told({ is: ending.signal.aborted ? "done" : "lost", id: said.id });
    })();
    return () => ending.abort();
  }

  async #poll() {
    try {
      const answer = await fetch(new URL("state", base()));
      if (!answer.ok) throw new Error(String(answer.status));
      const said = await answer.json();
      this.#setConnected(true);
      if (JSON.stringify(said) !== JSON.stringify(this.state)) this.#hear(said);
    } catch {
      this.#setConnected(false);
    }
    setTimeout(() => this.#poll(), POLL);
  }
}

/** Where the page's own routes are: also behind a proxy that puts a path in front. */
function base() {
  return new URL("ui/", document.baseURI);
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts.filter(Boolean);
  }
}

export const live = new Live();

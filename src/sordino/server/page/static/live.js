// The connection to the server: one WebSocket for each tab, or, where none gets through (a notebook's proxy), POST
// with streamed answers. WebSockets do not count towards the six connections that browsers allow to a host.

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

  /** Send a request. onMessage: called with each answer; {is: "lost"} where the connection broke. Returns a function
   * that stops it. */
  ask(message, onMessage) {
    const id = ++this.#number;
    const request = { ...message, id };
    if (this.#plain) return this.#post(request, onMessage);
    if (!this.connected) {
      queueMicrotask(() => onMessage({ is: "lost" }));
      return () => {};
    }
    this.#waiting.set(id, onMessage);
    this.#socket.send(JSON.stringify(request));
    return () => this.#socket.readyState === WebSocket.OPEN && this.#socket.send(JSON.stringify({ do: "stop", id }));
  }

  start() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.#socket = new WebSocket(`${scheme}://${location.host}${new URL("live", base()).pathname}`);
    this.#socket.onopen = () => {
      this.#opened = true;
      this.#failed = 0;
      this.#setConnected(true);
    };
    this.#socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    this.#socket.onclose = () => {
      this.#setConnected(false);
      this.#loseAll();
      this.#failed += 1;
      // It was never open: a proxy may block WebSockets, while the server answers HTTP.
      if (!this.#opened && this.#failed >= 2) {
        this.#plain = true;
        this.#poll();
      } else setTimeout(() => this.start(), RETRY[Math.min(this.#failed, RETRY.length) - 1]);
    };
  }

  #receive(message) {
    if (message.is === "state") {
      this.state = message;
      this.dispatchEvent(new Event("state"));
      return;
    }
    const onMessage = this.#waiting.get(message.id);
    if (["done", "measured", "error"].includes(message.is)) this.#waiting.delete(message.id);
    onMessage?.(message);
  }

  #loseAll() {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const onMessage of waiting) onMessage({ is: "lost" });
  }

  #setConnected(connected) {
    if (connected === this.connected) return;
    this.connected = connected;
    this.dispatchEvent(new Event("connection"));
  }

  #post(request, onMessage) {
    const ending = new AbortController();
    this.#waiting.set(request.id, onMessage);
    (async () => {
      try {
        const headers = { "Content-Type": "application/json" };
        const answer = await fetch(new URL("ask", base()), {
          method: "POST",
          headers,
          body: JSON.stringify(request),
          signal: ending.signal,
        });
        for await (const line of lines(answer.body)) this.#receive(JSON.parse(line));
      } catch {
        // Stopped, or the connection broke.
      }
      if (this.#waiting.delete(request.id)) onMessage({ is: ending.signal.aborted ? "done" : "lost", id: request.id });
    })();
    return () => ending.abort();
  }

  async #poll() {
    try {
      const answer = await fetch(new URL("state", base()));
      if (!answer.ok) throw new Error(String(answer.status));
      const state = await answer.json();
      this.#setConnected(true);
      if (JSON.stringify(state) !== JSON.stringify(this.state)) this.#receive(state);
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

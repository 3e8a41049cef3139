// The API: calls with the key in a header, errors in words, and the stream of events with its reconnection.

/** Beside the page's own files, whatever a proxy has put before both. */
const PREFIX = new URL("../../v1/ab-testing", import.meta.url).pathname;
const SILENCE_MS = 20000;
const LONGEST_WAIT_MS = 10000;
/** A line that died without a word is given up after so long; reports of long tests take some of it. */
const PATIENCE_MS = 45000;

/** What the API refused, in its own words. */
export class ApiError extends Error {
  constructor(status, message, { code = null, param = null, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

/** What time mends: the server is away, asks for patience, or lacks a part of itself for a moment. */
export const passes = (error) => error.status === 0 || error.status === 429 || error.status >= 500;

async function refusal(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.message, { code: error.code, param: error.param, retryAfter });
  } catch {
    return new ApiError(response.status, `The server answered ${response.status} without saying why.`, { retryAfter });
  }
}

function away() {
  return new ApiError(0, "The server cannot be reached.");
}

/** Calls with one key, which is kept here and in the tab's own storage, and nowhere else. */
export class Api {
  constructor(key) {
    this.key = key;
  }

  async fetch(path, { method = "GET", body, accept = "application/json", signal } = {}) {
    const headers = { Authorization: `Bearer ${this.key}`, Accept: accept };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(PREFIX + path, {
        method, headers, signal: signal || AbortSignal.timeout(PATIENCE_MS), cache: "no-store", credentials: "omit", redirect: "error",
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw away();
    }
    if (!response.ok) throw await refusal(response);
    return response;
  }

  async json(path, options) {
    const response = await this.fetch(path, options);
    try {
      return await response.json();
    } catch {
      throw away(); // the line was cut in the middle of the answer
    }
  }
}

/** An event out of its lines; null where its data is no JSON object, as for the Python client: the edge sends none. */
export function parse(block) {
  let name = "message";
  const lines = [];
  for (const line of block.split("\n")) {
    const [field, value] = /^([^:]*):? ?(.*)$/.exec(line).slice(1);
    if (field === "event") name = value;
    else if (field === "data") lines.push(value);
  }
  try {
    const data = JSON.parse(lines.join("\n"));
    return data !== null && typeof data === "object" && !Array.isArray(data) ? { name, data } : null;
  } catch {
    return null;
  }
}

/**
 * The event stream, for as long as it is wanted. Told through `on`: `event(name, data)`, `lost(error)`, `refused(error)`.
 * The first thing that comes after every connection is how everything stands, so nothing needs to be repeated.
 */
export class Stream {
  constructor(api, on) {
    this.api = api;
    this.on = on;
    this.failures = 0;
    this.ended = false;
    this.controller = null;
    this.wake = null;
  }

  async run() {
    while (!this.ended) {
      let error = away();
      try {
        await this.once();
      } catch (found) {
        if (found instanceof ApiError) error = found;
      }
      if (this.ended) return;
      if (error.status === 401 || error.status === 403) {
        this.on.refused(error);
        return;
      }
      const backoff = Math.min(LONGEST_WAIT_MS, 400 * 2 ** this.failures) * (0.75 + 0.5 * Math.random());
      this.failures += 1;
      const waitMs = Math.max(backoff, 1000 * error.retryAfter);
      this.on.lost(error);
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, waitMs);
      });
    }
  }

  /** Try again at once. */
  retry() {
    this.failures = 0;
    if (this.wake) this.wake();
  }

  stop() {
    this.ended = true;
    if (this.controller) this.controller.abort();
    if (this.wake) this.wake();
  }

  async once() {
    this.controller = new AbortController();
    const { signal } = this.controller;
    let alarm = null;
    // A line that died without a word is found by its silence.
    const heard = () => {
      clearTimeout(alarm);
      alarm = setTimeout(() => this.controller.abort(), SILENCE_MS);
    };
    try {
      heard();
      const response = await this.api.fetch("/events?live=true", { accept: "text/event-stream", signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        heard();
        rest += value;
        const blocks = rest.split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const event = parse(block);
          if (event === null) continue;
          this.failures = 0;
          try {
            this.on.event(event.name, event.data);
          } catch (error) {
            console.error(error); // a fault in showing it is none of the line
          }
        }
      }
    } finally {
      clearTimeout(alarm);
    }
  }
}

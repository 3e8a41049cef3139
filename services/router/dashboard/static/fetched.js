// What is fetched beside the live picture: time line and charts of the test that is shown, and the history.

import { passes } from "./api.js";

const SERIES_MS = 4000;
const READING_MS = 1500;
const AGAIN_MS = 4000;
const SETTLE_MS = 700;
const LONGEST_MS = 3000;
const LONG_MINUTES = 10;
const PAGE = 20;
/** So many the API gives at once. */
export const MOST = 1000;
/** Tests of which something is kept: a page may be open for days, and see hundreds. */
const KEPT = 6;
const UNTOLD = /^(time line|alerts|evidence and timeline):/;

/** What one question after the other has brought; an older answer never takes the place of a newer one. */
class Answers {
  constructor(api, over) {
    this.api = api;
    this.over = over;
    this.asked = 0;
    this.taken = 0;
  }

  /** `{found, error, last}`, or null where the answer is of no use any more. */
  async to(path) {
    const mine = (this.asked += 1);
    let found = null;
    let error = null;
    try {
      found = await this.api.json(path);
    } catch (caught) {
      error = caught;
    }
    if (this.over(error) || mine < this.taken) return null;
    this.taken = mine;
    return { found, error, last: mine === this.asked };
  }
}

/**
 * Everything that is fetched with one key, until `stop`. The page says `live(id)` (the test as it stands, or null), `away()` (whether
 * asking is of no use now), and is told of what has `changed()` and that its key was `refused(error)`.
 */
export class Fetched {
  constructor(api, page) {
    this.api = api;
    this.page = page;
    this.stopped = false;
    this.followed = null;
    this.views = new Map();
    this.pending = new Map();
    this.timer = 0;
    this.history = null;
    this.historyError = null;
    this.shown = PAGE;
    this.histories = this.answers();
  }

  answers() {
    return new Answers(this.api, (error) => {
      if (!this.stopped && error?.status === 401) this.page.refused(error);
      return this.stopped;
    });
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    for (const { timer } of this.pending.values()) clearTimeout(timer);
  }

  /** What is known of a test. */
  view(id) {
    let found = this.views.get(id);
    if (!found) {
      const long = (this.page.live(id)?.elapsed_minutes || 0) > LONG_MINUTES;
      found = {
        span: long ? "recent" : "whole", series: null, seriesError: null, summary: null, summaryError: null, tables: new Set(),
        summaries: this.answers(), charts: this.answers(),
      };
    }
    this.views.delete(id); // the one that was looked at last is the last one to go
    this.views.set(id, found);
    for (const other of this.views.keys()) {
      if (this.views.size <= KEPT) break;
      if (other !== this.followed) this.views.delete(other);
    }
    return found;
  }

  /** Keep up with this test from now on, and with no other. */
  follow(id) {
    if (id === this.followed) return;
    this.followed = id;
    clearTimeout(this.timer);
    if (id) this.open(id);
  }

  open(id) {
    this.loadSummary(id);
    this.loadSeries(id);
  }

  /** What may have been missed while the line was down. */
  refresh() {
    this.loadHistory();
    if (this.followed) this.loadSummary(this.followed);
  }

  /** In a while. */
  after(name, waitMs, what) {
    clearTimeout(this.pending.get(name)?.timer);
    const since = this.pending.get(name)?.since ?? performance.now();
    const timer = setTimeout(() => {
      this.pending.delete(name);
      what();
    }, waitMs);
    this.pending.set(name, { timer, since });
  }

  /** Once things have settled: several events of one change are one reason to look again. Events without end are none to wait. */
  soon(name, what) {
    const was = this.pending.get(name);
    if (was && performance.now() - was.since > LONGEST_MS) {
      clearTimeout(was.timer);
      this.pending.delete(name);
      what();
    }
    this.after(name, SETTLE_MS, what);
  }

  summarySoon(id) {
    if (id === this.followed) this.soon(`summary ${id}`, () => id === this.followed && this.loadSummary(id));
  }

  async loadSummary(id) {
    const of = this.view(id);
    const answer = await of.summaries.to(`/tests/${encodeURIComponent(id)}/summary`);
    if (!answer) return;
    const { found, error } = answer;
    let waitMs = 0;
    if (found) {
      const untold = found.notes.some((note) => UNTOLD.test(note));
      // What could not be told just now was told before.
      of.summary = untold && of.summary ? { ...found, timeline: of.summary.timeline } : found;
      of.summaryError = null;
      if (found.reading !== null) waitMs = READING_MS;
      else if (untold) waitMs = AGAIN_MS;
    } else {
      if (!passes(error) || !of.summary) of.summaryError = error;
      if (passes(error)) waitMs = Math.max(AGAIN_MS, 1000 * error.retryAfter);
    }
    if (waitMs) this.after(`again ${id}`, waitMs, () => id === this.followed && this.loadSummary(id));
    this.page.changed();
  }

  async loadSeries(id) {
    const of = this.view(id);
    const { span } = of;
    if (id === this.followed) clearTimeout(this.timer);
    const answer = await of.charts.to(`/tests/${encodeURIComponent(id)}/series?span=${span}`);
    if (!answer) return;
    const { found, error, last } = answer;
    let waitMs = SERIES_MS;
    if (found) {
      if (span === of.span) of.series = found;
      of.seriesError = null;
      if (found.state === "reading") waitMs = READING_MS;
      else if (!this.page.live(id)) waitMs = 0; // what has ended and is read to its end does not change any more
    } else {
      if (error.status && error.status !== 429) of.seriesError = error;
      waitMs = passes(error) ? Math.max(2 * SERIES_MS, 1000 * error.retryAfter) : 0;
    }
    if (last && waitMs) this.seriesIn(waitMs, id);
    this.page.changed();
  }

  seriesIn(waitMs, id) {
    if (id !== this.followed) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (document.hidden || this.page.away()) this.seriesIn(SERIES_MS, id);
      else this.loadSeries(id);
    }, waitMs);
  }

  async loadHistory() {
    const answer = await this.histories.to(`/history?limit=${this.shown}&words=true`);
    if (!answer) return;
    const { found, error } = answer;
    if (found) this.history = found;
    this.historyError = error;
    if (error && passes(error)) this.after("history", Math.max(AGAIN_MS, 1000 * error.retryAfter), () => this.loadHistory());
    this.page.changed();
  }

  moreHistory() {
    this.shown = Math.min(MOST, this.shown + PAGE);
    this.loadHistory();
  }
}

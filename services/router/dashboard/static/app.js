// The page: who looks, what is shown, and how it follows what happens.

import { Api, Stream } from "./api.js";
import { act, ask, report, starting } from "./actions.js";
import { draw, plots } from "./charts.js";
import { fill, h } from "./dom.js";
import { when } from "./format.js";
import { overview } from "./overview.js";
import { button, loading, trouble } from "./parts.js";
import { keep, kept, notAllowed, signIn } from "./signin.js";
import { testView } from "./test.js";

const SERIES_MS = 4000;
const SETTLE_MS = 700;
const LONG_MINUTES = 10;
const PAGE = 20;

const state = {
  api: null, me: null, stream: null, snapshot: null, problem: null, busy: false, lost: null, lastMs: 0,
  history: null, historyError: null, shown: PAGE, focus: null, views: new Map(), notice: null,
};
const $ = (id) => document.getElementById(id);

function route() {
  const found = /^#\/tests\/(.+)$/.exec(location.hash);
  if (!found) return null;
  try {
    return decodeURIComponent(found[1]);
  } catch {
    return found[1];
  }
}

/** What was fetched of a test beside the live picture. */
function view(id) {
  if (!state.views.has(id)) {
    const long = (state.snapshot?.tests.find((test) => test.test_id === id)?.elapsed_minutes || 0) > LONG_MINUTES;
    state.views.set(id, { span: long ? "recent" : "whole", series: null, summary: null, seriesError: null, summaryError: null, tables: new Set(), timer: 0 });
  }
  return state.views.get(id);
}

const liveTest = (id) => state.snapshot?.tests.find((test) => test.test_id === id) || null;

/** The test that is shown whole: the one of the address, else the only one, else the one that was just shown. */
function current() {
  const named = route();
  if (named) return named;
  const tests = state.snapshot?.tests || [];
  if (tests.length === 1) state.focus = tests[0].test_id;
  else if (tests.length > 1) state.focus = null;
  return state.focus;
}

// -- what is fetched ------------------------------------------------------------------------------------------

async function loadSummary(id) {
  const of = view(id);
  try {
    of.summary = await state.api.json(`/tests/${encodeURIComponent(id)}/summary`);
    of.summaryError = null;
  } catch (error) {
    refusedOr(error, () => { of.summaryError = error; });
  }
  render();
}

async function loadSeries(id) {
  const of = view(id);
  clearTimeout(of.timer);
  const span = of.span;
  let wait = SERIES_MS;
  try {
    const found = await state.api.json(`/tests/${encodeURIComponent(id)}/series?span=${span}`);
    if (span === of.span) of.series = found;
    of.seriesError = null;
    // What has ended and is read to its end does not change any more.
    if (!liveTest(id) && found.state !== "reading") wait = 0;
    if (found.state === "reading") wait = 1500;
  } catch (error) {
    wait = Math.max(2 * SERIES_MS, 1000 * (error.retryAfter || 0));
    refusedOr(error, () => { if (error.status && error.status !== 429) of.seriesError = error; });
  }
  if (wait && current() === id && state.api) of.timer = setTimeout(() => poll(id), wait);
  render();
}

function poll(id) {
  if (document.hidden || state.lost) {
    view(id).timer = setTimeout(() => poll(id), SERIES_MS);
  } else if (current() === id) loadSeries(id);
}

async function loadHistory() {
  try {
    state.history = await state.api.json(`/history?limit=${state.shown}&words=true`);
    state.historyError = null;
  } catch (error) {
    refusedOr(error, () => { state.historyError = error; });
  }
  render();
}

const pending = new Map();
/** Once things have settled: several events of one change are one reason to look again. */
function soon(name, what) {
  clearTimeout(pending.get(name));
  pending.set(name, setTimeout(what, SETTLE_MS));
}

function open(id) {
  loadSummary(id);
  loadSeries(id);
}

function refusedOr(error, otherwise) {
  if (error.status === 401) signOut("This key is not good any more: it was revoked, or has expired.");
  else otherwise();
}

// -- what happens ---------------------------------------------------------------------------------------------

function announce(text) {
  const log = $("announce");
  log.append(h("p", {}, text));
  while (log.childNodes.length > 4) log.firstChild.remove();
}

function changes(before, now) {
  if (!before) return;
  const was = new Map(before.tests.map((test) => [test.test_id, test]));
  for (const test of now.tests) {
    const old = was.get(test.test_id);
    was.delete(test.test_id);
    if (!old || old.status !== test.status || old.split_percent !== test.split_percent) announce(`${test.status_text}: ${test.headline}`);
    else if (old.safety?.tone !== test.safety?.tone && test.safety) announce(test.safety.text);
    if (!old || old.version !== test.version) soon(`summary ${test.test_id}`, () => current() === test.test_id && loadSummary(test.test_id));
  }
  for (const gone of was.values()) ended(gone);
  if (was.size) soon("history", loadHistory);
}

async function ended(test) {
  const id = test.test_id;
  state.notice = null; // it told of a start
  await loadSummary(id);
  const told = state.views.get(id)?.summary;
  announce(told && !told.live ? `${told.status_text}: ${told.headline} ${told.why?.text || ""}` : `The test of ${test.model_b} has ended.`);
  if (current() === id) loadSeries(id);
  // Its last alerts and facts come a moment later.
  soon(`after ${id}`, () => setTimeout(() => current() === id && loadSummary(id), 2500));
}

function happened(name, data) {
  if (name === "live") {
    const before = state.snapshot;
    state.snapshot = data;
    state.lastMs = Date.now();
    state.lost = null;
    if (!before) loadHistory();
    changes(before, data);
    const id = current();
    if (id && !state.views.has(id)) open(id);
    render();
    return;
  }
  const told = data?.data || {};
  const id = told.test_id;
  if (id && id === current()) soon(`summary ${id}`, () => current() === id && loadSummary(id));
  if (name === "alert" && ["WARNING", "CRITICAL", "EMERGENCY"].includes(told.level)) announce(`Alert: ${told.title}. ${told.message}`);
}

// -- who looks ------------------------------------------------------------------------------------------------

async function enter(key) {
  state.busy = true;
  state.problem = null;
  render();
  const api = new Api(key);
  try {
    state.me = await api.json("/whoami");
  } catch (error) {
    state.busy = false;
    if (error.status === 401) keep(null);
    state.problem = error.status === 401 ? "This key is not known here. Check that it was copied whole, or ask for another one."
      : error.status === 0 ? "The server cannot be reached: check that it runs, then try again." : error.message;
    render();
    return;
  }
  keep(key);
  state.busy = false;
  state.api = api;
  if (state.me.may.includes("events")) {
    state.stream = new Stream(api, {
      event: happened,
      lost: (error, waitMs) => {
        state.lost = { error, untilMs: Date.now() + waitMs };
        render();
      },
      refused: (error) => refusedOr(error, () => signOut(error.message)),
    });
    state.stream.run();
  }
  render();
  $("main").focus({ preventScroll: true });
}

function signOut(problem = null) {
  keep(null);
  state.stream?.stop();
  for (const of of state.views.values()) clearTimeout(of.timer);
  for (const timer of pending.values()) clearTimeout(timer);
  Object.assign(state, {
    api: null, me: null, stream: null, snapshot: null, problem, busy: false, lost: null, history: null, focus: null, views: new Map(), shown: PAGE, notice: null,
  });
  document.querySelector("dialog[open]")?.close();
  render();
  $("key")?.focus();
}

// -- what is shown --------------------------------------------------------------------------------------------

function top() {
  const dark = document.documentElement.dataset.theme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  return [
    h("a", { class: "brand", href: "#/" }, "Cypria"),
    state.me && state.api ? h("p", { class: `pulse ${state.lost ? "bad" : state.snapshot ? "good" : "wait"}` },
      h("span", { class: "dot", "aria-hidden": "true" }), state.lost ? "Offline" : state.snapshot ? "Live" : "Connecting") : null,
    h("span", { class: "gap" }),
    state.me && state.api ? h("span", { class: "who small" }, state.me.name, h("span", { class: "soft" }, ` · ${state.me.role}`)) : null,
    h("button", { type: "button", class: "button quiet", "data-action": "theme", "aria-label": dark ? "Light colours" : "Dark colours" }, dark ? "☀" : "☾"),
    state.me && state.api ? button("Sign out", "sign-out", {}, "quiet") : null,
  ];
}

function banner() {
  if (!state.api) return [];
  if (!state.lost) {
    return state.notice ? [h("div", { class: "banner good", "data-key": "notice" }, h("p", {}, state.notice), button("Dismiss", "dismiss", {}, "small"))] : [];
  }
  const { error } = state.lost;
  const why = error.status === 0 ? "The server is away." : error.message;
  const last = state.lastMs ? ` What you see is as of ${when(state.lastMs)}.` : "";
  return [h("div", { class: "banner" }, h("p", {}, h("strong", {}, why), `${last} It is being tried again.`), button("Try now", "retry", {}, "small"))];
}

function whole(id) {
  const of = view(id);
  const test = liveTest(id) || (of.summary && !of.summary.live ? of.summary : null);
  if (test) return testView(test, of, state.me);
  if (of.summaryError) return trouble(of.summaryError, "reload-summary", { test: id });
  // It has just ended: what was last known stands until its record is there.
  return of.summary ? testView({ ...of.summary, actions: [] }, of, state.me) : loading("Reading the test …");
}

function content() {
  if (state.me && state.api && !state.me.may.includes("events")) return [notAllowed(state.me)];
  if (!state.api) return [signIn(state.problem, state.busy)];
  if (!state.snapshot) return [loading("Asking how everything stands …")];
  const named = route();
  const id = current();
  if (named) {
    return [h("h1", { class: "hidden" }, "One test"), h("p", { class: "row back" }, h("a", { href: "#/" }, "← All tests")), whole(id)];
  }
  return [h("h1", { class: "hidden" }, "Tests, models and history"), ...overview(state, id ? whole(id) : null)];
}

let asked = false;
function render() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    fill($("top"), top().filter(Boolean));
    fill($("banner"), banner());
    fill($("main"), content().flat().filter(Boolean));
    const id = state.api && state.snapshot ? current() : null;
    const shown = id ? view(id).series : null;
    const test = id ? liveTest(id) || view(id).summary : null;
    if (shown?.series && test) draw(plots(shown.series, test), id, shown.series.seconds);
    else draw([], "", []);
    document.title = test ? `${test.status_text}: ${test.model_b} against ${test.model_a} · Cypria` : "Cypria";
  });
}

// -- what people do -------------------------------------------------------------------------------------------

const context = () => ({ api: state.api, snapshot: state.snapshot, test: liveTest, refused: refusedOr, notice });

function notice(text) {
  state.notice = text;
  render();
}

const actions = {
  "sign-out": () => signOut(),
  retry: () => state.stream?.retry(),
  dismiss: () => notice(null),
  theme: () => {
    const dark = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("cypria-theme", document.documentElement.dataset.theme);
    } catch {
      // It holds for this page.
    }
    render();
  },
  span: (data) => {
    const id = current();
    const of = view(id);
    if (of.span === data.span) return;
    of.span = data.span; // what was drawn stands until the other is there
    render();
    loadSeries(id);
  },
  "reload-series": (data) => loadSeries(data.test),
  "reload-summary": (data) => loadSummary(data.test),
  "reload-history": () => loadHistory(),
  "more-history": () => {
    state.shown += PAGE;
    loadHistory();
  },
  start: () => starting(context()),
  command: (data) => ask(context(), data.command, data.test),
  report: (data) => report(context(), data.test, data.as),
};

document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-action]");
  if (target && actions[target.dataset.action]) actions[target.dataset.action](target.dataset);
});
document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  if (form.dataset.form === "signin") {
    const key = form.elements.key.value.trim();
    if (!/^[\x21-\x7e]*$/.test(key)) {
      state.problem = "A key has no blanks and no letters beyond ASCII. Check that it was copied alone.";
      render();
    } else if (key) enter(key);
  } else if (form.dataset.form === "act") act(context(), form);
});
document.addEventListener("toggle", (event) => {
  const id = event.target.dataset?.table;
  if (!id) return;
  const of = view(current());
  if (event.target.open) of.tables.add(id);
  else of.tables.delete(id);
  render();
}, true);
window.addEventListener("hashchange", () => {
  const id = current();
  if (id && state.api) open(id);
  render();
  window.scrollTo(0, 0);
  $("main").focus({ preventScroll: true });
});
window.addEventListener("resize", render);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);

const key = kept();
if (key) enter(key);
render();

// The page: who looks, what is shown, and how it follows what happens.

import { Api, passes, Stream } from "./api.js";
import { act, ask, report, starting } from "./actions.js";
import { draw, plots } from "./charts.js";
import { fill, h } from "./dom.js";
import { Fetched } from "./fetched.js";
import { when } from "./format.js";
import { overview } from "./overview.js";
import { button, loading, trouble } from "./parts.js";
import { keep, kept, notAllowed, signIn } from "./signin.js";
import { testView } from "./test.js";

/** A picture comes about once a second; so long after the last one what is shown is old, though the line stands. */
const OLD_MS = 15000;
const ENTER_AGAIN_MS = 3000;

const NOBODY = {
  api: null, me: null, stream: null, fetched: null, snapshot: null, problem: null, busy: false, lost: null, lastMs: 0, heardAt: 0, focus: null, notice: null, again: false,
};
const state = { ...NOBODY };
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

const view = (id) => state.fetched.view(id);

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
    if (old && old.version !== test.version) state.fetched.summarySoon(test.test_id);
  }
  for (const gone of was.values()) ended(gone, state.fetched);
  if (was.size) state.fetched.soon("history", () => state.fetched.loadHistory());
}

async function ended(test, fetched) {
  const id = test.test_id;
  state.notice = null; // it told of a start
  await fetched.loadSummary(id);
  if (fetched.stopped) return;
  const told = fetched.view(id).summary;
  announce(told && !told.live ? `${told.status_text}: ${told.headline} ${told.why?.text || ""}` : `The test of ${test.model_b} has ended.`);
  if (current() !== id) return;
  fetched.loadSeries(id);
  fetched.after(`last ${id}`, 3200, () => current() === id && fetched.loadSummary(id)); // its last alerts and facts come a moment later
}

function happened(name, data) {
  if (name === "live") {
    const before = state.snapshot;
    const missed = !before || state.lost;
    state.snapshot = data;
    state.lastMs = Date.now();
    state.heardAt = performance.now();
    state.lost = null;
    changes(before, data);
    if (missed) state.fetched.refresh();
    state.fetched.follow(current());
    render();
    return;
  }
  const told = data?.data || {};
  if (told.test_id) state.fetched.summarySoon(told.test_id);
  if (name === "alert" && ["WARNING", "CRITICAL", "EMERGENCY"].includes(told.level)) announce(`Alert: ${told.title}. ${told.message}`);
}

// -- who looks ------------------------------------------------------------------------------------------------

let attempts = 0;

/** `again`: with a key that was good before; a server that is away is waited for. Another attempt, or a sign-out, overtakes it. */
async function enter(key, again = false) {
  const mine = (attempts += 1);
  Object.assign(state, { busy: true, again });
  render();
  const api = new Api(key);
  let me;
  try {
    me = await api.json("/whoami");
  } catch (error) {
    if (mine !== attempts) return;
    if (again && passes(error)) {
      state.problem = error.message;
      render();
      setTimeout(() => mine === attempts && enter(key, true), Math.max(ENTER_AGAIN_MS, 1000 * error.retryAfter));
      return;
    }
    Object.assign(state, { busy: false, again: false });
    if (error.status === 401) keep(null);
    state.problem = error.status === 401 ? "This key is not known here. Check that it was copied whole, or ask for another one."
      : error.status === 0 ? "The server cannot be reached: check that it runs, then try again." : error.message;
    render();
    return;
  }
  if (mine !== attempts) return;
  keep(key);
  Object.assign(state, { busy: false, again: false, problem: null, api, me });
  if (state.me.may.includes("events")) {
    state.fetched = new Fetched(api, { live: liveTest, away: () => state.lost, changed: render, refused: (error) => refusedOr(error, render) });
    state.stream = new Stream(api, {
      event: happened,
      lost: (error) => {
        state.lost = { error };
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
  attempts += 1;
  keep(null);
  state.stream?.stop();
  state.fetched?.stop();
  Object.assign(state, NOBODY, { problem });
  document.querySelector("dialog[open]")?.close();
  render();
  $("key")?.focus();
}

// -- what is shown --------------------------------------------------------------------------------------------

const old = () => state.snapshot && !state.lost && performance.now() - state.heardAt > OLD_MS;

function top() {
  const dark = document.documentElement.dataset.theme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  return [
    h("a", { class: "brand", href: "#/" }, "Cypria"),
    state.me && state.api ? h("p", { class: `pulse ${state.lost ? "bad" : state.snapshot && !old() ? "good" : "wait"}` },
      h("span", { class: "dot", "aria-hidden": "true" }), state.lost ? "Offline" : old() ? "Old" : state.snapshot ? "Live" : "Connecting") : null,
    h("span", { class: "gap" }),
    state.me && state.api ? h("span", { class: "who small" }, state.me.name, h("span", { class: "soft" }, ` · ${state.me.role}`)) : null,
    h("button", { type: "button", class: "button quiet", "data-action": "theme", "aria-label": dark ? "Light colours" : "Dark colours" }, dark ? "☀" : "☾"),
    state.me && state.api ? button("Sign out", "sign-out", {}, "quiet") : null,
  ];
}

function banner() {
  if (!state.api) return [];
  if (!state.lost && !old()) {
    return state.notice ? [h("div", { class: "banner good", "data-key": "notice" }, h("p", {}, state.notice), button("Dismiss", "dismiss", {}, "small"))] : [];
  }
  const last = state.lastMs ? ` What you see is as of ${when(state.lastMs)}.` : "";
  if (!state.lost) return [h("div", { class: "banner" }, h("p", {}, h("strong", {}, "The server says nothing new."), last))];
  const { error } = state.lost;
  const why = error.status === 0 ? "The server is away." : error.message;
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
  const waiting = h("h1", { class: "hidden" }, "Cypria");
  if (state.again && state.problem) return [waiting, loading(`${state.problem} It is being tried again …`), h("p", { class: "empty" }, button("Use another key", "sign-out"))];
  if (!state.api) return [signIn(state.problem, state.busy)];
  if (!state.snapshot) return [waiting, loading("Asking how everything stands …")];
  const named = route();
  const id = current();
  if (named) {
    return [h("h1", { class: "hidden" }, "One test"), h("p", { class: "row back" }, h("a", { href: "#/" }, "← All tests")), whole(id)];
  }
  return [h("h1", { class: "hidden" }, "Tests, models and history"), ...overview(state.snapshot, state.me, state.fetched, id ? whole(id) : null)];
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
    state.fetched?.follow(id);
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
    state.fetched.loadSeries(id);
  },
  "reload-series": (data) => state.fetched.loadSeries(data.test),
  "reload-summary": (data) => state.fetched.loadSummary(data.test),
  "reload-history": () => state.fetched.loadHistory(),
  "more-history": () => state.fetched.moreHistory(),
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
    } else if (key) {
      state.problem = null;
      enter(key);
    }
  } else if (form.dataset.form === "act") act(context(), form);
});
document.addEventListener("toggle", (event) => {
  const id = event.target.dataset?.table;
  if (!id || !state.fetched) return;
  const of = view(current());
  if (event.target.open) of.tables.add(id);
  else of.tables.delete(id);
  render();
}, true);
window.addEventListener("hashchange", () => {
  render();
  window.scrollTo(0, 0);
  $("main").focus({ preventScroll: true });
});
window.addEventListener("resize", render);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);

setInterval(() => old() && render(), 5000);

const key = kept();
if (key) enter(key, true);
render();

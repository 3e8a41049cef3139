// One test: what runs, whether it is safe, why it ended, what a promotion still needs, and everything behind that.

import { h, s, unseen } from "./dom.js";
import { amount, count, exactly, figure, minutes, NONE, signed, time } from "./format.js";
import { conditions, guardrails } from "./guardrails.js";
import { badge, button, loading, section, split, stamp, trouble } from "./parts.js";
import { frame, plots } from "./charts.js";

export const COMMANDS = {
  approve: ["Approve next step", "approve"], resume: ["Resume", "resume"], pause: ["Pause", "pause"],
  split: ["Change split", "traffic-split"], stop: ["Stop", "stop"], rollback: ["Roll back", "rollback"],
};

/** The buttons that make sense now, for those who may. */
export function commands(test, me) {
  const offered = test.actions.filter((name) => me.may.includes(COMMANDS[name][1]));
  if (!test.actions.length) return null;
  if (!offered.length) {
    return h("p", { class: "small soft norole" }, `Your key (${me.name}) has the role ${me.role}: it may look. Changing a test takes an operator's key.`);
  }
  const kinds = { rollback: "danger", approve: "primary" };
  return h("div", { class: "commands", role: "group", "aria-label": `Commands for the test of ${test.model_b}` },
    offered.map((name) => button(COMMANDS[name][0], "command", { command: name, test: test.test_id }, kinds[name] || "")));
}

function facts(test) {
  const parts = [];
  if (test.starts_at) parts.push(["starts ", stamp(test.starts_at)]);
  if (test.started_at) parts.push(["started ", stamp(test.started_at)]);
  if (test.ended_at) parts.push(["ended ", stamp(test.ended_at)]);
  if (test.elapsed_minutes !== null && !test.starts_at) parts.push([test.live ? "running for " : "ran for ", minutes(test.elapsed_minutes)]);
  if (test.remaining_minutes !== null) parts.push([minutes(test.remaining_minutes), " left"]);
  if (test.rollback_at) parts.push(["rollback ordered for ", stamp(test.rollback_at)]);
  if (test.retry_at) parts.push(["goes back up at ", stamp(test.retry_at)]);
  if (test.auto_rollback !== null) parts.push([`automatic rollback ${test.auto_rollback ? "on" : "off"}`]);
  return h("ul", { class: "facts small soft" }, parts.map((part) => h("li", {}, part)));
}

function ramp(test) {
  if (!test.ramp) return null;
  const { step, shares } = test.ramp;
  return h("ol", { class: "ramp", "aria-label": "Ramp" }, shares.map((share, i) => h(
    "li", { class: i + 1 < step ? "done" : i + 1 === step ? "now" : "", "aria-current": i + 1 === step ? "step" : null },
    figure(share, "%"), i + 1 < step ? unseen(" done") : null)));
}

/** The head of a test: status, sentence, split, commands. */
export function head(test, me, level = "h2") {
  return h(
    "header", { class: "test-head" },
    h("p", { class: "over" }, badge(test.tone, test.status_text),
      h("span", { class: "models" }, h("span", { class: "arm b" }, "B"), ` ${test.model_b} against `, h("span", { class: "arm a" }, "A"), ` ${test.model_a}`)),
    h(level, { class: "headline", id: `h-${test.test_id}`, tabindex: "-1" }, test.headline),
    h("p", { class: "subline" }, test.subline),
    test.live ? split(test) : null,
    ramp(test), facts(test),
    test.degraded.length ? h("p", { class: "note wait" }, `Something is missing: ${test.degraded.join("; ")}.`) : null,
    commands(test, me),
  );
}

function answer(key, title, found, ...more) {
  if (!found) return null;
  return h("div", { class: `answer ${found.tone}`, "data-key": key }, h("h3", {}, title), h("p", {}, found.text), more);
}

/** The questions people ask, answered. */
export function answers(test, brief = false) {
  const promotion = test.promotion ? answer("promotion", test.live ? "What would a promotion still need?" : "Could it be promoted?", test.promotion,
    brief ? null : conditions(test)) : null;
  return h(
    "div", { class: "answers" },
    h("div", { class: "stack", "data-key": "stack" },
      answer("why", test.status === "rolled_back" ? "Why was it rolled back?" : "Why this verdict?", test.why),
      test.live ? answer("safety", "Is it safe?", test.safety) : null,
      brief || test.status === "rolled_back" ? null : answer("better", "Is it better?", better(test.effect)),
      answer("next", "What happens next?", test.next_step)),
    promotion,
  );
}

function better(effect) {
  if (!effect) return null;
  const metric = effect.metric.replace("_", " ");
  if (effect.effect === null) return { tone: "plain", text: `Cannot be judged yet: ${effect.hold || `nothing is known of the ${metric}`}.` };
  const low = effect.low === null || effect.low <= -100 ? null : signed(effect.low); // nothing falls by more
  const high = effect.high === null ? null : signed(effect.high);
  const ends = low && high ? `between ${low} and ${high}` : high ? `at most ${high}` : low ? `at least ${low}` : null;
  const range = ends ? `, and is ${ends} (95 % confidence sequence)` : "";
  const shown = effect.more_is_better ? effect.low !== null && effect.low >= effect.asked : effect.high !== null && effect.high <= effect.asked;
  return { tone: shown ? "good" : "plain", text: `The canary's ${metric} is ${signed(effect.effect)} against the stable model's${range}. Asked for: ${signed(effect.asked)}.` };
}

const FIGURES = [
  ["Finished requests", "request_count", count], ["In flight", "in_flight", count], ["Requests a second", "throughput_rps", (v) => figure(v)],
  ["Users and sessions", "units", count], ["Error rate", "error_rate", (v) => figure(v, "%")],
  ["Callers' own errors", "client_errors", count], ["Overdue", "overdue", count], ["Served by A instead", "fallback_count", count],
  ["Latency, median", "latency_p50_ms", time], ["Latency, p95", "latency_p95_ms", time], ["Latency, p99", "latency_p99_ms", time],
  ["Time to first token, median", "ttft_p50_ms", time], ["Time to first token, p95", "ttft_p95_ms", time], ["Time to first token, p99", "ttft_p99_ms", time],
  ["Time between tokens, mean", "avg_inter_token_ms", time], ["Tokens generated", "completion_tokens", count],
  ["Cost", "cost", (v) => amount(v, "$")], ["Cost per request", "cost_per_request", (v) => amount(v, "$")],
  ["Tokens per GPU second", "tokens_per_gpu_second", (v) => figure(v)],
  ["Thumbs up", "thumbs_up_rate", (v) => figure(v, "%")], ["Satisfaction", "satisfaction_score", (v) => figure(v)],
  ["Conversion rate", "conversion_rate", (v) => figure(v, "%")],
];
const SELDOM = new Set(["client_errors", "overdue", "fallback_count", "cost", "cost_per_request", "thumbs_up_rate", "satisfaction_score",
  "conversion_rate", "tokens_per_gpu_second", "in_flight"]);

/** The figures of both variants side by side. */
export function figures(test) {
  const { a, b } = test.arms;
  if (!a || !b) return h("p", { class: "empty" }, "No figures yet.");
  const rows = FIGURES.filter(([, name]) => !SELDOM.has(name) || a[name] || b[name]);
  return h(
    "table", { class: "plain" },
    h("caption", { class: "hidden" }, "Figures of both variants since the test began"),
    h("thead", {}, h("tr", {}, h("td", {}), h("th", { scope: "col", class: "num" }, h("span", { class: "arm a" }, "A"), unseen(` ${test.model_a}`)),
      h("th", { scope: "col", class: "num" }, h("span", { class: "arm b" }, "B"), unseen(` ${test.model_b}`)))),
    h("tbody", {}, rows.map(([label, name, show]) => h("tr", { "data-key": name },
      h("th", { scope: "row" }, label), h("td", { class: "num" }, show(a[name])), h("td", { class: "num" }, show(b[name]))))),
  );
}

function share(percent, arm, bad) {
  return h("div", { class: "portion" },
    s("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      s("rect", { class: "rail", x: 0, y: 0, width: 100, height: 10 }),
      s("rect", { class: bad ? "badpart" : `part ${arm}`, x: 0, y: 0, width: percent || 0, height: 10 })),
    h("span", { class: "num" }, percent === null ? NONE : figure(percent, "%")));
}

/** How requests ended, by variant. */
export function outcomes(test) {
  if (!test.outcomes.length) return h("p", { class: "empty" }, "No request has ended yet.");
  return h(
    "table", { class: "plain outcomes" },
    h("caption", { class: "hidden" }, "How requests ended, by variant, in percent of those that ended"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Outcome"), h("th", { scope: "col" }, h("span", { class: "arm a" }, "A")),
      h("th", { scope: "col" }, h("span", { class: "arm b" }, "B")))),
    h("tbody", {}, test.outcomes.map((one) => h("tr", { "data-key": one.kind },
      h("th", { scope: "row" }, one.title, one.bad ? h("span", { class: "small badword" }, " error") : null),
      h("td", { title: count(one.a) }, share(one.a_percent, "a", one.bad)), h("td", { title: count(one.b) }, share(one.b_percent, "b", one.bad))))),
  );
}

/** What happened, newest first. */
export function timeline(test) {
  if (!test.timeline.length) return test.notes.length ? null : h("p", { class: "empty" }, "Nothing has happened yet.");
  return h("ol", { class: "timeline" }, test.timeline.map((one) => h(
    "li", { "data-key": one.id, class: one.tone },
    h("time", { datetime: new Date(one.at_ms).toISOString(), title: exactly(one.at_ms) }, stamp(one.at_ms).textContent),
    h("div", {},
      h("p", { class: "title" }, one.title, one.split_percent === null ? null : h("span", { class: "soft" }, ` · split ${figure(one.split_percent, "%")}`),
        one.by && one.by !== "alert" ? h("span", { class: "soft" }, ` · by ${one.by}`) : null),
      one.text ? h("p", { class: "small" }, one.text) : null),
  )));
}

function chartsOf(test, view) {
  const spans = h("div", { class: "segments", role: "group", "aria-label": "Span of the charts" },
    [["recent", "Last 10 minutes"], ["whole", "Whole test"]].map(([span, text]) => h("button", {
      type: "button", class: "segment", "data-action": "span", "data-span": span, "aria-pressed": String(view.span === span),
    }, text)));
  const shown = view.series;
  let body = loading("Reading the evidence …");
  const problem = view.seriesError ? trouble(view.seriesError, "reload-series", { test: test.test_id }) : null;
  if (problem && !shown) body = null;
  else if (shown && shown.state === "gone") body = h("p", { class: "empty" }, `No charts: ${shown.message}.`);
  else if (shown && shown.series && shown.series.seconds.length) {
    body = h("div", { class: "charts" }, plots(shown.series, test).map((plot) => frame(plot, test.test_id, shown.series.seconds, view.tables.has(`${test.test_id}.${plot.key}`))));
  } else if (shown) body = h("p", { class: "empty" }, "Nothing to draw yet.");
  const reading = shown && shown.state === "reading"
    ? h("p", { class: "small soft reading", role: "status" }, `The evidence is still being read: ${Math.round(100 * shown.progress)} %.`) : null;
  return section("charts", "Over time", spans, problem, reading, body);
}

/** The whole test. `view` holds what was fetched beside it. */
export function testView(test, view, me) {
  const told = view.summary || test;
  return h(
    "article", { class: `test ${test.tone}`, "data-key": test.test_id, "aria-labelledby": `h-${test.test_id}` },
    head(test, me), answers(test),
    section("guardrails", "Guardrails", null, guardrails(test)),
    chartsOf(test, view),
    h("div", { class: "two" },
      section("figures", "Both variants", null, figures(test)),
      section("outcomes", "Outcomes", null, outcomes(test))),
    section("timeline", "Time line", null, view.summaryError ? trouble(view.summaryError, "reload-summary", { test: test.test_id }) : null,
      view.summary ? timeline(told) : view.summaryError ? null : loading("Reading what happened …"),
    (told.notes || []).map((note) => h("p", { class: "small soft" }, `Not told: ${note}.`))),
    section("record", "Record", null,
      h("p", {}, button("Open the report", "report", { test: test.test_id, as: "html" }), " ",
        button("Save as Markdown", "report", { test: test.test_id, as: "markdown" }, "quiet"),
        h("span", { class: "small soft" }, " Test ", h("code", {}, test.test_id))),
      told.configuration && told.configuration.length ? h("details", {}, h("summary", {}, "What it was judged by"),
        h("dl", { class: "settings" }, told.configuration.map(([label, value]) => [h("dt", {}, label), h("dd", {}, value)]))) : null),
  );
}

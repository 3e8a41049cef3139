// What runs, which models there are, and what was: the first thing one sees.

import { h } from "./dom.js";
import { MOST } from "./fetched.js";
import { bytes, count, minutes } from "./format.js";
import { badge, button, loading, section, split, stamp, trouble } from "./parts.js";
import { answers, commands } from "./test.js";

const DECISIONS = {
  promote_b: ["good", "Promote the canary"], keep_a: ["wait", "Keep the stable model"], rollback: ["bad", "Rolled back"],
  inconclusive: ["plain", "Inconclusive"],
};
const STATES = { ready: "good", degraded: "wait", failed: "bad", unavailable: "bad", draining: "wait" };

function card(test, me) {
  return h(
    "article", { class: `test card ${test.tone}`, "data-key": test.test_id, "aria-labelledby": `h-${test.test_id}` },
    h("p", { class: "over" }, badge(test.tone, test.status_text),
      h("span", { class: "small soft" }, test.starts_at ? ["starts ", stamp(test.starts_at)] : ["for ", minutes(test.elapsed_minutes)])),
    h("h3", { class: "headline", id: `h-${test.test_id}` }, test.headline),
    h("p", { class: "subline" }, test.subline),
    split(test), answers(test, true),
    h("p", { class: "row" }, h("a", { class: "button primary", href: `#/tests/${encodeURIComponent(test.test_id)}` }, `Look at the test of ${test.model_b}`)),
    commands(test, me),
  );
}

/** The button that starts a test, or why there is none. */
export function starter(snapshot, me) {
  if (!me.may.includes("start")) return null;
  if (!snapshot.start.enabled) return h("p", { class: "small soft" }, "A/B testing is switched off (ab_testing.enabled).");
  return button("Start a test", "start", {}, "primary");
}

/** The running tests, where there are none or several. */
export function running(snapshot, me) {
  if (!snapshot.tests.length) {
    return h(
      "div", { class: "empty big" },
      h("p", { class: "headline" }, "No test is running."),
      h("p", {}, me.may.includes("start")
        ? "Start one to send a part of one model's traffic to another, and see whether that is better, or only safe."
        : `Your key (${me.name}) has the role ${me.role}: it may look at tests. Starting one takes an operator's key.`),
    );
  }
  return h("div", { class: "grid" }, snapshot.tests.map((test) => card(test, me)));
}

/** The models and how they are. */
export function models(snapshot) {
  if (!snapshot.models.length) return h("p", { class: "empty" }, "No model is known: name one under models in the configuration, or register one.");
  const running = Object.fromEntries(snapshot.tests.map((test) => [test.test_id, test]));
  const roles = (model) => model.in_use_by.map((id) => running[id]).filter(Boolean)
    .map((test) => (test.model_a === model.name ? `A of the test of ${test.model_b}` : `B against ${test.model_a}`));
  return h(
    "table", { class: "plain cards models" },
    h("caption", { class: "hidden" }, "Models"),
    h("thead", {}, h("tr", {}, ["Model", "State", "Workers", "Requests now", "Engine", "Memory", "In a test"].map((text, i) => h("th", { scope: "col", class: i === 2 || i === 3 || i === 5 ? "num" : null }, text)))),
    h("tbody", {}, snapshot.models.map((model) => h(
      "tr", { "data-key": model.name },
      h("th", { scope: "row" }, model.name),
      h("td", { "data-label": "State" }, badge(STATES[model.state] || "plain", model.state), model.reason ? h("p", { class: "small badword" }, model.reason) : null),
      h("td", { class: "num", "data-label": "Workers ready" }, `${model.ready_workers} of ${model.workers}`),
      h("td", { class: "num", "data-label": "Requests now" }, count(model.running), model.queued ? `, ${count(model.queued)} wait` : null),
      h("td", { "data-label": "Engine" }, model.engine || "–"),
      h("td", { class: "num", "data-label": "Memory" }, bytes(model.gpu_memory_bytes || model.memory_bytes)),
      h("td", { "data-label": "In a test" }, roles(model).join(", ") || "–"),
    ))),
  );
}

function ending(result) {
  const [tone, text] = result.status === "failed" ? ["bad", "Failed"] : DECISIONS[result.decision] || ["plain", result.status];
  return badge(tone, text);
}

/** Tests that have ended. What was read of them stands, whatever becomes of the next look. */
export function history(fetched) {
  const problem = fetched.historyError ? trouble(fetched.historyError, "reload-history") : null;
  if (!fetched.history) return problem || loading("Reading the history …");
  const { tests, total_tests: total, why } = fetched.history;
  if (!tests.length) return problem || h("p", { class: "empty" }, "No test has ended yet. Those that do are kept here, with their reports.");
  return [
    problem,
    h(
      "table", { class: "plain cards history" },
      h("caption", { class: "hidden" }, "Tests that have ended, newest first"),
      h("thead", {}, h("tr", {}, ["Ended", "Test", "Decision", "Why"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, tests.map((result) => h(
        "tr", { "data-key": result.test_id },
        h("td", { "data-label": "Ended" }, stamp(result.end_time)),
        h("th", { scope: "row" }, h("a", { href: `#/tests/${encodeURIComponent(result.test_id)}` },
          `${result.models.variant_b || "B"} against ${result.models.variant_a || "A"}`)),
        h("td", { "data-label": "Decision" }, ending(result)),
        h("td", { "data-label": "Why", class: "why" }, why[result.test_id] || "–"),
      ))),
    ),
    tests.length < total
      ? h("p", { class: "row" }, tests.length < MOST ? button("Show more", "more-history") : null,
        h("span", { class: "small soft" }, ` ${count(tests.length)} of ${count(total)}`, tests.length < MOST ? null : h("span", {}, "; ", h("code", {}, "cypria history"), " shows older ones.")))
      : null,
  ];
}

/** The whole overview. `main` stands where the running tests do when it is one that is shown whole. */
export function overview(snapshot, me, fetched, main) {
  const many = snapshot.tests.length;
  return [
    snapshot.monitoring_active ? null : h("p", { class: "note wait" }, h("strong", {}, "Monitoring is stopped. "), "Verdicts only alert: nothing is rolled back by itself."),
    section("tests", many > 1 ? `${many} tests are running` : many === 1 ? "Running test" : "Tests", starter(snapshot, me), main || running(snapshot, me)),
    section("models", "Models", null, models(snapshot)),
    section("history", "History", null, history(fetched)),
  ];
}

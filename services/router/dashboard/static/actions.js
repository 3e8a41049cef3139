// Commands, each with a dialog that says in numbers what will happen, and then what the server answered.

import { fill, h } from "./dom.js";
import { count, figure, minutes } from "./format.js";

const NL = { class: "plainlist" };

function dialog() {
  let found = document.getElementById("dialog");
  if (!found) {
    found = h("dialog", { id: "dialog", "aria-labelledby": "dialog-title" });
    document.body.append(found);
    found.addEventListener("click", (event) => {
      if (event.target.closest("[data-close]")) found.close();
    });
  }
  return found;
}

function show(children) {
  const place = dialog();
  place.replaceChildren(...children.filter(Boolean));
  if (!place.open) place.showModal();
  return place;
}

const effects = (...lines) => h("ul", NL, lines.filter(Boolean).map((text) => h("li", {}, text)));

/** Requests a second that both variants finish now. */
function rate(test) {
  const { a, b } = test.arms;
  return (a?.throughput_rps || 0) + (b?.throughput_rps || 0);
}

function perSecond(test, percent) {
  const all = rate(test);
  return all > 0 ? ` (about ${figure((all * percent) / 100)} requests a second)` : "";
}

const COMMANDS = {
  split: {
    title: (test) => `Change the split of ${test.model_b}`, verb: "Change split", method: "PATCH", path: "/traffic-split",
    what: (test) => effects(
      `${test.model_b} has ${figure(test.split_percent)} % of the traffic of ${test.model_a} now${perSecond(test, test.split_percent)}.`,
      "Raising it moves users from A to B only; lowering it moves some of B's back. The evidence so far is kept.",
      test.ramp ? "The ramp goes no further by itself from then on." : null),
    fields: (test) => [
      number("traffic_split_percent", "Canary's share of the traffic, in percent", test.split_percent, { min: 0, max: 100, step: 0.01, "aria-describedby": "f-after" }),
      h("p", { class: "small", id: "f-after" }, moved(test, test.split_percent)),
    ],
    changed: (form, test) => moved(test, form.elements.traffic_split_percent.valueAsNumber),
    body: (form) => ({ traffic_split_percent: form.elements.traffic_split_percent.valueAsNumber }),
    done: (answer, test) => `${test.model_b} gets ${figure(answer.traffic_split_percent)} % of the traffic from now on.`,
  },
  pause: {
    title: (test) => `Pause the test of ${test.model_b}`, verb: "Pause", method: "POST", path: "/pause",
    what: (test) => effects(
      `The split stays at ${figure(test.split_percent)} %: users keep the variant that they have.`,
      "Nothing goes up by itself until somebody resumes the test. Guardrails go on watching, and a rollback still happens."),
    done: () => "The test is paused.",
  },
  resume: {
    title: (test) => `Resume the test of ${test.model_b}`, verb: "Resume", method: "POST", path: "/resume",
    what: (test) => effects(
      `The test goes on at ${figure(test.split_percent)} %${perSecond(test, test.split_percent)}.`,
      test.ramp ? `Step ${test.ramp.step} of its ramp soaks anew.` : null),
    done: () => "The test goes on.",
  },
  approve: {
    title: (test) => `Approve step ${test.ramp?.step ?? ""} of the ramp`, verb: "Approve", method: "POST", path: "/approve",
    what: (test) => effects(
      test.ramp ? `The gate of step ${test.ramp.step} of ${test.ramp.of} opens: from ${figure(test.ramp.shares[test.ramp.step - 1])} % the ramp goes to ${figure(test.ramp.shares[test.ramp.step])} %.` : null,
      "It does so when the step's time and requests are complete and no guardrail is close to firing.",
      test.next_step ? test.next_step.text : null),
    done: () => "The step is approved.",
  },
  stop: {
    title: (test) => `Stop the test of ${test.model_b}`, verb: "Stop the test", method: "POST", path: "/stop", kind: "danger",
    what: (test) => effects(
      test.starts_at ? "It will not begin." : `${test.model_a} serves everything again: the ${figure(test.split_percent)} % of ${test.model_b}${perSecond(test, test.split_percent)} go back to it.`,
      test.starts_at ? null : "The verdict is taken from what was seen so far, and the test ends with it.",
      test.promotion ? `As it stands: ${test.promotion.text}` : null),
    fields: () => [text("reason", "Reason (optional)")],
    body: (form) => reasoned(form),
    done: (answer) => `The test has ended. Decision: ${(answer.decision || "none").replace("_", " ")}. ${answer.reason || ""}`,
  },
  rollback: {
    title: (test) => `Roll back ${test.model_b}`, verb: "Roll back", method: "POST", path: "/rollback", kind: "danger",
    what: (test) => effects(
      `${test.model_b} gets nothing more: its ${figure(test.split_percent)} %${perSecond(test, test.split_percent)} go to ${test.model_a}.`,
      test.arms.b?.in_flight ? `${count(test.arms.b.in_flight)} of its requests are under way: they are answered.` : null,
      "The test ends as rolled back. That cannot be undone; another test can be started."),
    fields: () => [choice("speed", "How", [["immediate", "At once"], ["gradual", "Step by step, as fast as the stable model can take it"]]), text("reason", "Reason (optional)")],
    body: (form) => ({ ...reasoned(form), speed: form.elements.speed.value }),
    done: (answer, test) => answer.status === "rolled_back" ? `${test.model_b} is out: ${test.model_a} serves everything.` : `${test.model_b} is being taken out step by step.`,
  },
};

/** What a new split means, in numbers. */
function moved(test, percent) {
  if (!Number.isFinite(percent) || percent < 0 || percent > 100) return "A share is between 0 and 100 %, in steps of 0.01 %.";
  const step = Math.round(100 * (percent - test.split_percent)) / 100;
  if (!step) return "That is the split that it has.";
  const from = step > 0 ? [test.model_a, test.model_b] : [test.model_b, test.model_a];
  return `${figure(Math.abs(step))} of every 100 users move from ${from[0]} to ${from[1]}; ${test.model_b} then has ${figure(percent)} %${perSecond(test, percent)}.`;
}

function reasoned(form) {
  const reason = form.elements.reason.value.trim();
  return reason ? { reason } : {};
}

function field(name, label, input) {
  return h("div", { class: "field" }, h("label", { for: `f-${name}` }, label), input);
}

function number(name, label, value, limits) {
  return field(name, label, h("input", { id: `f-${name}`, name, type: "number", value, required: true, inputmode: "decimal", ...limits }));
}

function text(name, label) {
  return field(name, label, h("input", { id: `f-${name}`, name, type: "text", maxlength: 2000, autocomplete: "off" }));
}

function choice(name, label, choices, chosen) {
  return field(name, label, h("select", { id: `f-${name}`, name }, choices.map(([value, words, disabled]) => h(
    "option", { value, selected: value === chosen, disabled }, words))));
}

function form(command, test, { title, what, fields, verb, kind }) {
  return [
    h("form", { "data-form": "act", "data-command": command, "data-test": test },
      h("h2", { id: "dialog-title", tabindex: "-1" }, title), what, fields,
      h("div", { class: "problem", role: "alert" }),
      h("div", { class: "row end" },
        h("button", { type: "button", class: "button", "data-close": true }, "Cancel"),
        h("button", { type: "submit", class: `button ${kind || "primary"}` }, verb))),
  ];
}

/** Ask whether a command is meant. */
export function ask(context, command, id) {
  const test = context.test(id);
  if (!test) return;
  const { title, what, fields, verb, kind, changed } = COMMANDS[command];
  const place = show(form(command, id, { title: title(test), what: what(test), fields: fields ? fields(test) : null, verb, kind }));
  if (changed) {
    const asked = place.querySelector("form");
    asked.addEventListener("input", () => fill(place.querySelector("#f-after"), [document.createTextNode(changed(asked, context.test(id) || test))]));
  }
}

/** Ask what to start, with everything filled in. */
export function starting(context) {
  const { start, models } = context.snapshot;
  const ready = models.map((model) => [model.name, `${model.name} (${model.ready_workers ? "ready" : model.state})`]);
  const { success_criteria: success, failure_criteria: failure } = start;
  show(form("start", "", {
    title: "Start a test", verb: "Start",
    what: h("p", {}, "A part of the users of one model is served by another. It is taken out by itself when it is shown to be worse."),
    fields: [
      ready.length < 2 ? h("p", { class: "note wait" }, "A test compares two models, and fewer than two are known.") : null,
      h("div", { class: "pair" },
        choice("model_a", "Stable model (A)", ready, start.model_a), choice("model_b", "Canary (B)", ready, start.model_b)),
      h("div", { class: "pair" },
        number("traffic_split_percent", "Canary's share, in percent", start.traffic_split_percent, { min: 0, max: 100, step: 0.01 }),
        number("test_duration_minutes", "For at most, in minutes", start.test_duration_minutes, { min: 0.01, max: 525600, step: "any" })),
      h("div", { class: "field check" }, h("input", { id: "f-auto_rollback", name: "auto_rollback", type: "checkbox", checked: true }),
        h("label", { for: "f-auto_rollback" }, "Roll back by itself when a guardrail fires")),
      h("details", {}, h("summary", { class: "small" }, "What it is judged by"),
        effects(
          `Errors of the canary at most ${figure(failure.max_error_rate_percent)} %, and at most ${figure(success.max_error_rate_increase_percent)} % above the stable model's.`,
          `Latency at most ${figure(success.max_latency_increase_percent)} % above the stable model's, ${count(failure.max_latency_ms)} ms on average.`,
          `A promotion needs the latency better by ${figure(success.min_improvement_threshold)} % and ${count(success.min_sample_size)} requests of each.`)),
    ],
  }));
}

function values(form) {
  const { elements } = form;
  return {
    model_a: elements.model_a.value, model_b: elements.model_b.value,
    traffic_split_percent: elements.traffic_split_percent.valueAsNumber, test_duration_minutes: elements.test_duration_minutes.valueAsNumber,
    auto_rollback: elements.auto_rollback.checked,
  };
}

function answered(title, words) {
  const place = show([
    h("h2", { id: "dialog-title", tabindex: "-1" }, title), h("p", { class: "note good" }, words),
    h("div", { class: "row end" }, h("button", { type: "button", class: "button primary", "data-close": true }, "Close")),
  ]);
  place.querySelector("[data-close]").focus();
}

function refused(form, error) {
  fill(form.querySelector(".problem"), [h("p", { class: "note bad" }, error.message)]);
  for (const marked of form.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
  const about = error.param && form.elements[error.param];
  if (about && about.focus) {
    about.setAttribute("aria-invalid", "true");
    about.focus();
  }
}

/** Do what a dialog asked about. */
export async function act(context, form) {
  const { command, test: id } = form.dataset;
  const submit = form.querySelector("[type=submit]");
  if (submit.disabled) return;
  submit.disabled = true;
  fill(form.querySelector(".problem"), []);
  try {
    if (command === "start") {
      const body = values(form);
      await context.api.json("/start", { method: "POST", body });
      dialog().close();
      context.notice(`Started: ${body.model_b} gets ${figure(body.traffic_split_percent)} % of the traffic of ${body.model_a}, for at most ${minutes(body.test_duration_minutes)}.`);
    } else {
      const { method, path, body, done, verb } = COMMANDS[command];
      const test = context.test(id) || { test_id: id, model_a: "A", model_b: "B" };
      const answer = await context.api.json(path, { method, body: { test_id: id, ...(body ? body(form) : {}) } });
      // A dialog that was closed meanwhile, or asks about something else by now, is left alone.
      if (form.isConnected && dialog().open) answered(verb, done(answer, test));
      else context.notice(done(answer, test));
    }
  } catch (error) {
    submit.disabled = false;
    context.refused(error, () => refused(form, error));
  }
}

/** Open a report in a tab of its own, or save it. */
export async function report(context, id, as) {
  const accept = as === "html" ? "text/html" : "text/markdown";
  try {
    const response = await context.api.fetch(`/tests/${encodeURIComponent(id)}/report`, { accept });
    const address = URL.createObjectURL(await response.blob());
    const link = h("a", as === "html" ? { href: address, target: "_blank", rel: "noopener" } : { href: address, download: `${id}.md` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  } catch (error) {
    context.refused(error, () => show([
      h("h2", { id: "dialog-title", tabindex: "-1" }, "No report"), h("p", { class: "note bad" }, error.message),
      h("div", { class: "row end" }, h("button", { type: "button", class: "button primary", "data-close": true }, "Close")),
    ]));
  }
}

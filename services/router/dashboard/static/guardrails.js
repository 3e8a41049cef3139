// Guardrails: what each arm has, the effect with its interval drawn against the limit, and the evidence.

import { h, s, unseen } from "./dom.js";
import { count, evalue, measured, signed, figure } from "./format.js";
import { badge } from "./parts.js";

const WIDTH = 240;
const HEIGHT = 34;
const MIDDLE = 15;
const LIMIT_AT = 0.7;
/* Every drawing has its limit at the same place, so that a column of them reads at a glance. */

function scale(row) {
  const limit = row.threshold || 1;
  // An increase has zero to its left; a figure of B's own begins at zero.
  const low = row.relative ? -limit : 0;
  const high = low + (limit - low) / LIMIT_AT;
  return (value) => (WIDTH * (value - low)) / (high - low);
}

const within = (x) => Math.min(WIDTH - 4, Math.max(4, x));

function shown(value, row) {
  return row.relative ? signed(value) : measured(value, row.effect_unit);
}

function interval(row) {
  const { effect_low: low, effect_high: high } = row;
  if (low === null && high === null) return null;
  if (low === null) return `up to ${shown(high, row)}`;
  if (high === null) return `from ${shown(low, row)}`;
  return `${shown(low, row)} to ${shown(high, row)}`;
}

function drawing(row) {
  const x = scale(row);
  const limit = x(row.threshold || 1);
  const parts = [
    s("rect", { class: "beyond", x: limit, y: 3, width: WIDTH - limit, height: 24 }),
    s("line", { class: "axis", x1: 0, x2: WIDTH, y1: MIDDLE, y2: MIDDLE }),
    row.relative ? s("line", { class: "zero", x1: x(0), x2: x(0), y1: 5, y2: 25 }) : null,
  ];
  if (row.effect_low !== null || row.effect_high !== null) {
    const from = row.effect_low === null ? 4 : within(x(row.effect_low));
    const to = row.effect_high === null ? WIDTH - 4 : within(x(row.effect_high));
    parts.push(s("rect", { class: `range ${row.tone}`, x: from, y: MIDDLE - 4, width: Math.max(3, to - from), height: 8, rx: 2 }));
    if (row.effect_high === null || x(row.effect_high) > WIDTH - 4) {
      parts.push(s("path", { class: `tip ${row.tone}`, d: `M${WIDTH - 8} ${MIDDLE - 7}l8 7-8 7z` }));
    }
    if (row.effect_low !== null && x(row.effect_low) < 4) {
      parts.push(s("path", { class: `tip ${row.tone}`, d: `M8 ${MIDDLE - 7}l-8 7 8 7z` }));
    }
  }
  if (row.effect !== null) parts.push(s("circle", { class: "point", cx: within(x(row.effect)), cy: MIDDLE, r: 4.5 }));
  parts.push(s("line", { class: "bound", x1: limit, x2: limit, y1: 1, y2: 29 }));
  return s("svg", { class: "interval", viewBox: `0 0 ${WIDTH} ${HEIGHT - 4}`, "aria-hidden": "true" }, parts);
}

function effect(row) {
  const range = interval(row);
  const value = row.effect === null ? null : shown(row.effect, row);
  const limit = row.relative ? signed(row.threshold) : measured(row.threshold, row.effect_unit);
  return h(
    "div", { class: "effect" },
    drawing(row),
    h(
      "p", { class: "small" },
      value === null && range === null ? "not known yet" : null,
      value === null ? null : h("strong", {}, value),
      range === null ? null : [value === null ? "" : ", ", `95 %: ${range}`],
      h("span", { class: "soft" }, ` · limit ${limit}`),
    ),
  );
}

/** A bar of ln E against the ln E at which it fires: a log scale of the e-value. */
export function evidence(logE, limit, tone) {
  const part = limit > 0 ? Math.min(1, Math.max(0, logE / limit)) : 0;
  const ticks = [];
  for (let power = 1; power * Math.LN10 < limit; power += 1) {
    const x = (120 * power * Math.LN10) / limit;
    ticks.push(s("line", { class: "tick", x1: x, x2: x, y1: 3, y2: 11 }));
  }
  return h(
    "div", { class: "evidence" },
    s(
      "svg", { class: "bar", viewBox: "0 0 120 14", "aria-hidden": "true", preserveAspectRatio: "none" },
      s("rect", { class: "rail", x: 0, y: 3, width: 120, height: 8, rx: 2 }),
      s("rect", { class: `filled ${tone}`, x: 0, y: 3, width: 120 * part, height: 8, rx: 2 }),
      ticks,
      s("line", { class: "bound", x1: 119, x2: 119, y1: 0, y2: 14 }),
    ),
    h("p", { class: "small" }, "E ", h("strong", {}, evalue(logE)), h("span", { class: "soft" }, ` of ${evalue(limit)}`)),
  );
}

function line(row) {
  const kind = row.quantity && row.quantity !== "share" ? ` (${row.quantity})` : "";
  return h(
    "tr", { "data-key": row.name, class: `guardrail ${row.tone}` },
    h(
      "th", { scope: "row" },
      h("span", { class: "title" }, row.title, kind),
      h("span", { class: "small soft" }, `${row.limit_text}, else it ${row.action_text}`),
    ),
    h("td", { class: "num", "data-label": "A" }, measured(row.value_a, row.unit), unseen(` over ${count(row.n_a)}`)),
    h("td", { class: "num", "data-label": "B" }, measured(row.value_b, row.unit), unseen(` over ${count(row.n_b)}`)),
    h("td", { "data-label": row.relative ? "B compared with A" : "B against the limit" }, effect(row)),
    h("td", { "data-label": "Evidence against B" }, evidence(row.log_e, row.limit, row.tone)),
    h("td", { "data-label": "State" }, badge(row.tone, row.state_text), h("p", { class: "small" }, row.text)),
  );
}

/** All guardrails of a test. */
export function guardrails(test) {
  if (!test.guardrails.length) {
    return h("p", { class: "empty" }, test.live
      ? "The monitor has not said yet how the guardrails stand."
      : test.reading !== null
        ? `The evidence is being read again, to tell how the guardrails stood: ${Math.round(100 * test.reading)} %.`
        : "How the guardrails stood is not on record any more.");
  }
  return h(
    "table", { class: "guardrails cards" },
    h("caption", { class: "hidden" }, "Guardrails: the value of each variant, the effect against its limit, the evidence, the state"),
    h(
      "thead", {},
      h("tr", {},
        h("th", { scope: "col" }, "Guardrail"),
        h("th", { scope: "col", class: "num" }, h("span", { class: "arm a" }, "A")),
        h("th", { scope: "col", class: "num" }, h("span", { class: "arm b" }, "B")),
        h("th", { scope: "col" }, "Effect against its limit"),
        h("th", { scope: "col" }, "Evidence against B"),
        h("th", { scope: "col" }, "State")),
    ),
    h("tbody", {}, test.guardrails.map(line)),
  );
}

/** The conditions of a promotion, met ones included. */
export function conditions(test) {
  return h(
    "ul", { class: "conditions" },
    test.conditions.map((one) => h(
      "li", { "data-key": one.name, class: one.met ? "met" : "open" },
      h("span", { class: "mark", "aria-hidden": "true" }, one.met ? "✓" : "○"),
      h("div", {},
        h("p", { class: "title" }, one.title, unseen(one.met ? ": met" : ": not met yet")),
        h("p", { class: "small soft" }, one.text, needs(one))),
      one.log_e !== null && one.limit !== null && one.name !== "guardrails" && one.name !== "sample_ratio"
        ? evidence(one.log_e, one.limit, one.met ? "good" : "plain") : null,
    )),
  );
}

function needs(one) {
  if (one.met) return null;
  if (one.needs_minutes) return ` Needs ${figure(one.needs_minutes)} more minutes.`;
  if (one.needs_requests) return ` Needs ${one.at_least ? "at least" : "about"} ${count(one.needs_requests)} more requests.`;
  const grows = one.log_e !== null && one.name !== "guardrails" && one.name !== "sample_ratio";
  return grows ? " How many more requests it needs cannot be told yet." : null;
}

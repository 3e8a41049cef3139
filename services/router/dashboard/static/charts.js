// Charts of a test over time, drawn by uPlot, each with a table that says the same.

import { fill, h } from "./dom.js";
import { figure, evalue, exactly, signed, time, when } from "./format.js";

const HEIGHT = 180;
const LINES = 4;
const ROWS = 60;
const charts = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const line = (label, values, stroke, extra = {}) => ({ label, values, stroke, ...extra });
const DASHED = { dash: [6, 4] };

function known(values) {
  return Array.isArray(values) && values.some((value) => value !== null);
}

/** What there is to draw of a series: {key, title, text, show, lines}. */
export function plots(series, test) {
  const found = [];
  const arms = (key, title, text, columns, show) => {
    const lines = columns.filter((each) => known(each.values));
    if (lines.length) found.push({ key, title, text, lines, show, live: test.live });
  };
  arms("traffic", "Traffic", "finished requests a second", [
    line("A", series.per_second.a, "a"), line("B", series.per_second.b, "b"),
  ], (value) => figure(value));
  arms("errors", "Error rate", "failed of the finished requests", [
    line("A", series.error_rate.a, "a"), line("B", series.error_rate.b, "b"),
  ], (value) => figure(value, "%"));
  for (const [key, title, columns] of [["latency", "Latency", series.latency_ms], ["ttft", "Time to first token", series.ttft_ms]]) {
    arms(key, title, "median (line) and p95 (dashed)", [
      line("A median", columns["a.p50"], "a"), line("B median", columns["b.p50"], "b"),
      line("A p95", columns["a.p95"], "a", DASHED), line("B p95", columns["b.p95"], "b", DASHED),
    ], time);
  }
  arms("effect", "Effect on the primary metric", `of B on ${series.metric.replace("_", " ")}, with its 95 % confidence sequence`, [
    line("effect", series.effect, "b"), line("at least", series.effect_low, "b", DASHED),
    line("at most", series.effect_high, "b", DASHED), ...asked(series, test),
  ], (value) => signed(value));
  evidence(series, test, found);
  arms("split", "Split", "the canary's share of the traffic, as applied", [
    line("B", series.share_bp.map((bp) => bp / 100), "b"),
  ], (value) => figure(value, "%"));
  return found;
}

function asked(series, test) {
  if (!test.effect || !known(series.effect)) return [];
  return [line("asked for", series.seconds.map(() => test.effect.asked), "good", { dash: [2, 4] })];
}

function evidence(series, test, found) {
  const acting = test.guardrails.filter((row) => row.action !== "warn" && known(series.log_e[row.name]));
  const peak = (row) => Math.max(...series.log_e[row.name].filter((value) => value !== null));
  const strongest = acting.sort((x, y) => peak(y) - peak(x)).slice(0, LINES);
  if (!strongest.length) return;
  const lines = strongest.map((row, i) => line(`${row.title}${row.relative ? "" : " (absolute)"}`, series.log_e[row.name], `line${i}`));
  lines.push(line("fires at", series.limit, "bad", DASHED));
  found.push({
    key: "evidence", title: "Evidence against the canary", text: "e-values on a log scale; one that reaches its limit fires",
    lines, show: evalue, least: -2, live: test.live,
  });
}

function range(plot, columns) {
  let low = plot.key === "effect" ? 0 : plot.least ?? 0;
  let high = plot.key === "effect" ? 0 : plot.most ?? 1;
  for (const column of columns) {
    for (const value of column) {
      if (value === null) continue;
      if (value < low && (plot.key === "effect" || plot.key === "evidence")) low = Math.max(value, plot.least ?? value);
      if (value > high) high = value;
    }
  }
  if (plot.key === "effect") {
    // The first intervals are as wide as the world: what is drawn is what came of them.
    const settled = plot.lines[0].values.filter((value) => value !== null).slice(-40);
    const most = 4 * Math.max(10, ...settled.map(Math.abs));
    low = Math.max(low, -most);
    high = Math.min(high, most);
  }
  return [low, high + 0.08 * (high - low || 1)];
}

/** The powers of ten on an axis of ln E. */
function powers(_, __, low, high) {
  const found = [];
  for (let power = 0; power * Math.LN10 <= high; power += 1) found.push(power * Math.LN10);
  return found.filter((_value, i) => i % Math.ceil(found.length / 6) === 0 && low <= high);
}

function options(plot, width, columns, seconds) {
  const ink = colour("soft");
  const grid = { stroke: colour("rule"), width: 1 };
  const axis = { stroke: ink, grid, ticks: grid, font: "12px system-ui, sans-serif" };
  return {
    width, height: HEIGHT, padding: [8, 22, 0, 0], legend: { show: false }, cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: true }, y: { range: () => range(plot, columns) } },
    axes: [
      { ...axis, space: 80, values: (_, stamps) => stamps.map((stamp) => when(stamp * 1000)) },
      { ...axis, size: 72, ...(plot.key === "evidence" ? { splits: powers } : {}), values: (_, values) => values.map((value) => plot.show(value)) },
    ],
    series: [{}, ...plot.lines.map((each) => ({
      label: each.label, stroke: colour(each.stroke), width: 1.75, dash: each.dash, points: { show: seconds.length < 4, size: 5 }, spanGaps: true,
    }))],
    hooks: { setCursor: [(chart) => follow(chart, plot)] },
  };
}

function follow(chart, plot) {
  const owner = charts.get(chart.root.parentNode?.dataset.chart);
  if (!owner) return;
  const at = chart.cursor.idx;
  owner.legend(at === null || at === undefined ? null : at, plot);
}

class Chart {
  constructor(place) {
    this.place = place;
    this.chart = null;
    this.signature = "";
  }

  draw(seconds, plot) {
    this.plot = plot;
    this.seconds = seconds;
    const width = Math.max(200, Math.floor(this.place.clientWidth));
    const theme = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    const signature = `${width} ${theme} ${seconds.length < 4} ${plot.lines.map((each) => each.label).join()}`;
    const columns = plot.lines.map((each) => each.values);
    if (this.chart && signature === this.signature) {
      this.columns.splice(0, this.columns.length, ...columns);
      this.chart.setData([seconds, ...columns]);
    } else {
      if (this.chart) this.chart.destroy();
      this.columns = columns;
      this.chart = new window.uPlot(options(plot, width, this.columns, seconds), [seconds, ...columns], this.place);
      this.signature = signature;
    }
    this.legend(null, plot);
  }

  legend(at, plot) {
    const index = at ?? this.seconds.length - 1;
    const list = this.place.parentNode.querySelector(".legend");
    if (!list) return;
    fill(list, plot.lines.map((each) => h(
      "li", { "data-key": each.label },
      h("span", { class: `key ${each.stroke} ${each.dash ? "dashed" : ""}`, "aria-hidden": "true" }),
      each.label, " ", h("strong", {}, plot.show(each.values[index])),
    )).concat(h("li", { class: "soft", "data-key": "at" }, at === null && plot.live ? "now" : when(1000 * this.seconds[index]))));
  }

  end() {
    if (this.chart) this.chart.destroy();
  }
}

function table(plot, seconds) {
  const step = Math.max(1, Math.ceil(seconds.length / ROWS));
  const rows = [];
  for (let i = seconds.length - 1; i >= 0; i -= step) rows.push(i);
  return h(
    "table", { class: "plain" },
    h("caption", { class: "hidden" }, `${plot.title}: ${plot.text}`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Time"), plot.lines.map((each) => h("th", { scope: "col", class: "num" }, each.label)))),
    h("tbody", {}, rows.map((i) => h(
      "tr", { "data-key": seconds[i] },
      h("th", { scope: "row", title: exactly(seconds[i] * 1000) }, when(seconds[i] * 1000)),
      plot.lines.map((each) => h("td", { class: "num" }, plot.show(each.values[i]))),
    ))),
  );
}

/** The frame of a chart; what is drawn in it comes with `draw`. */
export function frame(plot, testId, seconds, open) {
  const id = `${testId}.${plot.key}`;
  return h(
    "figure", { class: "chart", "data-key": plot.key },
    h("figcaption", {}, h("h3", {}, plot.title), h("p", { class: "small soft" }, plot.text)),
    h("div", { class: "canvas", "data-own": true, "data-chart": id, "aria-hidden": "true" }),
    h("ul", { class: "legend", "data-own": true }),
    h("details", { "data-table": id }, h("summary", { class: "small" }, `${plot.title} as a table`),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${plot.title}, table` }, open ? table(plot, seconds) : null)),
  );
}

/** Draw what stands in the document now, and forget what does not. */
export function draw(found, testId, seconds) {
  for (const [id, chart] of charts) {
    if (!chart.place.isConnected) {
      chart.end();
      charts.delete(id);
    }
  }
  for (const plot of found) {
    const id = `${testId}.${plot.key}`;
    const place = document.querySelector(`[data-chart="${CSS.escape(id)}"]`);
    if (!place || !place.clientWidth) continue;
    if (!charts.has(id)) charts.set(id, new Chart(place));
    charts.get(id).draw(seconds, plot);
  }
}

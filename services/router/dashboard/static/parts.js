// Small pieces that every view uses.

import { h, s, unseen } from "./dom.js";
import { exactly, when } from "./format.js";

const MARKS = { good: "✓", wait: "!", bad: "✕", plain: "·" };

/** A word with its tone, told by a mark as well as by colour. */
export function badge(tone, text) {
  return h("span", { class: `badge ${tone}` }, h("span", { class: "mark", "aria-hidden": "true" }, MARKS[tone] || "·"), text);
}

/** A time, in full where it is pointed at. */
export function stamp(value) {
  const date = value ? new Date(value) : null;
  return h("time", { datetime: date ? date.toISOString() : null, title: exactly(value) }, when(value));
}

/** A button of the page's one click handler. */
export function button(text, action, data = {}, kind = "") {
  const attributes = { type: "button", class: `button ${kind}`.trim(), "data-action": action };
  for (const [name, value] of Object.entries(data)) attributes[`data-${name}`] = value;
  return h("button", attributes, text);
}

/** A section with its heading. */
export function section(key, title, extra, ...children) {
  return h(
    "section", { "data-key": key, id: key, "aria-labelledby": `${key}-title`, class: "section" },
    h("div", { class: "section-head" }, h("h2", { id: `${key}-title`, tabindex: "-1" }, title), extra),
    children,
  );
}

/** What is being waited for. */
export function loading(text) {
  return h("p", { class: "empty loading" }, h("span", { class: "spin", "aria-hidden": "true" }), text);
}

/** Something that went wrong, in words, and what can be done. */
export function trouble(error, action, data) {
  return h(
    "div", { class: "note bad" },
    h("p", {}, h("strong", {}, "That did not work. "), error.message),
    action ? button("Try again", action, data, "small") : null,
  );
}

/** How the traffic is split. */
export function split(test) {
  const share = test.effective_percent ?? test.split_percent;
  const shown = test.live ? share : 0;
  const b = Math.round(shown * 100) / 100;
  const a = Math.round((100 - b) * 100) / 100;
  return h(
    "div", { class: "split" },
    h("div", { class: "ends" },
      h("span", { class: "arm a" }, "A"), h("span", { class: "name" }, test.model_a), h("strong", {}, `${a} %`),
      h("span", { class: "gap" }),
      h("strong", {}, `${b} %`), h("span", { class: "name" }, test.model_b), h("span", { class: "arm b" }, "B")),
    s("svg", { class: "share", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
      s("rect", { class: "part a", x: 0, y: 0, width: a, height: 4 }), s("rect", { class: "part b", x: a, y: 0, width: b, height: 4 })),
    test.live ? null : unseen("Everything goes to A."),
  );
}

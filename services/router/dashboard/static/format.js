// Figures and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 2 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });

export const NONE = "–";

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** A whole number. */
export const count = (value) => (known(value) ? whole.format(value) : NONE);

/** A figure of three digits. */
export function figure(value, unit = "") {
  if (!known(value)) return NONE;
  const text = Math.abs(value) >= 1000 ? whole.format(value) : three.format(Math.abs(value) < 1e-9 ? 0 : value);
  return unit ? `${text} ${unit}` : text;
}

/** An amount of money, or any figure with its unit. */
export function amount(value, unit) {
  if (unit !== "$") return figure(value, unit);
  return known(value) ? `$${three.format(value)}` : NONE;
}

/** Milliseconds, as seconds where there are many. */
export function time(ms) {
  if (!known(ms)) return NONE;
  return ms >= 10000 ? `${three.format(ms / 1000)} s` : `${figure(ms)} ms`;
}

/** A value in a guardrail's unit. */
export const measured = (value, unit) => (unit === "ms" ? time(value) : amount(value, unit));

/** A change with its sign. */
export function signed(value, unit = "%") {
  if (!known(value)) return NONE;
  const rounded = Math.abs(value) >= 10 ? Math.round(value) : Math.round(10 * value) / 10;
  return `${rounded > 0 ? "+" : rounded < 0 ? "−" : ""}${figure(Math.abs(rounded), unit)}`;
}

/** A large number in few letters: 2.4K. */
export const brief = (value) => (value < 1000 ? three.format(value) : compact.format(value));

/** An e-value from its logarithm. */
export function evalue(logE) {
  if (!known(logE)) return NONE;
  if (logE > 27) return `10${[...String(Math.round(logE / Math.LN10))].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
  const value = Math.exp(logE);
  return value < 0.1 ? "under 0.1" : value < 10 ? new Intl.NumberFormat("en", { maximumFractionDigits: 1 }).format(value) : brief(value);
}

/** Minutes in the unit that suits them. */
export function minutes(value) {
  if (!known(value)) return NONE;
  const seconds = value * 60;
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (value < 90) return `${Math.round(value)} min`;
  if (value < 2880) return `${three.format(value / 60)} h`;
  return `${three.format(value / 1440)} days`;
}

/** A time stamp, with its date where it is not of today. */
export function when(stamp) {
  if (!stamp) return NONE;
  const date = new Date(stamp);
  return date.toDateString() === new Date().toDateString() ? clock.format(date) : day.format(date);
}

/** A time stamp in full. */
export const exactly = (stamp) => (stamp ? full.format(new Date(stamp)) : "");

/** Bytes. */
export function bytes(value) {
  if (!value) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  return `${three.format(value / 2 ** (10 * power))} ${units[power]}`;
}

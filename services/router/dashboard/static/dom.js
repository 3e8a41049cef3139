// Elements from data, and a document that follows them. Text is only ever text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "rect", "line", "circle", "path", "g", "title", "text"]);

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

/** A figure and its unit stay on one line; a name cannot turn the text around it. */
const tidy = (text) => text.replace(/(\d) (?=%|ms\b|min\b|[sh]\b)/g, "$1\u00a0").replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

function append(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(element, child);
    else element.append(child instanceof Node ? child : tidy(String(child)));
  }
}

/** An element: h("p", {class: "soft"}, "text", other, [more]). */
export function h(tag, attributes, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** An element of a drawing. */
export function s(tag, attributes, ...children) {
  if (!SVG_TAGS.has(tag)) throw new Error(`no element of a drawing: ${tag}`);
  return build(document.createElementNS(SVG, tag), attributes, children);
}

/** Text for screen readers only. */
export function unseen(text) {
  return h("span", { class: "hidden" }, text);
}

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null;
}

function alike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);
}

// What people opened, typed or chose stays as they left it.
const THEIRS = { DETAILS: ["open"], INPUT: ["value", "checked"], DIALOG: ["open"] };

function follow(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  const theirs = THEIRS[old.nodeName] || [];
  for (const { name } of [...old.attributes]) {
    if (!next.hasAttribute(name) && !theirs.includes(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...next.attributes]) {
    if (!theirs.includes(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  // A place that another part of the page fills.
  if (!old.hasAttribute("data-own")) fill(old, [...next.childNodes]);
}

/** Make the children of a node those given, changing only what differs: focus, scrolling and selections stay. */
export function fill(parent, wanted) {
  const keyed = new Map();
  for (const child of parent.childNodes) if (keyOf(child) !== null) keyed.set(keyOf(child), child);
  let at = parent.firstChild;
  for (const next of wanted) {
    const key = keyOf(next);
    const found = key !== null ? keyed.get(key) : at;
    keyed.delete(key);
    if (found && found.parentNode === parent && alike(found, next)) {
      if (found !== at) parent.insertBefore(found, at);
      follow(found, next);
      at = found.nextSibling;
    } else {
      parent.insertBefore(next, at);
    }
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

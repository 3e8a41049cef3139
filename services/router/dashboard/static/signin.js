// Signing in and out. The key is kept for this tab alone, and never in an address.

import { h } from "./dom.js";
import { button } from "./parts.js";

const PLACE = "cypria-key";

/** The key of this tab, if there is one. */
export function kept() {
  try {
    return sessionStorage.getItem(PLACE);
  } catch {
    return null;
  }
}

/** Keep a key for this tab, or forget it (null). */
export function keep(key) {
  try {
    if (key === null) sessionStorage.removeItem(PLACE);
    else sessionStorage.setItem(PLACE, key);
  } catch {
    // Storage is switched off: the key lives as long as this page.
  }
}

/** The form; `problem` says why one is here again. */
export function signIn(problem, busy) {
  return h(
    "div", { class: "signin", "data-key": "signin" },
    h("h1", { tabindex: "-1" }, "Sign in to Cypria"),
    h("p", {}, "This page shows which tests run, whether they are safe, and what they still need."),
    problem ? h("p", { class: "note bad", role: "alert", id: "key-problem" }, problem) : null,
    h(
      "form", { "data-form": "signin", method: "dialog" },
      // A password manager keeps the key under this name.
      h("input", { class: "hidden", name: "username", autocomplete: "username", value: "Cypria", tabindex: "-1", "aria-hidden": "true", readonly: true }),
      h("label", { for: "key" }, "API key"),
      h("input", {
        id: "key", name: "key", type: "password", autocomplete: "current-password", spellcheck: "false", autocapitalize: "off",
        required: true, "aria-describedby": problem ? "key-problem key-help" : "key-help", "aria-invalid": problem ? "true" : null,
      }),
      h("p", { class: "small soft", id: "key-help" },
        "A key of the role viewer may look, one of the role operator may also change tests. ",
        "It stays in this tab and is forgotten when you sign out."),
      h("button", { type: "submit", class: "button primary", disabled: busy }, busy ? "Signing in …" : "Sign in"),
    ),
    h("details", {}, h("summary", { class: "small" }, "Where is my key?"),
      h("p", { class: "small" }, h("code", {}, "cypria up"), " and ", h("code", {}, "make demo"), " write an admin key to ",
        h("code", {}, "admin.key"), " in the data directory and say where that is. An admin makes others with ",
        h("code", {}, "cypria keys create"), ".")),
  );
}

/** A key that may not look. */
export function notAllowed(me) {
  return h(
    "div", { class: "signin", "data-key": "denied" },
    h("h1", { tabindex: "-1" }, "This key may not look at tests"),
    h("p", {}, `The key ${me.name} has the role ${me.role}: it sends requests to models. Looking at tests takes the role viewer or more. Ask an admin for one, or sign in with another key.`),
    button("Use another key", "sign-out", {}, "primary"),
  );
}

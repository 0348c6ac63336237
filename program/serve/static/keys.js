// Single keys. Each is the `aria-keyshortcuts` of a control and works as a click on it where it is to be seen.

import { byId, el } from "./dom.js";

const KEYS = [
  ["Go to", [["w", "Ask"], ["q", "Queue"], ["v", "Full review"], ["c", "choose a contract"], ["/", "the question"],
    ["g", "the contract's text"], ["?", "this list"]]],
  ["An answer", [["j", "next quote"], ["k", "previous quote"], ["y", "right"], ["x", "wrong"], ["1 – 5", "how good"],
    ["m", "comment"], ["e", "correct it"]]],
  ["Correcting", [["f", "find the right text; ↓ ↑ go on, Enter takes it"], ["a", "use the selected text"],
    ["0", "not in this contract"], ["Ctrl Enter", "save"], ["Esc", "leave a field, cancel"]]],
  ["Two answers", [["l", "left is better"], ["r", "right is better"], ["t", "neither"]]],
  ["Queue", [["s", "skip"], ["n", "next"], ["b", "back"]]],
];
const STORED = "evergreen-keys";
const FIELDS = "input:not([type=radio]):not([type=checkbox]), textarea, select, [contenteditable]";

export function listen(remember) {
  byId("keys").replaceChildren(...KEYS.map(([title, keys]) =>
    el("section", {}, el("h3", {}, title),
      el("dl", {}, ...keys.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])))));
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  const on = byId("keys-on");
  on.checked = remember(STORED) !== "off";
  on.addEventListener("change", () => remember(STORED, on.checked ? "on" : "off"));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
    if (event.target.matches?.(FIELDS)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (!on.checked || document.querySelector("dialog[open]")) return;
    const target = controlFor(event.key);
    if (!target) return;
    event.preventDefault();
    if (target.matches(`${FIELDS}, #text`)) target.focus();
    else target.click();
  });
}

function controlFor(key) {
  const all = document.querySelectorAll(`[aria-keyshortcuts="${CSS.escape(key)}"]`);
  return Array.from(all).find((one) => one.getClientRects().length && !one.disabled && !one.closest("[inert]"));
}

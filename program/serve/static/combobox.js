// A text field with a list of suggestions (the ARIA combobox pattern): arrows choose, Enter takes, Escape closes.

import { el, freshId } from "./dom.js";

const SHOWN = 100;

/** `options()` are {label, note, value}; `onpick(option)` is called for one that is taken. Returns {close}. */
export function combobox(input, list, options, onpick) {
  let shown = [];
  let active = -1;
  const prefix = freshId("option");
  for (const [name, value] of Object.entries({
    role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": list.id,
  })) input.setAttribute(name, value);
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Suggestions");

  function close() {
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function open(all) {
    const words = all ? [] : input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (text) => words.every((word) => text.toLowerCase().includes(word));
    const byLabel = options().filter((option) => fits(option.label));
    const byNote = options().filter((option) => !fits(option.label) && fits(`${option.label} ${option.note ?? ""}`));
    const found = [...byLabel, ...byNote];
    // A name that is written out needs no suggestion, which would lie over what comes next.
    const whole = !all && options().some((option) => option.label.toLowerCase() === input.value.trim().toLowerCase());
    shown = whole ? [] : found.slice(0, SHOWN);
    const more = whole ? 0 : found.length - shown.length;
    list.replaceChildren(
      ...shown.map((option, i) =>
        el("li", { role: "option", id: `${prefix}-${i}`, "aria-selected": "false", onclick: () => pick(i) },
          el("span", {}, option.label), option.note ? el("small", {}, option.note) : null)),
    );
    if (more > 0) list.append(el("li", { class: "more", role: "presentation" }, `${more} more: type to narrow the list`));
    list.hidden = shown.length === 0;
    active = -1;
    input.setAttribute("aria-expanded", String(!list.hidden));
    input.removeAttribute("aria-activedescendant");
  }

  function move(to) {
    if (list.hidden) open(true);
    if (!shown.length) return;
    list.children[active]?.setAttribute("aria-selected", "false");
    active = (to + shown.length) % shown.length;
    list.children[active].setAttribute("aria-selected", "true");
    list.children[active].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", `${prefix}-${active}`);
  }

  function pick(i) {
    const option = shown[i];
    close();
    onpick(option);
  }

  input.addEventListener("input", () => open(false));
  input.addEventListener("click", () => list.hidden && open(true));
  input.addEventListener("blur", close);
  // Else the field would lose the focus, and the list be gone, before the click comes.
  list.addEventListener("pointerdown", (event) => event.preventDefault());
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "ArrowDown") move(active + 1);
    else if (event.key === "ArrowUp") move(active < 0 ? -1 : active - 1);
    else if (event.key === "Enter" && active >= 0) pick(active);
    else if (event.key === "Escape" && !list.hidden) close();
    else if (event.key === "Escape") input.blur();
    else return;
    event.preventDefault();
  });
  return { close };
}

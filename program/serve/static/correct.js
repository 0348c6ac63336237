// Saying what is right: stretches of the contract, words, or that it is not there.

import { find } from "./find.js";
import { button, el, freshId, short } from "./dom.js";

/** A form: {root, spans, add(stretch), focus()}. `save(fields)` returns whether it was stored; offsets are characters. */
export function correctionForm(app, answer, quotes, { save, close }) {
  const form = { spans: [] };
  const name = freshId("found");
  const here = el("input", { type: "radio", name, checked: true, onchange: draw });
  const absent = el("input", { type: "radio", name, onchange: draw, "aria-keyshortcuts": "0" });
  const words = el("textarea", { id: freshId("answer"), rows: "2" });
  const search = el("input", { id: freshId("find"), type: "search", autocomplete: "off", spellcheck: "false",
    "aria-keyshortcuts": "f", "aria-describedby": `${name}-hint` });
  const count = el("span", { class: "soft small", role: "status" });
  const preview = el("p", { class: "found-at small" });
  const list = el("ul", { class: "span-list", "aria-label": "Right text" });
  const fault = el("p", { class: "bad", role: "alert" });
  let matches = [];
  let at = 0;

  form.add = (stretch) => {
    here.checked = true;
    form.spans = united([...form.spans, { start: stretch.start, end: stretch.end }]);
    draw();
    app.say(`Added: ${short(app.pane.text.slice(stretch.start, stretch.end))}`);
  };
  form.focus = () => {
    search.focus({ preventScroll: true });
    form.root.scrollIntoView({ block: "nearest" });
  };

  function look(to) {
    at = matches.length ? (to + matches.length) % matches.length : 0;
    count.textContent = !search.value.trim() ? "" : matches.length ? `${at + 1} of ${matches.length}` : "not in the text";
    app.pane.mark("match", matches.length ? [matches[at]] : []);
    preview.replaceChildren();
    if (!matches.length) return;
    // Where the text is below the form, going there would take the form away: what stands around comes here.
    if (app.wide()) app.pane.reveal(matches[at].start);
    else preview.append(...around(app.pane.text, matches[at]));
  }

  function take() {
    if (!matches.length) return;
    form.add(matches[at]);
    search.value = "";
    matches = [];
    look(0);
  }

  search.addEventListener("input", () => {
    matches = find(app.pane.text, search.value);
    look(0);
  });
  search.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.isComposing) return;
    if (event.key === "ArrowDown") look(at + 1);
    else if (event.key === "ArrowUp") look(at - 1);
    else if (event.key === "Enter") take();
    else return;
    event.preventDefault();
  });

  function draw() {
    within.hidden = absent.checked;
    fault.textContent = "";
    app.pane.mark("spans", absent.checked ? [] : form.spans);
    list.replaceChildren(...form.spans.map((span, i) => spanItem(app, span, (changed, label) => {
      form.spans = united(form.spans.flatMap((one, n) => (n === i ? (changed ? [changed] : []) : [one])));
      draw();
      // The button that was pressed is gone with the old list; its like takes the focus.
      (list.children[i]?.querySelector(`[aria-label="${label}"]`) ?? search).focus();
    })));
  }

  async function submit(event) {
    event.preventDefault();
    const said = words.value.trim();
    const found = here.checked;
    if (found && !form.spans.length && !said) {
      fault.textContent = "Select the right text in the contract, or type the answer, or choose “Not in this contract”.";
      return;
    }
    fault.textContent = "";
    const spans = found ? form.spans.map((span) => app.pane.chars(span)) : [];
    if (await save({ found, spans, answer: found ? said : undefined })) end();
  }

  function end() {
    app.pane.mark("spans", []);
    app.pane.mark("match", []);
    close();
    app.drawBar();
  }

  const within = el("div", {},
    el("div", { class: "field" },
      el("label", { for: search.id }, "Select the text in the contract, or find it"),
      search,
      el("p", { class: "row small" }, count,
        button("‹", () => look(at - 1), { class: "quiet", "aria-label": "Previous place" }),
        button("›", () => look(at + 1), { class: "quiet", "aria-label": "Next place" }),
        button("Use this place", take, { class: "quiet" })),
      preview,
      el("p", { class: "soft small", id: `${name}-hint` }, "↓ and ↑ go from place to place, Enter takes one.")),
    quotes.length ? button("Start from its quotes", () => quotes.forEach(form.add), { class: "quiet" }) : null,
    list,
    el("div", { class: "field" }, el("label", { for: words.id }, "The answer in words ", el("span", { class: "soft" }, "optional")), words));
  form.root = el("form", { class: "correction", onsubmit: submit, "aria-label": "Correct the answer", novalidate: true },
    el("h3", {}, "What is right?"),
    el("div", { class: "row", role: "radiogroup", "aria-label": "Is it in the contract?" },
      el("label", { class: "check" }, here, "In this contract"),
      el("label", { class: "check" }, absent, "Not in this contract")),
    within, fault,
    el("div", { class: "row" },
      el("button", { type: "submit", class: "main" }, "Save correction"),
      button("Cancel", end)));
  form.root.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
    else if (event.key === "Escape" && !(event.target === search && search.value)) {
      event.stopPropagation();
      end();
    }
  });
  return form;
}

function spanItem(app, span, change) {
  const { text } = app.pane;
  const step = (label, sign, start, end) =>
    button(sign, () => {
      const moved = app.pane.trimmed({ start: start(), end: end() });
      if (moved) change(moved, label);
    }, { class: "quiet", "aria-label": label, title: label });
  const same = (unit) => () => unit;
  return el("li", {},
    el("blockquote", {}, short(text.slice(span.start, span.end), 300)),
    el("p", { class: "row small", role: "group", "aria-label": "Change this stretch" },
      el("span", { class: "soft" }, "start"),
      step("Start a word earlier", "‹", () => wordBefore(text, span.start), same(span.end)),
      step("Start a word later", "›", () => Math.min(wordAfter(text, span.start), span.end), same(span.end)),
      el("span", { class: "soft" }, "end"),
      step("End a word earlier", "‹", same(span.start), () => Math.max(wordBefore(text, span.end), span.start)),
      step("End a word later", "›", same(span.start), () => wordAfter(text, span.end)),
      button("Show", () => app.pane.reveal(span.start), { class: "quiet" }),
      button("Remove", () => change(null), { class: "quiet" })));
}

function around(text, { start, end }) {
  const before = short(text.slice(Math.max(0, start - 90), start), 100);
  const after = short(text.slice(end, end + 90), 100);
  return [`… ${before} `, el("mark", { class: "match" }, text.slice(start, end)), ` ${after} …`];
}

function wordBefore(text, unit) {
  const before = text.slice(Math.max(0, unit - 1000), unit);
  return unit - (/\S+\s*$/.exec(before)?.[0].length ?? 0);
}

function wordAfter(text, unit) {
  return unit + (/^\s*\S+/.exec(text.slice(unit, unit + 1000))?.[0].length ?? 0);
}

/** In order, those that overlap made one: a character is marked once. */
function united(spans) {
  const merged = [];
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    const last = merged.at(-1);
    if (last && span.start < last.end) last.end = Math.max(last.end, span.end);
    else merged.push({ ...span });
  }
  return merged;
}

// Two answers side by side, without saying which of them is whose.

import * as api from "./api.js";
import { button, details, el, freshId } from "./dom.js";

const SIDES = { left: "Left", right: "Right" };

/** The card of two candidates: {root, heading, show}; `category` is the clause asked about, if any. */
export function choiceCard(app, pair, category) {
  const heading = el("h2", { tabindex: "-1" }, category ?? pair.question);
  const saved = el("p", { class: "saved", role: "status" });
  const comment = el("textarea", { id: freshId("comment"), rows: "2", "aria-keyshortcuts": "m" });
  const marks = pair.candidates.flatMap(({ key, quotes }) =>
    quotes.flatMap((quote) => {
      const place = app.pane.place(quote);
      return place ? [{ ...place, kind: key }] : [];
    }));
  const card = { heading };

  card.show = () => {
    app.current = card;
    app.pane.mark("spans", []);
    app.pane.mark("match", []);
    app.pane.mark("quotes", marks);
    if (marks.length) app.pane.go(0, app.wide());
    app.drawBar();
  };

  let sending = false;

  async function choose(chosen) {
    if (sending) return;
    sending = true;
    const note = comment.value.trim();
    try {
      await api.feedback("choice", { candidates_id: pair.id, chosen, comment: note, by: app.name() });
    } catch (error) {
      return app.fail(error);
    } finally {
      sending = false;
    }
    app.fail(null);
    comment.value = "";
    for (const one of choices.children) one.setAttribute("aria-pressed", String(one.dataset.value === chosen));
    saved.textContent = chosen === "tie" ? "Saved: neither is better." : `Saved: the ${chosen} one is better.`;
  }

  const asked = el("h3", { id: freshId("better") }, "Which answer is better?");
  const choices = el("div", { class: "choices", role: "group", "aria-labelledby": asked.id },
    ...[["left", "Left", "l"], ["tie", "Neither", "t"], ["right", "Right", "r"]].map(([value, label, key]) =>
      button(label, () => choose(value), { "data-value": value, "aria-pressed": "false", "aria-keyshortcuts": key })));
  const sides = Object.keys(SIDES).map((key) => pair.candidates.find((one) => one.key === key));
  card.root = el("article", { class: "card" }, heading,
    category ? el("p", { class: "soft small details" }, details(pair.question)) : null,
    el("div", { class: "sides" }, ...sides.map((side) => sideOf(app, card, side, marks))),
    asked, choices,
    el("div", { class: "field comment" }, el("label", { for: comment.id }, "Comment, sent with your choice"), comment),
    saved);
  return card;
}

function sideOf(app, card, { key, answer, quotes }, marks) {
  const title = freshId("side");
  const items = quotes.map((quote) => {
    const place = app.pane.place(quote);
    if (!place) return el("li", {}, el("blockquote", {}, quote.text));
    const n = marks.findIndex((mark) => mark.kind === key && mark.start === place.start && mark.end === place.end);
    return el("li", {}, button(quote.text, () => {
      if (app.current !== card) card.show();
      app.pane.go(n);
      app.drawBar();
    }, { class: `quote ${key}` }));
  });
  return el("section", { class: `side ${key}`, "aria-labelledby": title },
    el("h3", { id: title }, SIDES[key]), el("p", { class: "answer" }, answer),
    items.length ? el("ol", { class: "quote-list" }, ...items) : null);
}

// One answer: what was said, the quotes it rests on, and the feedback on it.

import * as api from "./api.js";
import { correctionForm } from "./correct.js";
import { button, details, el, freshId, percent, short } from "./dom.js";

/**
 * The card of an answer: {root, heading, show, correct}. `show()` marks its quotes in the contract and makes it the one
 * that keys act on; `onsaved(kind)` is called after feedback of a kind (rating-up, rating-down, rating, correction) is stored.
 */
export function answerCard(app, answer, onsaved = () => {}) {
  const places = answer.quotes.map((quote) => app.pane.place(quote));
  const shown = places.filter(Boolean);
  const heading = el("h2", { tabindex: "-1" }, answer.category ?? answer.question);
  const saved = el("p", { class: "saved", role: "status" });
  const comment = el("textarea", { id: freshId("comment"), rows: "1", "aria-keyshortcuts": "m", oninput: () => grow() });
  const saveComment = button("Save comment", () => send("rating", {}, "rating", "Saved."), { class: "save-comment" });
  const grow = () => {
    saveComment.hidden = !comment.value.trim();
    comment.rows = Math.min(8, comment.value.split("\n").length + Math.floor(comment.value.length / 50));
  };
  grow();
  const correction = el("div", {});
  const card = { answer, heading, correction: null };

  card.show = () => {
    app.current = card;
    app.pane.mark("spans", card.correction?.spans ?? []);
    app.pane.mark("match", []);
    app.pane.mark("quotes", shown);
    if (shown.length) app.pane.go(0, app.wide());
    app.drawBar();
  };

  card.correct = (focus = true) => {
    if (!card.correction) openCorrection();
    if (focus) card.correction.focus();
  };

  function openCorrection() {
    card.correction = correctionForm(app, answer, shown, {
      save: (fields) => send("correction", fields, "correction", "Your correction is saved."),
      close: () => {
        card.correction = null;
        correction.replaceChildren();
        correctButton.focus();
      },
    });
    correction.replaceChildren(card.correction.root);
  }

  let sending = false;

  async function send(kind, fields, what, words) {
    if (sending) return false; // a second click says nothing new
    sending = true;
    const note = comment.value.trim();
    try {
      await api.feedback(kind, { answer_id: answer.id, ...fields, comment: note, by: app.name() });
    } catch (error) {
      app.fail(error);
      return false;
    } finally {
      sending = false;
    }
    app.fail(null);
    comment.value = "";
    grow();
    saved.textContent = note ? `${words} Your comment too.` : words;
    onsaved(what);
    return true;
  }

  const thumb = (thumbs, label, key) =>
    button(label, async () => {
      const words = thumbs === "up" ? "Saved as right." : "Saved as wrong. You can say below what is right.";
      const done = await send("rating", { thumbs }, `rating-${thumbs}`, words);
      if (done) press(rating, thumbs);
      if (done && thumbs === "down") card.correct();
    }, { class: `thumb ${thumbs}`, "data-value": thumbs, "aria-pressed": "false", "aria-keyshortcuts": key });
  const rating = el("div", { class: "row", role: "group", "aria-label": "Is this answer right?" },
    thumb("up", "Right", "y"), thumb("down", "Wrong", "x"));
  const stars = el("div", { class: "stars", role: "group", "aria-label": "How good is this answer, from 1 to 5?" });
  stars.append(...[1, 2, 3, 4, 5].map((n) =>
    button("☆", async () => {
      if (await send("rating", { stars: n }, "rating", `Saved: ${n} of 5.`)) press(stars, String(n));
    }, { "data-value": n, "aria-label": `${n} of 5`, "aria-pressed": "false", "aria-keyshortcuts": n })));
  const correctButton = button("Correct it", () => card.correct(), { "aria-keyshortcuts": "e" });
  rating.append(correctButton);

  card.root = el("article", { class: "card" },
    heading,
    answer.category ? el("p", { class: "soft small details" }, details(answer.question)) : null,
    verdict(answer),
    shown.length || answer.quotes.length ? quoteList(app, card, answer, places) : null,
    rating,
    el("div", { class: "row graded" }, el("span", { class: "soft small", "aria-hidden": "true" }, "How good?"), stars),
    correction,
    el("div", { class: "field comment" }, el("label", { for: comment.id }, "Comment"), comment),
    saveComment,
    saved,
    el("p", { class: "soft small release" }, `answered by ${answer.release}`));
  return card;
}

/** What an answer says, for a screen reader, in one sentence. */
export function spoken(answer) {
  const quotes = answer.quotes.length === 1 ? "1 quote" : `${answer.quotes.length} quotes`;
  const said = answer.found ? `Found: ${short(answer.answer, 200)}. ${quotes}.` : "Not in this contract.";
  return `${said} Confidence ${percent(answer.confidence)}.`;
}

function press(group, value) {
  for (const one of group.querySelectorAll("[data-value]")) {
    one.setAttribute("aria-pressed", String(one.dataset.value === value));
    if (group.classList.contains("stars")) one.textContent = Number(one.dataset.value) <= Number(value) ? "★" : "☆";
  }
}

function verdict(answer) {
  const sure = el("p", { class: "sure small soft" }, `Confidence ${percent(answer.confidence)}`);
  if (typeof answer.confidence === "number") {
    const meter = el("span", { class: "meter", "aria-hidden": "true" }, el("i"));
    meter.firstChild.style.width = `${100 * answer.confidence}%`;
    sure.append(meter);
  }
  if (typeof answer.p_answered === "number") {
    sure.append(el("span", {}, `Chance that the contract answers it: ${percent(answer.p_answered)}`));
  }
  return el("div", { class: "verdict" },
    el("p", { class: answer.found ? "tag found" : "tag absent" }, answer.found ? "Found" : "Not in this contract"),
    answer.found ? el("p", { class: "answer" }, answer.answer) : null,
    sure);
}

function quoteList(app, card, answer, places) {
  const items = answer.quotes.map((quote, i) => {
    const place = places[i];
    if (!place) {
      return el("li", {}, el("blockquote", {}, quote.text), el("p", { class: "bad small" }, quote.contract_id === app.pane.id
        ? "These words do not stand in the text shown, at this place: the contract has changed since. Ask again."
        : `From another contract: ${quote.contract_id}`));
    }
    const n = places.slice(0, i).filter(Boolean).length;
    return el("li", {}, button(quote.text, () => {
      if (app.current !== card) card.show();
      app.pane.go(n);
      app.drawBar();
    }, { class: "quote" }));
  });
  return el("ol", { class: "quote-list", "aria-label": "Quotes; each shows its place in the contract" }, ...items);
}

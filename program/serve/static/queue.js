// The recorded answers that nobody has looked at, one after the other, the least sure first.

import * as api from "./api.js";
import { answerCard, spoken } from "./card.js";
import { button, byId, el } from "./dom.js";

const LIMIT = 50;

/** The view: {open(), leave()}. */
export function queueView(app) {
  const out = byId("queue-out");
  let items = null;
  let at = 0;
  let turn = 0;

  async function load() {
    out.replaceChildren(el("p", { class: "soft" }, "Loading the queue…"));
    try {
      items = await api.queue(LIMIT);
    } catch (error) {
      out.replaceChildren(button("Try again", load));
      return app.fail(error);
    }
    at = 0;
    await draw();
  }

  function go(to) {
    at = Math.max(0, to);
    return draw();
  }

  async function skip(item) {
    out.inert = true;
    try {
      await api.feedback("skip", { answer_id: item.id, by: app.name() });
    } catch (error) {
      return app.fail(error);
    } finally {
      out.inert = false;
    }
    await go(at + 1);
  }

  async function draw() {
    const mine = ++turn;
    app.fail(null);
    if (at >= items.length) return ended();
    const item = items[at];
    // Nothing of the last item may be pressed while the next one's contract is on its way.
    out.inert = true;
    const opened = await app.openContract(item.contract_id);
    if (mine !== turn) return;
    out.inert = false;
    if (!opened) return out.replaceChildren(steps(item));
    const card = answerCard(app, item, (kind) => {
      if (kind === "rating-up" || kind === "correction") go(at + 1);
    });
    out.replaceChildren(steps(item), el("p", { class: "soft small where" }, `Least sure first · ${item.contract_id}`), card.root);
    card.show();
    card.heading.focus();
    app.say(`${at + 1} of ${items.length}. ${spoken(item)}`);
  }

  function steps(item) {
    return el("div", { class: "row steps" },
      el("p", { class: "place" }, el("b", {}, `${at + 1} of ${items.length}`)),
      button("Back", () => go(at - 1), { "aria-keyshortcuts": "b", disabled: at === 0 }),
      button("Skip", () => skip(item), { "aria-keyshortcuts": "s" }),
      button("Next", () => go(at + 1), { "aria-keyshortcuts": "n" }));
  }

  function ended() {
    out.inert = false;
    app.clear();
    const words = items.length
      ? "That was the last one. Thank you: what you said is stored."
      : "Nothing waits for you here. Every answer that is given comes into this queue until somebody has rated or corrected it.";
    const reload = button("Look for more", load, { class: "main" });
    out.replaceChildren(el("p", { class: "empty" }, words), reload);
    app.say(words);
    reload.focus();
  }

  return {
    open: () => (items === null || at >= items.length ? load() : draw()),
    leave: () => void ++turn,
  };
}

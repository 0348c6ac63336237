// All 41 clauses of one contract: the table fills while the review runs; a row opens its answer.

import * as api from "./api.js";
import { answerCard } from "./card.js";
import { button, byId, el, percent, short } from "./dom.js";

const POLL_MS = 700;
const FORMATS = { html: "HTML", docx: "Word", csv: "CSV" };
const SHOWN = { all: "All", found: "Found", absent: "Absent" };

/** The view: {open(), leave(), start()}; a review goes on when the page looks elsewhere. */
export function reviewView(app) {
  const out = byId("review-out");
  const known = new Map(); // contract id -> the table of its review
  let visible = false;

  async function start() {
    const id = app.picked;
    if (!id) return app.askForContract();
    try {
      const { id: review } = await api.startReview(id);
      app.fail(null);
      known.get(id)?.stop();
      app.remember(`evergreen-review:${id}`, review);
      known.set(id, reviewTable(app, review));
      show();
    } catch (error) {
      app.fail(error);
    }
  }

  function show() {
    const id = app.picked;
    const stored = id && app.remember(`evergreen-review:${id}`);
    if (id && stored && !known.has(id)) known.set(id, reviewTable(app, stored));
    const table = known.get(id);
    out.replaceChildren(...(table ? [table.root] : []));
    byId("review-start").textContent = table ? "Review it again" : "Review this contract";
    if (table) table.show();
    else app.clear();
  }

  byId("review-start").addEventListener("click", start);
  return {
    open: async () => {
      visible = true;
      if (app.picked && !(await app.openContract(app.picked))) return;
      if (visible) show();
    },
    leave: () => void (visible = false),
    picked: show,
  };
}

function reviewTable(app, id) {
  const rows = new Map(); // answer id -> {answer, tr, detail}
  const progress = el("progress", { max: "1", value: "0", "aria-label": "Progress of the review" });
  const words = el("p", { class: "small soft" }, "Starting…");
  const body = el("tbody");
  const exports = el("div", { class: "row exports", hidden: true }, el("span", { class: "soft small" }, "Export"),
    ...Object.entries(FORMATS).map(([format, label]) => button(label, () => save(format))));
  const filter = el("div", { class: "row small filter", role: "group", "aria-label": "Which clauses are shown" },
    ...Object.entries(SHOWN).map(([value, label]) => button(label, () => only(value),
      { class: "quiet", "data-value": value, "aria-pressed": String(value === "all") })));
  const table = el("table", { "data-only": "all" },
    el("thead", {}, el("tr", {}, ...["Clause", "Finding", "Confidence"].map((name) => el("th", { scope: "col" }, name)))), body);
  let timer = 0;
  let open = null;
  let stopped = false;

  function only(value) {
    table.dataset.only = value;
    for (const one of filter.children) one.setAttribute("aria-pressed", String(one.dataset.value === value));
  }

  async function poll() {
    let state;
    try {
      state = await api.review(id);
    } catch (error) {
      if (stopped) return;
      words.textContent = error.status === 404 ? "The server no longer holds this review. Start it again." : error.message;
      if (error.status !== 404) timer = setTimeout(poll, 5 * POLL_MS);
      return;
    }
    if (stopped) return;
    progress.max = state.total || 1;
    progress.value = state.done;
    for (const answer of state.findings ?? []) if (!rows.has(answer.id)) add(answer);
    if (state.state === "running") {
      words.textContent = `${state.done} of ${state.total} clauses asked`;
      timer = setTimeout(poll, POLL_MS);
    } else {
      finished(state);
    }
  }

  function finished(state) {
    progress.hidden = true;
    const answers = Array.from(rows.values(), (row) => row.answer);
    const found = answers.filter((answer) => answer.found).length;
    words.classList.toggle("bad", state.state === "failed");
    words.textContent = state.state === "failed"
      ? `The review stopped after ${state.done} of ${state.total} clauses: ${state.error ?? "no reason was given"}`
      : `${found} found, ${answers.length - found} not in this contract`;
    exports.hidden = state.state !== "done";
    app.say(words.textContent);
  }

  function add(answer) {
    const toggle = button(answer.category ?? short(answer.question), () => flip(answer.id), { "aria-expanded": "false", class: "quiet" });
    const said = answer.found ? short(answer.answer, 160) : "Not in this contract";
    const tr = el("tr", { class: answer.found ? "found" : "absent" }, el("th", { scope: "row" }, toggle),
      el("td", {}, said), el("td", { class: "n" }, percent(answer.confidence)));
    // A row anywhere is a way to it; the button is the one that keys and screen readers have.
    tr.addEventListener("click", (event) => event.target.closest("button") || toggle.click());
    const order = app.orderOf(answer);
    const after = Array.from(rows.values()).filter((row) => app.orderOf(row.answer) > order)
      .sort((a, b) => app.orderOf(a.answer) - app.orderOf(b.answer))[0];
    body.insertBefore(tr, after?.tr ?? null);
    rows.set(answer.id, { answer, tr, toggle, card: null, detail: null });
  }

  function flip(answerId) {
    const row = rows.get(answerId);
    const opening = open !== row;
    if (open) {
      open.detail.remove();
      open.toggle.setAttribute("aria-expanded", "false");
    }
    open = opening ? row : null;
    if (!opening) return app.clear();
    if (!row.card) {
      row.card = answerCard(app, row.answer, () => row.tr.classList.add("rated"));
      row.detail = el("tr", { class: `detail ${row.tr.classList[0]}` }, el("td", { colspan: "3" }, row.card.root));
    }
    row.tr.after(row.detail);
    row.toggle.setAttribute("aria-expanded", "true");
    row.card.show();
  }

  async function save(format) {
    try {
      const { blob, name } = await api.exported(id, format);
      const link = el("a", { href: URL.createObjectURL(blob), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      app.fail(null);
      app.say(`${name} is downloaded.`);
    } catch (error) {
      app.fail(error);
    }
  }

  poll();
  return {
    root: el("div", { class: "review" }, progress, words, exports, filter, table),
    show: () => (open ? open.card.show() : app.clear()),
    stop: () => {
      stopped = true;
      clearTimeout(timer);
    },
  };
}

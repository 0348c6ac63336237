// The line under the contract's text: what is selected and can be used, else which of the quotes is shown.

import { button, byId, el, short } from "./dom.js";

/** Keeps the bar in step with the selection; returns the function that draws it anew. */
export function contractBar(app) {
  const bar = byId("bar");
  let selected = null;

  function use() {
    const card = app.current;
    const stretch = selected;
    if (!card?.correct || !stretch) return;
    document.getSelection().removeAllRanges();
    selected = null;
    card.correct(false);
    card.correction.add(stretch);
    draw("Added to your correction");
  }

  function step(by) {
    const { quotes } = app.pane.layers;
    app.pane.go((app.pane.active + by + quotes.length) % quotes.length);
    draw();
  }

  function draw(note = null) {
    const { quotes } = app.pane.layers;
    const at = app.pane.active;
    const back = app.wide() ? [] : [button("↑ Answer", () => app.current?.heading.focus(), { class: "quiet" })];
    if (selected && app.current?.correct) {
      const text = app.pane.text.slice(selected.start, selected.end);
      bar.replaceChildren(el("span", { class: "chosen" }, `“${short(text, 60)}”`),
        button("Use as the right text", use, { class: "main", "aria-keyshortcuts": "a" }), ...back);
    } else if (note) {
      bar.replaceChildren(el("span", {}, note), ...back);
    } else if (quotes.length) {
      bar.replaceChildren(
        el("span", { role: "status" }, at < 0 ? quoteCount(quotes.length) : `Quote ${at + 1} of ${quotes.length}`),
        button("‹", () => step(at < 0 ? 0 : -1), { "aria-label": "Previous quote", "aria-keyshortcuts": "k" }),
        button("›", () => step(1), { "aria-label": "Next quote", "aria-keyshortcuts": "j" }), ...back);
    } else {
      bar.replaceChildren();
    }
    bar.hidden = !bar.children.length;
  }

  document.addEventListener("selectionchange", () => {
    const now = app.pane.selection();
    if (now?.start === selected?.start && now?.end === selected?.end) return;
    selected = now;
    draw();
  });
  return draw;
}

const quoteCount = (n) => (n === 1 ? "1 quote" : `${n} quotes`);

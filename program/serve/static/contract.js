// The contract's text as blocks of one line each. Every character of the text stands in the page, so that a place in
// the page is a place in the text; marks are put in by cutting a block's text, and only blocks that change are redone.
// Offsets in this file are UTF-16 units; `offsets` turns them into the API's characters.

import { Offsets, count } from "./offsets.js";
import { el } from "./dom.js";

export class ContractPane {
  constructor(root) {
    this.root = root;
    this.show(null, "");
  }

  show(id, text) {
    this.id = id;
    this.text = text;
    this.offsets = new Offsets(text);
    this.layers = { quotes: [], spans: [], match: [] };
    this.active = -1;
    this.starts = [];
    const blocks = [];
    for (let start = 0; start < text.length; ) {
      const newline = text.indexOf("\n", start);
      const end = newline < 0 ? text.length : newline + 1;
      const block = el("div", { "data-start": start }, text.slice(start, end));
      if (!text.slice(start, end).trim()) block.className = "blank";
      this.starts.push(start);
      blocks.push(block);
      start = end;
    }
    this.root.replaceChildren(...blocks);
    this.root.scrollTop = 0;
  }

  /** Units of a quote that stands where it says, else null. */
  place(quote) {
    if (quote.contract_id !== this.id) return null;
    const [start, end] = [this.offsets.units(quote.start), this.offsets.units(quote.end)];
    return this.text.slice(start, end) === quote.text ? { start, end } : null;
  }

  /** The API's offsets of a stretch, whole characters only. */
  chars({ start, end }) {
    return { start: this.offsets.chars(start), end: this.offsets.chars(end, true) };
  }

  /** Puts stretches {start, end, kind?} in the place of a layer's: "quotes", "spans" or "match". */
  mark(layer, stretches) {
    const before = this.layers[layer];
    this.layers[layer] = stretches;
    if (layer === "quotes") this.active = -1;
    this.redraw([...before, ...stretches]);
  }

  /** Makes the quote the active one and brings it into view, unless told not to. */
  go(i, reveal = true) {
    const quotes = this.layers.quotes;
    const touched = [quotes[this.active], quotes[i]].filter(Boolean);
    this.active = i;
    this.redraw(touched);
    if (reveal) this.reveal(quotes[i].start);
  }

  reveal(unit) {
    const block = this.root.children[this.blockAt(unit)];
    const marked = Array.from(block?.querySelectorAll("mark") ?? []).find((mark) => Number(mark.dataset.end) > unit);
    (marked ?? block)?.scrollIntoView({ block: "center" });
  }

  /** The stretch that is selected in the text, without white space at its ends; null where none is. */
  selection() {
    const selected = document.getSelection();
    for (let i = 0; i < (selected?.rangeCount ?? 0); i++) {
      const range = selected.getRangeAt(i);
      if (!range.collapsed && range.intersectsNode(this.root)) return this.trimmed(this.unitsOf(range));
    }
    return null;
  }

  trimmed({ start, end }) {
    const text = this.text.slice(start, end);
    const kept = text.trim();
    if (!kept) return null;
    const first = start + text.indexOf(kept);
    return { start: first, end: first + kept.length };
  }

  unitsOf(range) {
    const all = document.createRange();
    all.selectNodeContents(this.root);
    const from = range.compareBoundaryPoints(Range.START_TO_START, all) < 0 ? all : range;
    const to = range.compareBoundaryPoints(Range.END_TO_END, all) > 0 ? all : range;
    return {
      start: this.unitAt(from.startContainer, from.startOffset),
      end: this.unitAt(to.endContainer, to.endOffset),
    };
  }

  unitAt(node, offset) {
    if (node === this.root) return this.starts[offset] ?? this.text.length;
    const block = (node.nodeType === Node.ELEMENT_NODE ? node : node.parentElement).closest("[data-start]");
    const before = document.createRange();
    before.setStart(block, 0);
    before.setEnd(node, offset);
    // A range's string is the data of its text nodes: no white space is folded, no carriage return lost.
    return Number(block.dataset.start) + before.toString().length;
  }

  blockAt(unit) {
    return count(this.starts, (start) => start <= unit) - 1;
  }

  redraw(stretches) {
    const touched = new Set();
    for (const { start, end } of stretches) {
      for (let i = Math.max(0, this.blockAt(start)); i < this.starts.length && this.starts[i] < end; i++) touched.add(i);
    }
    for (const i of touched) this.drawBlock(i);
  }

  drawBlock(i) {
    const from = this.starts[i];
    const to = this.starts[i + 1] ?? this.text.length;
    const here = [];
    for (const [layer, stretches] of Object.entries(this.layers)) {
      stretches.forEach(({ start, end, kind }, n) => {
        const active = layer === "quotes" && n === this.active;
        if (start < to && end > from) here.push({ start, end, names: [layer, kind, active && "active"].filter(Boolean) });
      });
    }
    const cuts = new Set([from, to]);
    for (const { start, end } of here) cuts.add(Math.max(start, from)).add(Math.min(end, to));
    const sorted = [...cuts].sort((a, b) => a - b);
    const parts = sorted.slice(0, -1).map((start, n) => {
      const end = sorted[n + 1];
      const names = here.filter((one) => one.start <= start && one.end >= end).flatMap((one) => one.names);
      const text = this.text.slice(start, end);
      return names.length ? el("mark", { class: [...new Set(names)].join(" "), "data-end": end }, text) : text;
    });
    this.root.children[i].replaceChildren(...parts);
  }
}

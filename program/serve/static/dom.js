// Elements from names and text. Text is always a text node: nothing that comes from data is ever read as HTML.

/** An element; `on...` properties are listeners, others attributes (null, undefined and false are left out). */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function button(label, onclick, properties = {}) {
  return el("button", { type: "button", onclick, ...properties }, label);
}

export const byId = (id) => document.getElementById(id);

/** A share as percent; "not known" for null. */
export function percent(share) {
  if (share === null || share === undefined) return "not known";
  const rounded = Math.round(100 * share);
  if (rounded === 0 && share > 0) return "under 1%";
  if (rounded === 100 && share < 1) return "over 99%";
  return `${rounded}%`;
}

/** The first `limit` characters on one line. */
export function short(text, limit = 80) {
  const line = text.replace(/\s+/g, " ").trim();
  const characters = Array.from(line.slice(0, 2 * limit + 2));
  return characters.length > limit ? `${characters.slice(0, limit - 1).join("")}…` : line;
}

/** What a clause's question asks, without the frame that all 41 share. */
export const details = (question) => question.replace(/^Highlight the parts[\s\S]*?Details: /, "");

let numbers = 0;
export const freshId = (name) => `${name}-${++numbers}`;

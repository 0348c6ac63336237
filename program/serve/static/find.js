// Words in a text, whatever white space and whichever quotation marks stand between and around them.

const MOST = 1000;
const ALIKE = { "'": "['‘’]", "’": "['‘’]", '"': '["“”]', "“": '["“”]', "”": '["“”]', "-": "[-‐‑–]" };

/** Places {start, end} of the words, in UTF-16 units of the text, at most a thousand. */
export function find(text, words) {
  const parts = words.trim().split(/\s+/).filter(Boolean);
  if (!parts.length) return [];
  const pattern = parts.map((part) => Array.from(part, (sign) => ALIKE[sign] ?? escaped(sign)).join("")).join("\\s+");
  const places = [];
  for (const match of text.matchAll(new RegExp(pattern, "gi"))) {
    places.push({ start: match.index, end: match.index + match[0].length });
    if (places.length === MOST) break;
  }
  return places;
}

const escaped = (sign) => sign.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");

// Places in a text: the API counts characters (code points, as Python does), this page's strings count UTF-16 units.
// A character outside the basic plane (an emoji, some old letters) is one of the former and two of the latter.

export class Offsets {
  constructor(text) {
    this.pairs = Array.from(text.matchAll(/[\ud800-\udbff][\udc00-\udfff]/g), (match) => match.index);
    this.length = text.length - this.pairs.length;
  }

  /** UTF-16 units before the `chars`-th character. */
  units(chars) {
    return chars + count(this.pairs, (unit, i) => unit - i < chars);
  }

  /** Characters before a UTF-16 unit; in the middle of a character, that character counts only `ifInside`. */
  chars(units, ifInside = false) {
    const before = count(this.pairs, (unit) => unit < units);
    const inside = before > 0 && this.pairs[before - 1] === units - 1;
    return units - before + (inside && ifInside ? 1 : 0);
  }
}

/** How many of a sorted list come before the first that `isBefore` refuses. */
export function count(sorted, isBefore) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isBefore(sorted[middle], middle)) low = middle + 1;
    else high = middle;
  }
  return low;
}

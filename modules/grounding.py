"""Find a quote in the passages it was taken from; what does not stand there word for word is not a quote."""

import re
from collections.abc import Sequence

from corpora.types import Passage, Quote


def locate(quote: str, passages: Sequence[Passage]) -> Quote | None:
    """Where `quote` stands in the passages, verbatim but for white space; None where it does not.

    Neighbouring passages of a contract are read on, so that a quote may run over a cut. Of several places the first is
    returned. Case, punctuation and every other character have to agree.
    """
    words = quote.split()
    if not words:
        return None
    pattern = re.compile(r"\s+".join(map(re.escape, words)))
    for contract_id, start, text in stretches(passages):
        match = pattern.search(text)
        if match:
            return Quote(match.group(), contract_id, start + match.start(), start + match.end())
    return None


def stands(text: str, quote: str, start: int, end: int) -> bool:
    """Whether a quote is the contract's own words at its offsets; an empty one is not."""
    return 0 <= start < end <= len(text) and text[start:end] == quote


def stretches(passages: Sequence[Passage]) -> list[tuple[str, int, str]]:
    """(contract id, offset, text) of each maximal run of passages without a gap; what overlaps is there once."""
    runs: list[tuple[str, int, str]] = []
    for passage in sorted(passages, key=lambda p: (p.contract_id, p.start, p.end)):
        if runs and runs[-1][0] == passage.contract_id and passage.start <= runs[-1][1] + len(runs[-1][2]):
            contract_id, start, text = runs.pop()
            runs.append((contract_id, start, text + passage.text[start + len(text) - passage.start :]))
        else:
            runs.append((passage.contract_id, passage.start, passage.text))
    return runs

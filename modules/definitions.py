"""Defined terms: where a contract says what its capitalised words mean.

    find_definitions('"Net Sales" means the gross amount ... by Acme Corp. (the "Seller").')
    {"Net Sales": 0, "Seller": 67}

Not handled: terms defined in bold or by a table, and terms of another document ("as defined in the Plan").
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from corpora.types import Passage

_TERM = r"[\"“](?P<term>[A-Z][^\"“”\n]{1,60}?),?[\"”]"
_MEANS = re.compile(
    rf"{_TERM}\s*(?:\([^)]{{0,200}}\)\s*)?,?\s*(?:shall\s+|will\s+)?"
    r"(?:means?\b|refers?\s+to\b|is\s+defined\b|ha(?:s|ve)\s+the\s+meaning)"
)
# X (the "Seller"), X ("Seller"), X (collectively, the "Goods"), X (hereinafter called "Buyer")
_CALLED = re.compile(rf"\((?:[^()\"“”]{{0,60}}\s)?{_TERM}[^()]{{0,40}}\)")


@lru_cache(maxsize=512)
def find_definitions(text: str) -> dict[str, int]:
    """Defined terms, each with the offset of its definition: the first `"X" means ...`, else the first `(the "X")`."""
    found: dict[str, int] = {}
    for pattern in (_MEANS, _CALLED):
        for match in pattern.finditer(text):
            found.setdefault(" ".join(match["term"].split()), match.start())
    return found


def defining_passages(
    text: str, passages: Sequence[Passage], chosen: Iterable[Passage], limit: int
) -> tuple[Passage, ...]:
    """At most `limit` of a contract's `passages` that define terms of the `chosen` ones and are not among them.

    `text` is the contract's. Terms that the contract seldom uses come first: what it says everywhere ("Agreement") can
    be understood without.
    """
    chosen = list(chosen)
    definitions = find_definitions(text)
    shown = {passage.id for passage in chosen}
    said = " ".join(" ".join(passage.text.split()) for passage in chosen)
    used = [term for term in definitions if re.search(rf"\b{re.escape(term)}\b", said)]
    defining: dict[str, Passage] = {}
    for term in sorted(used, key=lambda term: (text.count(term), definitions[term])):
        place = next((p for p in passages if p.start <= definitions[term] < p.end), None)
        if place is not None and place.id not in shown:
            defining.setdefault(place.id, place)
    return tuple(defining.values())[:limit]

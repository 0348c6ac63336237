"""How much of the gold text is retrieved, and how much of the retrieved text is gold, in characters.

As in LegalBench-RAG (Pipitone and Alami 2024, arXiv 2408.10343). A character counts once, however many spans hold it.
"""

from collections.abc import Iterable

from corpora.types import Span

# (contract id, span): where some text stands.
Place = tuple[str, Span]


def character_scores(gold: Iterable[Place], retrieved: Iterable[Place]) -> tuple[float, float]:
    """(precision, recall) of one query, 0 to 1; nan where nothing is retrieved and where there is no gold text."""
    wanted, got = _united(gold), _united(retrieved)
    shared = sum(
        max(0, min(a.end, b.end) - max(a.start, b.start))
        for key in wanted
        for a in wanted[key]
        for b in got.get(key, ())
    )
    n_wanted, n_got = _length(wanted), _length(got)
    return (shared / n_got if n_got else float("nan")), (shared / n_wanted if n_wanted else float("nan"))


def recall_in_chars(gold: Iterable[Place], ranked: Iterable[Place], n_chars: int) -> float:
    """Share of the gold characters that stand in the first `n_chars` retrieved; nan where there is no gold text.

    What is retrieved twice is read twice; the last place is cut where the characters are used up.
    """
    read: list[Place] = []
    for contract_id, span in ranked:
        if n_chars <= 0:
            break
        read.append((contract_id, Span(span.start, min(span.end, span.start + n_chars))))
        n_chars -= span.end - span.start
    return character_scores(gold, read)[1]


def _united(places: Iterable[Place]) -> dict[str, list[Span]]:
    """The places of each contract as spans that do not overlap."""
    united: dict[str, list[Span]] = {}
    for contract_id, span in sorted(places, key=lambda place: (place[0], place[1].start, place[1].end)):
        spans = united.setdefault(contract_id, [])
        if spans and span.start <= spans[-1].end:
            spans[-1] = Span(spans[-1].start, max(spans[-1].end, span.end))
        elif span.start < span.end:
            spans.append(span)
    return united


def _length(united: dict[str, list[Span]]) -> int:
    return sum(span.end - span.start for spans in united.values() for span in spans)

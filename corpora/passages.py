"""Contract to passages: a partition of the text, cut where a clause begins.

One real row, of a generated contract:

    Passage(id="ashgrove-2019-0007:2310-2652", contract_id="ashgrove-2019-0007", start=2310, end=2652,
            text="5.2 Renewal. This Agreement renews for ...\n\n", heading="5.2 Renewal")

Not handled: tables of contents (their lines look like clauses), tables (their rows are cut like text), page headers.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from corpora.clauses import TEXT, Unit, find_units, name_units
from corpora.errors import CorpusError
from corpora.types import Contract, Passage

_SMALL_CHARS = 150
_CUT_HERE = re.compile(
    r"(?:(?<=[.;?!])|(?<=[.;?!][\"”')]))\s+(?=[A-Z0-9\"“'(])|(?<=[;:,\w])\s+(?=\((?:[a-z]{1,2}|[ivx]{1,5}|\d)\)\s)"
)
_PAGE = re.compile(r"(?:page\b)?\W{0,3}\d{1,3}(?:\s{0,3}of\s{0,3}\d{1,3})?\W{0,3}\Z", re.I)
_SPACE = re.compile(r"\s+")

# Passages to the number of tokens that an embedder reads of each.
CountTokens = Callable[[Sequence[Passage]], Sequence[int]]


def cut_passages(
    contract: Contract,
    *,
    max_chars: int = 600,
    overlap_chars: int = 0,
    heading_path: bool = False,
    count_tokens: CountTokens | None = None,
    max_tokens: int | None = None,
) -> tuple[Passage, ...]:
    """Cut a contract into passages of at most `max_chars` characters that cover its text in order, without gaps.

    A numbered paragraph is a passage; a heading by itself goes with the paragraph behind it; what is under 150
    characters goes with the next where both fit; what is too long is cut at sentence ends and list items, else at
    spaces, else anywhere. Every character is in one passage, but with `overlap_chars` a passage that goes on with its
    clause begins up to so many characters earlier, at a sentence if there is one. `heading` is the clause's number and
    title; a clause without a title has that of the clause above it and its own number; with `heading_path` it is led by
    the headings around it ("ARTICLE IV. TERM > 4.1 Duration"). With `count_tokens` and `max_tokens` no passage counts
    more than those. Time is linear in the text. Raises CorpusError for an empty text, for a `max_chars` below 1, for
    an overlap that leaves no room, and for a character that alone counts more than `max_tokens`.
    """
    if not contract.text:
        raise CorpusError(f"contract {contract.id!r} has no text. Give it its text, or leave it out.")
    if max_chars < 1:
        raise CorpusError(f"max_chars is {max_chars}; it must be 1 or more.")
    if not 0 <= overlap_chars < max_chars:
        raise CorpusError(f"overlap_chars is {overlap_chars}; it must be 0 or more, and below max_chars ({max_chars}).")
    if (count_tokens is None) != (max_tokens is None) or (max_tokens is not None and max_tokens < 1):
        raise CorpusError(f"max_tokens is {max_tokens}; give it (1 or more) and count_tokens together, or neither.")
    text, room = contract.text, max_chars - overlap_chars
    units = list(_join_titles(name_units(find_units(text), path=heading_path), room))
    pieces = list(_merge(text, (piece for unit in units for piece in _cut(text, unit, room)), room))
    if overlap_chars:
        pieces = _overlap(text, pieces, {unit.start for unit in units}, overlap_chars)
    if count_tokens is None or max_tokens is None:
        return tuple(_passage(contract, piece) for piece in pieces)
    return _within_tokens(contract, pieces, count_tokens, max_tokens)


def _passage(contract: Contract, unit: Unit) -> Passage:
    return Passage(
        id=f"{contract.id}:{unit.start}-{unit.end}",
        contract_id=contract.id,
        start=unit.start,
        end=unit.end,
        text=contract.text[unit.start : unit.end],
        heading=unit.heading,
    )


def _overlap(text: str, pieces: list[Unit], clause_starts: set[int], overlap_chars: int) -> list[Unit]:
    """Each piece that does not begin a clause begins earlier: at a sentence, else a word, within `overlap_chars`."""
    reaching = pieces[:1]
    for before, piece in pairwise(pieces):
        if piece.start not in clause_starts:
            first = max(before.start, piece.start - overlap_chars)
            cuts = _CUT_HERE.finditer(text, first, piece.start), _SPACE.finditer(text, first, piece.start)
            starts = [next((match.end() for match in found), piece.start) for found in cuts]
            piece = replace(piece, start=next((start for start in starts if start < piece.start), first))
        reaching.append(piece)
    return reaching


def _within_tokens(
    contract: Contract, pieces: Sequence[Unit], count_tokens: CountTokens, max_tokens: int
) -> tuple[Passage, ...]:
    """Passages of the pieces, those with too many tokens cut again and again until they fit."""
    fitting: list[Passage] = []
    while pieces:
        passages, too_long = [_passage(contract, piece) for piece in pieces], []
        for piece, passage, n_tokens in zip(pieces, passages, count_tokens(passages), strict=True):
            if n_tokens <= max_tokens:
                fitting.append(passage)
            elif len(passage.text) == 1:
                raise CorpusError(
                    f"contract {contract.id!r}: with its heading {passage.heading!r} the character at {passage.start} "
                    f"counts {n_tokens} tokens; {max_tokens} are allowed. Allow more, or embed no headings."
                )
            else:
                n_pieces = max(2, -(-n_tokens // max_tokens))
                too_long.extend(_cut(contract.text, piece, -(-len(passage.text) // n_pieces)))
        pieces = too_long
    return tuple(sorted(fitting, key=lambda passage: (passage.start, passage.end)))


def _join_titles(units: Iterable[Unit], max_chars: int) -> Iterator[Unit]:
    """Put headings that stand by themselves with what follows them; a run of them ends at half a passage."""
    title: Unit | None = None
    for unit in units:
        if title is not None and unit.start - title.start <= max_chars // 2:
            unit = replace(unit, start=title.start, heading=unit.heading or title.heading)
        elif title is not None:
            yield title
        title = unit if unit.title_only else None
        if title is None:
            yield unit
    if title is not None:
        yield title


def _cut(text: str, unit: Unit, max_chars: int) -> Iterator[Unit]:
    """The unit in pieces of about the same length, none above `max_chars`."""
    if unit.end - unit.start <= max_chars:
        yield unit
        return
    body_end = unit.start + len(text[unit.start : unit.end].rstrip())
    good = [match.end() for match in _CUT_HERE.finditer(text, unit.start, body_end)]
    spaces = [match.end() for match in _SPACE.finditer(text, unit.start, body_end)]
    start = unit.start
    while body_end - start > max_chars:
        n_pieces = -(-(body_end - start) // max_chars)
        aim, last = start - (start - body_end) // n_pieces, start + max_chars
        cut = (
            _nearest(good, aim, start + max(1, max_chars // 3), last) or _nearest(spaces, aim, start + 1, last) or last
        )
        yield replace(unit, start=start, end=cut)
        start = cut
    end = min(unit.end, start + max_chars)
    yield replace(unit, start=start, end=end)
    while end < unit.end:
        start, end = end, min(unit.end, end + max_chars)
        yield replace(unit, start=start, end=end)


def _nearest(positions: list[int], aim: int, first: int, last: int) -> int | None:
    """The position in [first, last] that is nearest to `aim`; `positions` are sorted."""
    low, high = bisect_left(positions, first), bisect_right(positions, last)
    at = bisect_left(positions, aim, low, high)
    return min(positions[max(low, at - 1) : min(high, at + 1)], key=lambda position: abs(position - aim), default=None)


def _merge(text: str, pieces: Iterable[Unit], max_chars: int) -> Iterator[Unit]:
    """Small pieces with the next one, and what goes on in mid-sentence (or is a page number) with the one before."""
    whole: Unit | None = None
    for piece in pieces:
        if whole is not None and piece.end - whole.start <= max_chars and _belong(text, whole, piece):
            clause = piece if whole.level == TEXT else whole
            whole = replace(clause, start=whole.start, end=piece.end, heading=clause.heading or whole.heading)
            continue
        if whole is not None:
            yield whole
        whole = piece
    if whole is not None:
        yield whole


def _belong(text: str, before: Unit, piece: Unit) -> bool:
    here = text[piece.start : piece.end].strip()
    small = len(text[before.start : before.end].strip()) < _SMALL_CHARS
    return small or not here or (piece.level == TEXT and (here[0].islower() or bool(_PAGE.match(here))))

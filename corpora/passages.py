"""Contract to passages: a partition of the text, cut where a clause begins.

One real row, of a generated contract:

    Passage(id="ashgrove-2019-0007:2310-2652", contract_id="ashgrove-2019-0007", start=2310, end=2652,
            text="5.2 Renewal. This Agreement renews for ...\n\n", heading="5.2 Renewal")

Not handled: tables of contents (their lines look like clauses), tables (their rows are cut like text), page headers.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from corpora.errors import CorpusError
from corpora.types import Contract, Passage

_SMALL_CHARS = 150
_TITLE_CHARS = 100
# Lines of running text wrapped at a column are shorter than this; a longer line is a paragraph of its own.
_WRAPPED_CHARS = 150
_LINE = re.compile(r"\S[^\n\r\f\u2028]*")
_BREAKS = re.compile(r"\n\s*\n|\f|\u2028")
_SENTENCE_OVER = re.compile(r"(?:[.;:!?][\"”')]?|\b(?:and|or))\Z")
_PAGE = re.compile(r"(?:page\b)?\W{0,3}\d{1,3}(?:\s{0,3}of\s{0,3}\d{1,3})?\W{0,3}\Z", re.I)
# How a clause begins, in the order tried, and its level: a part holds sections, a section holds deeper ones (the level
# is how many numbers it has), those hold lettered ones, and all hold plain text.
_PART, _SECTION, _LETTERED, _TEXT = 0, 1, 8, 9
_MARKERS = (
    (_PART, re.compile(r"(?:ARTICLE|Article|PART|Part|CHAPTER|Chapter)\s{1,9}(?:[IVXLC]{1,7}|\d{1,3})\b[.:]?")),
    (
        _PART,
        re.compile(
            r"(?:SCHEDULE|Schedule|EXHIBIT|Exhibit|ANNEX|Annex|APPENDIX|Appendix)\s{1,9}[A-Z0-9](?:-?\d{1,2})?\b"
        ),
    ),
    (_PART, re.compile(r"(?:[IVX]{2,6}|[IVX])\.(?=\s{1,9}[A-Z])")),
    (
        _SECTION,
        re.compile(
            r"(?:(?:SECTION|Section|CLAUSE|Clause)\s{1,9}|(?:Sec|Art)\.\s{0,9}|§\s{0,9})"
            r"\d{1,3}(?:\.\s?\d{1,3})*[.:]?(?:\s{0,3}\(\w{1,4}\))?"
        ),
    ),
    (_SECTION, re.compile(r"(?:[A-Z]|[IVX]{1,6})(?:\.\d{1,3}){1,3}\.?(?=\s)")),
    (_SECTION, re.compile(r"\d{1,3}(?:\.\s?\d{1,3})+\.?(?=\s)|\d{1,2}\.(?=\s)|\d{1,2}(?=\s{1,9}[A-Z][A-Z])")),
    (_LETTERED, re.compile(r"\(\s?(?:[a-zA-Z]{1,2}|[ivxIVX]{1,5}|\d{1,2})\s?\)|(?:[a-zA-Z]|[ivx]{1,4})[.)](?=\s)")),
)
_DEPTH = re.compile(r"\d+|\([a-z]")
_TITLE_END = re.compile(r"[.:;](?=\s|\Z)|[\n\r\f]|\s{3,}|\s[-–—]+\s|\s-{2,}")
_WORD = re.compile(r"[^\W_]")
# In flattened filings a clause often begins inside a line: behind a sentence's end, or behind a gap.
_INSIDE = re.compile(
    r"(?:(?<=[.;:])|(?<=[.;:][\"”)])|(?<!\s)(?=\s\s))\s+"
    r"(?=(?:(?:ARTICLE|SECTION|Section)\s+[IVXLC\d]+\.|\d{1,2}(?:\.\s?\d{1,2}){1,3}\.?\s+[A-Z\"“(]"
    r"|\d{1,2}\.\s+[A-Z]|\d{1,2}\s+[A-Z]{4}))"
)
_CUT_HERE = re.compile(
    r"(?:(?<=[.;?!])|(?<=[.;?!][\"”')]))\s+(?=[A-Z0-9\"“'(])|(?<=[;:,\w])\s+(?=\((?:[a-z]{1,2}|[ivx]{1,5}|\d)\)\s)"
)
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class _Unit:
    """A paragraph before it is joined, cut and merged; `title_only` where a heading stands by itself."""

    start: int
    end: int
    level: int
    heading: str
    titled: bool = False
    title_only: bool = False


def cut_passages(contract: Contract, *, max_chars: int = 600) -> tuple[Passage, ...]:
    """Cut a contract into passages of at most `max_chars` characters that cover its text once, in order, without gaps.

    A numbered paragraph is a passage; a heading by itself goes with the paragraph behind it; what is under 150
    characters goes with the next where both fit; what is too long is cut at sentence ends and list items, else at
    spaces, else anywhere. `heading` is the clause's number and title; a clause without a title has that of the clause
    above it and its own number. Time is linear in the text. Raises CorpusError for an empty text and for `max_chars`
    below 1.
    """
    if not contract.text:
        raise CorpusError(f"contract {contract.id!r} has no text. Give it its text, or leave it out.")
    if max_chars < 1:
        raise CorpusError(f"max_chars is {max_chars}; it must be 1 or more.")
    units = _join_titles(_name(_units(contract.text)), max_chars)
    pieces = (piece for unit in units for piece in _cut(contract.text, unit, max_chars))
    return tuple(
        Passage(
            id=f"{contract.id}:{unit.start}-{unit.end}",
            contract_id=contract.id,
            start=unit.start,
            end=unit.end,
            text=contract.text[unit.start : unit.end],
            heading=unit.heading,
        )
        for unit in _merge(contract.text, pieces, max_chars)
    )


def _units(text: str) -> Iterator[_Unit]:
    """Paragraphs, each with its own number and title as its heading."""
    starts, before = [0], None
    for line in _LINE.finditer(text):
        if before is None or _begins(text, before, line):
            starts.append(line.start())
        starts.extend(match.end() for match in _INSIDE.finditer(text, line.start(), line.end()))
        before = line
    for start, end in pairwise([*dict.fromkeys(starts), len(text)]):
        yield _head(text, start, end)


def _begins(text: str, before: re.Match[str], line: re.Match[str]) -> bool:
    """Whether a line begins a paragraph, rather than going on with the one of the line before."""
    above = before[0].rstrip()
    if len(above) > _WRAPPED_CHARS or _BREAKS.search(text, before.end(), line.start()):
        return True
    # In wrapped text a line can begin with "Section 5.2" in mid-sentence.
    if not _SENTENCE_OVER.search(above[-5:]) and not _head(text, *before.span()).title_only:
        return False
    return _head(text, *line.span()).level != _TEXT


def _head(text: str, start: int, end: int) -> _Unit:
    """The unit with its level, and with the number and title that stand at its beginning as its heading."""
    opening = text[start : min(end, start + 2 * _TITLE_CHARS)]
    level, number = next(
        ((level, found[0]) for level, marker in _MARKERS if (found := marker.match(opening))), (_TEXT, "")
    )
    rest = opening[len(number) :].lstrip()
    over = _TITLE_END.search(rest)
    title = " ".join(rest[: over.start() if over else len(rest)].split()).strip(" -–")
    # Behind a number, a line of its own is a title however it is capitalised.
    own_line = bool(number and over and over[0] == "\n" and title[:1].isupper())
    title = title if len(title) <= _TITLE_CHARS and (own_line or _is_title(title)) else ""
    behind = start + len(opening) - len(rest) + (over.end() if over else len(rest)) if title else start + len(number)
    alone = bool(number or title) and not _WORD.search(text, behind, end)
    if level == _SECTION:
        level = min(len(_DEPTH.findall(number)), _LETTERED - 1)
    elif not number and title.isupper() and (alone or over):
        level = _PART if alone else _SECTION
    elif not number and len(title) > 3 and over and over[0] == "." and not alone:
        level = _SECTION
    if level == _TEXT:
        return _Unit(start, end, _TEXT, "")
    return _Unit(start, end, level, " ".join([*number.split(), title]).strip(), bool(title), alone)


def _is_title(text: str) -> bool:
    """Whether words are capitalised as in a title: all but those as short as articles and prepositions."""
    words = re.findall(r"[^\W\d_]+", text)
    if not words or not words[0][0].isupper() or max(map(len, words)) < 3 or len(words[-1]) == 1:
        return False
    return all(word[0].isupper() for word in words if len(word) > 3)


def _name(units: Iterable[_Unit]) -> Iterator[_Unit]:
    """Give text the heading it stands under, and a clause without a title that heading before its own number."""
    above: dict[int, str] = {}
    for unit in units:
        above = {level: heading for level, heading in above.items() if level < unit.level}
        parent = next(reversed(above.values()), "")
        heading = unit.heading if unit.titled else f"{parent} {unit.heading}".strip()
        if unit.level != _TEXT:
            above[unit.level] = heading
        yield replace(unit, heading=heading)


def _join_titles(units: Iterable[_Unit], max_chars: int) -> Iterator[_Unit]:
    """Put headings that stand by themselves with what follows them; a run of them ends at half a passage."""
    title: _Unit | None = None
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


def _cut(text: str, unit: _Unit, max_chars: int) -> Iterator[_Unit]:
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


def _merge(text: str, pieces: Iterable[_Unit], max_chars: int) -> Iterator[_Unit]:
    """Small pieces with the next one, and what goes on in mid-sentence (or is a page number) with the one before."""
    whole: _Unit | None = None
    for piece in pieces:
        if whole is not None and piece.end - whole.start <= max_chars and _belong(text, whole, piece):
            clause = piece if whole.level == _TEXT else whole
            whole = replace(clause, start=whole.start, end=piece.end, heading=clause.heading or whole.heading)
            continue
        if whole is not None:
            yield whole
        whole = piece
    if whole is not None:
        yield whole


def _belong(text: str, before: _Unit, piece: _Unit) -> bool:
    here = text[piece.start : piece.end].strip()
    small = len(text[before.start : before.end].strip()) < _SMALL_CHARS
    return small or not here or (piece.level == _TEXT and (here[0].islower() or bool(_PAGE.match(here))))

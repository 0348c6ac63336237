"""A contract's text as units: paragraphs and clauses, each with its number and title as its heading.

One real row, of a generated contract:

    Unit(start=2310, end=2652, level=2, heading="5.2 Renewal", titled=True, title_only=False)

Not handled: tables of contents (their lines look like clauses), tables (their rows are cut like text), page headers.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

_TITLE_CHARS = 100
_PATH_CHARS = 200
# Lines of running text wrapped at a column are shorter than this; a longer line is a paragraph of its own.
_WRAPPED_CHARS = 150
_LINE = re.compile(r"\S[^\n\r\f\u2028]*")
_BREAKS = re.compile(r"\n\s*\n|\f|\u2028")
_SENTENCE_OVER = re.compile(r"(?:[.;:!?][\"”')]?|\b(?:and|or))\Z")
# How a clause begins, in the order tried, and its level: a part holds sections, a section holds deeper ones (the level
# is how many numbers it has), those hold lettered ones, and all hold plain text.
PART, SECTION, LETTERED, TEXT = 0, 1, 8, 9
_MARKERS = (
    (PART, re.compile(r"(?:ARTICLE|Article|PART|Part|CHAPTER|Chapter)\s{1,9}(?:[IVXLC]{1,7}|\d{1,3})\b[.:]?")),
    (
        PART,
        re.compile(
            r"(?:SCHEDULE|Schedule|EXHIBIT|Exhibit|ANNEX|Annex|APPENDIX|Appendix)\s{1,9}[A-Z0-9](?:-?\d{1,2})?\b"
        ),
    ),
    (PART, re.compile(r"(?:[IVX]{2,6}|[IVX])\.(?=\s{1,9}[A-Z])")),
    (
        SECTION,
        re.compile(
            r"(?:(?:SECTION|Section|CLAUSE|Clause)\s{1,9}|(?:Sec|Art)\.\s{0,9}|§\s{0,9})"
            r"\d{1,3}(?:\.\s?\d{1,3})*[.:]?(?:\s{0,3}\(\w{1,4}\))?"
        ),
    ),
    (SECTION, re.compile(r"(?:[A-Z]|[IVX]{1,6})(?:\.\d{1,3}){1,3}\.?(?=\s)")),
    (SECTION, re.compile(r"\d{1,3}(?:\.\s?\d{1,3})+\.?(?=\s)|\d{1,2}\.(?=\s)|\d{1,2}(?=\s{1,9}[A-Z][A-Z])")),
    (LETTERED, re.compile(r"\(\s?(?:[a-zA-Z]{1,2}|[ivxIVX]{1,5}|\d{1,2})\s?\)|(?:[a-zA-Z]|[ivx]{1,4})[.)](?=\s)")),
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


@dataclass(frozen=True, slots=True)
class Unit:
    """A paragraph before it is joined, cut and merged; `title_only` where a heading stands by itself."""

    start: int
    end: int
    level: int
    heading: str
    titled: bool = False
    title_only: bool = False


def find_units(text: str) -> Iterator[Unit]:
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
    return _head(text, *line.span()).level != TEXT


def _head(text: str, start: int, end: int) -> Unit:
    """The unit with its level, and with the number and title that stand at its beginning as its heading."""
    opening = text[start : min(end, start + 2 * _TITLE_CHARS)]
    level, number = next(
        ((level, found[0]) for level, marker in _MARKERS if (found := marker.match(opening))), (TEXT, "")
    )
    rest = opening[len(number) :].lstrip()
    over = _TITLE_END.search(rest)
    title = " ".join(rest[: over.start() if over else len(rest)].split()).strip(" -–")
    # Behind a number, a line of its own is a title however it is capitalised.
    own_line = bool(number and over and over[0] == "\n" and title[:1].isupper())
    title = title if len(title) <= _TITLE_CHARS and (own_line or _is_title(title)) else ""
    behind = start + len(opening) - len(rest) + (over.end() if over else len(rest)) if title else start + len(number)
    alone = bool(number or title) and not _WORD.search(text, behind, end)
    if level == SECTION:
        level = min(len(_DEPTH.findall(number)), LETTERED - 1)
    elif not number and title.isupper() and (alone or over):
        level = PART if alone else SECTION
    elif not number and len(title) > 3 and over and over[0] == "." and not alone:
        level = SECTION
    if level == TEXT:
        return Unit(start, end, TEXT, "")
    return Unit(start, end, level, " ".join([*number.split(), title]).strip(), bool(title), alone)


def _is_title(text: str) -> bool:
    """Whether words are capitalised as in a title: all but those as short as articles and prepositions."""
    words = re.findall(r"[^\W\d_]+", text)
    if not words or not words[0][0].isupper() or max(map(len, words)) < 3 or len(words[-1]) == 1:
        return False
    return all(word[0].isupper() for word in words if len(word) > 3)


def name_units(units: Iterable[Unit], *, path: bool = False) -> Iterator[Unit]:
    """Give text the heading it stands under, and a clause without a title that heading before its own number.

    With `path` a heading is led by those above it ("ARTICLE IV. TERM > 4.1 Duration"), of which the outermost are left
    out where it would be longer than 200 characters.
    """
    above: dict[int, str] = {}
    for unit in units:
        above = {level: heading for level, heading in above.items() if level < unit.level}
        if path:
            own, heading = unit.heading, _path([*above.values(), unit.heading])
        else:
            parent = next(reversed(above.values()), "")
            own = heading = unit.heading if unit.titled else f"{parent} {unit.heading}".strip()
        if unit.level != TEXT:
            above[unit.level] = own
        yield replace(unit, heading=heading)


def _path(headings: list[str]) -> str:
    """The innermost heading, and before it as many of those around it as fit."""
    path = ""
    for heading in reversed([heading for heading in headings if heading]):
        longer = f"{heading} > {path}" if path else heading
        if path and len(longer) > _PATH_CHARS:
            break
        path = longer
    return path

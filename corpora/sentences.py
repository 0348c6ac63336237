"""A contract's text as sentences with offsets, items of lists included: what people mark in contracts is mostly that.

Not handled: other languages' abbreviations; a sentence that goes on after a page number is cut there.
"""

import re
from collections.abc import Sequence

import numpy as np

from corpora.types import Span

# A full stop behind these ends no sentence (a single capital is an initial: "James M. Smith", "U.S. dollars").
_ABBREVIATED = re.compile(
    r"(?:\b(?:[A-Z]|Inc|Corp|Co|Ltd|LLC|L\.P|No|Nos|Sec|Art|Mr|Mrs|Ms|Dr|Jr|Sr|St|vs?|cf|etc|approx|e\.g|i\.e|viz|Attn|"
    r"Fig|Vol|al|Exh|Para)|(?:^|\s)\d{1,2}(?:\.\d{1,2})*)\.\Z"
)
_END = re.compile(r"[.?!;:][\"”')]*(?=\s)|\n[ \t]*(?=\n)|\f")
_PHRASE_END = re.compile(r"[,;:]\s+|(?=[(\[“])|(?<=\s)(?=\")|(?<=[)\]”])(?=\s)|(?<=[\w.,]\")(?=\s)")
_NEXT = re.compile(r"\s*[A-Z0-9\"“'(\[•§*\-]|\s*\Z")


def sentences(text: str, start: int = 0, end: int | None = None) -> tuple[Span, ...]:
    """Sentences of `text[start:end]` in order, without the white space around them; all other characters are in one.

    A sentence ends at `. ? ! ; :` before what can begin another, and at an empty line.
    """
    end = len(text) if end is None else end
    spans, begin = [], start
    for match in _END.finditer(text, start, end):
        stop = match.end()
        empty_line = not match[0].strip()
        if empty_line or (_NEXT.match(text, stop, end) and not _ABBREVIATED.search(text, max(begin, stop - 12), stop)):
            spans.append(_trimmed(text, begin, stop))
            begin = stop
    spans.append(_trimmed(text, begin, end))
    return tuple(span for span in spans if span.start < span.end)


def phrases(text: str) -> tuple[Span, ...]:
    """The sentences of `text`, cut further behind commas, semicolons and colons, and around brackets and quotations.

    Names, dates and defined terms are often one of these, or a few neighbouring ones.
    """
    spans = []
    for whole in sentences(text):
        begin = whole.start
        for match in _PHRASE_END.finditer(text, whole.start, whole.end):
            spans.append(_trimmed(text, begin, match.end()))
            begin = match.end()
        spans.append(_trimmed(text, begin, whole.end))
    return tuple(span for span in spans if span.start < span.end)


def token_places(offsets_L_2: np.ndarray, pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens (first, behind the last) that begin in each piece of a text, pieces and tokens as character offsets.

    Special tokens, which have no width, are in no piece. A piece without a token, as behind what a model reads, is
    (0, 0).
    """
    wide = np.flatnonzero(offsets_L_2[:, 1] > offsets_L_2[:, 0])
    bounds = np.searchsorted(offsets_L_2[wide, 0], np.array(pieces, dtype=int).reshape(-1, 2))
    return [(int(wide[a]), int(wide[b - 1]) + 1) if b > a else (0, 0) for a, b in bounds]


def _trimmed(text: str, start: int, end: int) -> Span:
    piece = text[start:end]
    return Span(start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip()))

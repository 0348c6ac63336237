"""Paragraphs to one text, and from an offset back to page and paragraph."""

from bisect import bisect_right
from collections.abc import Iterable

from corpora.files.limits import FileError, FileLimits
from corpora.types import Contract, Place


def place_of(contract: Contract, offset: int) -> Place | None:
    """The paragraph that the character at `offset` stands in; None without places or such a character.

    White space between two paragraphs belongs to the one before it.
    """
    if not 0 <= offset < len(contract.text):
        return None
    at = bisect_right(contract.places, offset, key=lambda place: place.start)
    return contract.places[at - 1] if at else None


def compose(paragraphs: Iterable[tuple[str, int | None]], limits: FileLimits) -> tuple[str, tuple[Place, ...]]:
    """One text of (paragraph, page) pairs, a blank line between two, and its places; empty paragraphs are left out.

    Raises FileError above `max_chars` or `max_paragraphs`.
    """
    pieces: list[str] = []
    places: list[Place] = []
    start, number, before = 0, 0, None
    for paragraph, page in paragraphs:
        paragraph = paragraph.strip()
        if not paragraph:
            continue
        number = number + 1 if page == before else 1
        before = page
        places.append(Place(start, page, number))
        pieces.append(paragraph)
        start += len(paragraph) + 2
        _check(start - 2, len(places), limits)
    return "\n\n".join(pieces), tuple(places)


def locate(text: str, limits: FileLimits) -> tuple[Place, ...]:
    """The places of a text as it is, its paragraphs parted by blank lines; FileError above `max_paragraphs`."""
    places: list[Place] = []
    offset, fresh = 0, True
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if bare and fresh:
            places.append(Place(offset + line.index(bare[0]), None, len(places) + 1))
            _check(0, len(places), limits)
        offset, fresh = offset + len(line), not bare
    return tuple(places)


def _check(n_chars: int, n_paragraphs: int, limits: FileLimits) -> None:
    if n_chars > limits.max_chars:
        raise FileError(f"its text has more than {limits.max_chars:,} characters, the limit for one contract")
    if n_paragraphs > limits.max_paragraphs:
        raise FileError(f"it has more than {limits.max_paragraphs:,} paragraphs, the limit for one contract")

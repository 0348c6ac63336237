"""What all exports show: the answers of a review with a number each, their quotes checked and placed."""

import re
from dataclasses import dataclass

from corpora.files.places import place_of
from corpora.types import Contract, Place, Quote
from program.feedback.rows import FeedbackError
from program.feedback.types import Answered, Review

# Word's files are XML 1.0, whose `Char` leaves out controls, lone surrogates, U+FFFE and U+FFFF.
_UNPRINTABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ExportError(FeedbackError):
    """A review that does not fit its contract, or a format that is none; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Located:
    """A quote, and page and paragraph of the file that it was read from; None where those are not known."""

    quote: Quote
    place: Place | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer: `number` counts from 1 in the review's order, `title` is the category, or else the question."""

    number: int
    title: str
    answered: Answered
    quotes: tuple[Located, ...]


def findings_of(review: Review, contract: Contract) -> tuple[Finding, ...]:
    """The review's answers, numbered; ExportError where review and contract do not belong together."""
    if review.contract_id != contract.id:
        raise ExportError(
            f"the review is of the contract {review.contract_id!r}, the text is {contract.id!r}'s. Give its own."
        )
    return tuple(
        Finding(i, one.category or one.question, one, tuple(_located(quote, one, contract) for quote in one.quotes))
        for i, one in enumerate(review.answers, 1)
    )


def printable(text: str) -> str:
    """The text without the characters that XML 1.0 refuses, and with "\\n" for every end of a line."""
    return _UNPRINTABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def place_words(place: Place | None) -> str:
    """ "page 7, paragraph 2"; "" where the place is not known."""
    if place is None:
        return ""
    return f"paragraph {place.paragraph}" if place.page is None else f"page {place.page}, paragraph {place.paragraph}"


def _located(quote: Quote, answered: Answered, contract: Contract) -> Located:
    there = contract.text[quote.start : quote.end] if 0 <= quote.start < quote.end else ""
    if quote.contract_id != contract.id or not quote.text or there != quote.text:
        raise ExportError(
            f"the quote {quote.text[:60]!r} of {answered.category or answered.question!r} is said to stand at "
            f"{quote.start} to {quote.end} of {quote.contract_id!r}, but {contract.id!r} has {there[:60]!r} there. The "
            "contract has changed since; review it again."
        )
    return Located(quote, place_of(contract, quote.start))

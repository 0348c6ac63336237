"""A review as CSV for a spreadsheet: a row a quote, and one row for an answer without quotes.

UTF-8 with its mark in front, without which Excel takes curly quotes for something else; whatever begins as a formula
does is behind a '. Not handled: Excel's limit of 32,767 characters a cell.
"""

import csv
import io
from collections.abc import Iterator, Sequence

from corpora.labels.formats import formula_safe
from corpora.types import Contract
from program.feedback.types import Review
from program.review_export.findings import Finding, Located, printable

COLUMNS = (
    "contract", "clause", "found", "answer", "confidence", "p_answered", "quote", "start", "end", "page", "paragraph",
    "question", "release",
)  # fmt: skip


def as_csv(review: Review, contract: Contract, findings: Sequence[Finding]) -> bytes:
    """The bytes of the file; offsets count characters of the contract's text, from 0, the end excluded."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for finding in findings:
        for located in finding.quotes or (None,):
            writer.writerow(map(_cell, _values(review, contract, finding, located)))
    return ("\ufeff" + file.getvalue()).encode()


def _values(
    review: Review, contract: Contract, finding: Finding, located: Located | None
) -> Iterator[str | int | float | None]:
    answered = finding.answered
    yield from (contract.id, finding.title, *(("yes", answered.answer) if answered.found else ("no", "")))
    yield from (answered.confidence, answered.p_answered)
    quote, place = (located.quote, located.place) if located else (None, None)
    yield from (quote.text, quote.start, quote.end) if quote else (None, None, None)
    yield from (place.page, place.paragraph) if place else (None, None)
    yield from (answered.question, review.release)


def _cell(value: str | int | float | None) -> str | int | float:
    if isinstance(value, str):
        return formula_safe(printable(value))
    return "" if value is None else value

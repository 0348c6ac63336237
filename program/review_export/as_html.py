"""A review as one HTML page: a table of the findings, and the contract with their quotes marked, linked both ways.

All text is escaped by Jinja; the page loads nothing and runs no script.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from corpora.types import Contract
from program.feedback.types import Review
from program.report import page_environment
from program.review_export.findings import Finding, place_words, printable


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the text that the same quotes cover.

    `covering` are their findings, `begin` anchors of quotes that begin here, `end` findings of those that end here.
    """

    text: str
    covering: tuple[Finding, ...]
    begin: tuple[str, ...]
    end: tuple[Finding, ...]


def as_html(review: Review, contract: Contract, findings: Sequence[Finding]) -> bytes:
    """The bytes of the page."""
    template = page_environment().get_template("review_export/review.html.j2")
    context = {
        "review": review, "findings": findings, "pieces": pieces_of(contract.text, findings), "anchor": anchor,
        "n_found": sum(one.answered.found for one in findings), "place_words": place_words,
        "day": max((one.answered.at for one in findings), default="")[:10],
    }  # fmt: skip
    return printable(template.render(context)).encode()


def anchor(finding: Finding, n: int) -> str:
    """The id of a finding's n-th quote in the page."""
    return f"quote-{finding.number}-{n}"


def pieces_of(text: str, findings: Sequence[Finding]) -> list[Piece]:
    """The whole text, cut wherever a quote begins or ends; quotes may overlap."""
    spans = [
        (located.quote.start, located.quote.end, finding, anchor(finding, n))
        for finding in findings
        for n, located in enumerate(finding.quotes, 1)
    ]
    cuts = sorted({0, len(text), *(start for start, *_ in spans), *(end for _, end, *_ in spans)})
    begins: dict[int, list[str]] = {}
    for start, _, _, name in spans:
        begins.setdefault(start, []).append(name)
    pieces, open_spans = [], []
    ordered = sorted(spans, key=lambda span: span[0])
    taken = 0
    for start, end in zip(cuts, cuts[1:], strict=False):
        while taken < len(ordered) and ordered[taken][0] <= start:
            open_spans.append(ordered[taken])
            taken += 1
        covering = tuple(dict.fromkeys(finding for _, _, finding, _ in open_spans))
        ended = tuple(dict.fromkeys(finding for _, last, finding, _ in open_spans if last == end))
        pieces.append(Piece(text[start:end], covering, tuple(begins.get(start, ())), ended))
        open_spans = [span for span in open_spans if span[1] > end]
    return pieces

"""A contract's review as one file: HTML that opens without a network, a Word document, or CSV.

    data = render(review, contract, "docx")

Not handled: more than one contract in a file, and Word's own page numbers (a place's page is that of the file read).
"""

from corpora.types import Contract
from program.feedback.types import Review
from program.review_export.as_csv import as_csv
from program.review_export.as_html import as_html
from program.review_export.as_word import as_word
from program.review_export.findings import ExportError, findings_of

__all__ = ["FORMATS", "ExportError", "render"]

_WRITERS = {"html": as_html, "docx": as_word, "csv": as_csv}
FORMATS = tuple(_WRITERS)


def render(review: Review, contract: Contract, fmt: str) -> bytes:
    """The whole file's bytes, `fmt` one of FORMATS; characters that no XML may hold are left out of HTML and Word.

    ExportError for another format, another contract than the review's, and quotes that do not stand where they say.
    """
    if fmt not in _WRITERS:
        raise ExportError(f"a review cannot be written as {fmt!r}. Choose one of {', '.join(FORMATS)}.")
    return _WRITERS[fmt](review, contract, findings_of(review, contract))

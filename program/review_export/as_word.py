"""A review as a Word document: a table of the findings, then every quote, highlighted, in the words around it."""

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from docx import Document
from docx.document import Document as Word
from docx.enum.text import WD_COLOR_INDEX
from docx.oxml import OxmlElement
from docx.shared import Cm, Pt, RGBColor
from docx.table import Table

from corpora.types import Contract
from program.feedback.types import Review
from program.review_export.findings import Finding, Located, place_words, printable

CONTEXT_CHARS = 300
_WIDTHS_CM = (4.2, 9.3, 2.4)
_SOFT = RGBColor(0x59, 0x61, 0x5D)
_TITLE_CHARS = 255  # what the format allows in its properties
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


def as_word(review: Review, contract: Contract, findings: Sequence[Finding]) -> bytes:
    """The bytes of the document."""
    document = Document()
    title = printable(f"Review of {contract.id}")
    properties = document.core_properties
    properties.title, properties.author, properties.comments = title[:_TITLE_CHARS], "Evergreen", ""
    properties.created = properties.modified = datetime.now(UTC).replace(tzinfo=None)
    document.styles["Normal"].font.size = Pt(10.5)
    document.add_heading(title, 0)
    n_found = sum(one.answered.found for one in findings)
    document.add_paragraph(
        f"{n_found} of {len(findings)} clauses found, {len(findings) - n_found} not in this contract. Answered by "
        f"{printable(review.release) or 'an unnamed release'}; a machine's reading, to be checked."
    )
    _add_table(document, findings)
    quoted = [one for one in findings if one.quotes]
    if quoted:
        document.add_heading("Quotes in context", 1)
    for finding in quoted:
        document.add_heading(f"{finding.number}. {printable(finding.title)}", 2)
        document.add_paragraph(printable(finding.answered.answer))
        for located in finding.quotes:
            _add_quote(document, contract.text, located)
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def _add_table(document: Word, findings: Sequence[Finding]) -> None:
    table = document.add_table(rows=1, cols=3, style="Table Grid")
    _fill(table, 0, ("Clause", "Finding", "Confidence"))
    for cell in table.rows[0].cells:
        cell.paragraphs[0].runs[0].bold = True
    # The head of the table is to stand on every page that it runs over.
    table.rows[0]._tr.get_or_add_trPr().append(OxmlElement("w:tblHeader"))
    for i, one in enumerate(findings, 1):
        table.add_row()
        said = one.answered.answer if one.answered.found else "not in this contract"
        confidence = one.answered.confidence
        _fill(table, i, (f"{one.number}. {one.title}", said, "–" if confidence is None else f"{confidence:.0%}"))
        if not one.answered.found:
            for cell in table.rows[i].cells:
                cell.paragraphs[0].runs[0].font.color.rgb = _SOFT


def _fill(table: Table, row: int, texts: Sequence[str]) -> None:
    for cell, text, width in zip(table.rows[row].cells, texts, _WIDTHS_CM, strict=True):
        cell.width = Cm(width)
        cell.paragraphs[0].add_run(printable(text))


def _add_quote(document: Word, text: str, located: Located) -> None:
    quote = located.quote
    before, after = context_of(text, quote.start, quote.end)
    paragraph = document.add_paragraph()
    paragraph.add_run(printable(before))
    paragraph.add_run(printable(quote.text)).font.highlight_color = WD_COLOR_INDEX.YELLOW
    paragraph.add_run(printable(after))
    place = place_words(located.place)
    note = paragraph.add_run(f"  [{place + ', ' if place else ''}characters {quote.start:,} to {quote.end:,}]")
    note.font.size, note.font.color.rgb = Pt(8.5), _SOFT


def context_of(text: str, start: int, end: int) -> tuple[str, str]:
    """What stands before and after in the same paragraph, CONTEXT_CHARS of each at most, cut between words with "…"."""
    before = text[max(0, start - CONTEXT_CHARS) : start]
    after = text[end : end + CONTEXT_CHARS]
    blank = list(_BLANK_LINE.finditer(before))
    if blank:
        before = before[blank[-1].end() :]
    elif start > CONTEXT_CHARS:
        before = "… " + before.partition(" ")[2]
    if blank := _BLANK_LINE.search(after):
        after = after[: blank.start()]
    elif end + CONTEXT_CHARS < len(text):
        after = after.rpartition(" ")[0] + " …"
    return before.lstrip(), after.rstrip()

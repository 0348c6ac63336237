"""Word files to paragraphs: the body's paragraphs and tables in their order; a table's row is one line, tabs between.

Insertions not yet accepted are read, deletions are not; content controls and text boxes are read where they stand.
Numbers that Word itself puts before paragraphs are written out (`numbering.py`). Left out: headers, footers, comments,
and footnotes, which are counted. Not handled: pages, which a .docx does not have until it is laid out.
"""

from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from zipfile import BadZipFile

from docx import Document
from docx.opc.exceptions import PackageNotFoundError
from docx.oxml.ns import qn
from lxml import etree

from corpora.files.limits import FileError
from corpora.files.numbering import Numbering
from corpora.files.text import clean, said

_P, _TBL, _TR, _TC = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
_T, _FOOTNOTE, _ENDNOTE = qn("w:t"), qn("w:footnoteReference"), qn("w:endnoteReference")
_BREAKS = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
# Moved and deleted text, the older twin of every text box, and properties (a <w:tab> in those is a tab stop).
_LEFT_OUT = {qn("w:moveFrom"), qn("w:del"), qn("w:pPr"), qn("w:rPr"), qn("w:sdtPr"), qn("w:sectPr")}
_LEFT_OUT |= {qn("w:tblPr"), qn("w:tblGrid"), qn("w:trPr"), qn("w:tcPr")}
_LEFT_OUT |= {"{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"}


def read_docx(data: bytes) -> tuple[list[tuple[str, None]], list[str]]:
    """The paragraphs of a .docx, as `places.compose` takes them, and what was left out or changed; FileError."""
    try:
        document = Document(BytesIO(data))
        body = document.element.body
    except (PackageNotFoundError, BadZipFile, KeyError, ValueError) as error:
        raise FileError(f"it is no Word file ({error})") from error
    if body is None:
        raise FileError("its Word document has no body")
    changed: Counter[str] = Counter()
    paragraphs = [(clean(text, changed), None) for text in _blocks(body, Numbering(document))]
    notes = said(changed)
    n_notes = sum(1 for _ in body.iter(_FOOTNOTE, _ENDNOTE))
    if n_notes:
        notes.append(f"{n_notes:,} footnotes left out")
    return paragraphs, notes


def _blocks(parent: etree._Element, numbering: Numbering) -> Iterator[str]:
    """Paragraphs and rows in document order, also those inside content controls and the like."""
    for child in parent:
        if child.tag == _P:
            yield from _paragraph(child, numbering)
        elif child.tag == _TBL:
            yield from _rows(child, numbering)
        elif child.tag not in _LEFT_OUT:
            yield from _blocks(child, numbering)


def _rows(table: etree._Element, numbering: Numbering) -> Iterator[str]:
    for row in _children(table, _TR):
        cells = [[text for text in _blocks(cell, numbering) if text.strip()] for cell in _children(row, _TC)]
        filled = [cell for cell in cells if cell]
        # A table of one cell is a frame around text, not a table.
        yield from filled[0] if len(filled) == 1 else ["\t".join("\n".join(cell) for cell in filled)]


def _children(parent: etree._Element, tag: str) -> Iterator[etree._Element]:
    for child in parent:
        if child.tag == tag:
            yield child
        elif child.tag not in _LEFT_OUT and child.tag not in (_TR, _TC):
            yield from _children(child, tag)


def _paragraph(paragraph: etree._Element, numbering: Numbering) -> Iterator[str]:
    """Its text behind its number, then the text boxes that hang on it."""
    words: list[str] = []
    boxes: list[etree._Element] = []
    _gather(paragraph, words, boxes)
    text, number = "".join(words), numbering.next(paragraph)
    yield f"{number} {text}" if number and text.strip() else text
    for box in boxes:
        yield from _blocks(box, numbering)


def _gather(element: etree._Element, words: list[str], boxes: list[etree._Element]) -> None:
    for child in element:
        if child.tag == _T:
            words.append(child.text or "")
        elif child.tag in _BREAKS:
            words.append(_BREAKS[child.tag])
        elif child.tag == qn("w:txbxContent"):
            boxes.append(child)
        elif child.tag not in _LEFT_OUT:
            _gather(child, words, boxes)

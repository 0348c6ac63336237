"""HTML to paragraphs: blocks are paragraphs, a table's row is one line with a tab between cells.

A cell that stands alone in its row, as where a page is laid out with tables, gives its paragraphs one by one. What
cannot be seen (scripts, styles, hidden elements, inline XBRL's header) is left out. Not handled: style sheets, so
that what a class hides is shown, and numbers that only the browser would put before list items.
"""

import re
from collections import Counter

from lxml import etree

from corpora.files.limits import FileError
from corpora.files.text import clean, decode, said

_DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]{1,40})", re.I)
_BLOCKS = frozenset(
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure footer form h1 h2 "
    "h3 h4 h5 h6 header hr legend li main nav ol p pre section summary table tbody tfoot thead ul caption".split()
)
_UNSEEN = frozenset("script style head noscript template svg math object iframe textarea select ix:header".split())
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_SPACE = re.compile(r"\s+")
_BLANK_LINES = re.compile(r"\n\s*\n")


class _Page:
    """What has been gathered while walking: one list of lines per open cell, the outermost the page's own."""

    def __init__(self) -> None:
        self.cells: list[list[str]] = [[]]
        self.rows: list[list[list[str]]] = []
        self.words: list[str] = []

    def end_line(self) -> None:
        line = "\n".join(_SPACE.sub(" ", part).strip() for part in "".join(self.words).split("\x00")).strip()
        self.words.clear()
        if line:
            self.cells[-1].append(line)

    def end_row(self) -> None:
        filled = [cell for cell in self.rows.pop() if cell]
        lines = filled[0] if len(filled) == 1 else ["\t".join("\n".join(cell) for cell in filled)]
        self.cells[-1].extend(line for line in lines if line)


def read_html(data: bytes) -> tuple[list[tuple[str, None]], list[str]]:
    """The paragraphs of a page, as `places.compose` takes them, and what was changed; FileError if it is too deep."""
    declared = _DECLARED.search(data[:4096])
    text, notes = decode(data, _encoding(declared[1].decode("ascii")) if declared else None)
    changed: Counter[str] = Counter()
    text = clean(text, changed)
    notes += said(changed)
    if not text.strip():
        return [], notes
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(text.encode("utf-8"), parser)
    except etree.LxmlError as error:
        raise FileError(f"its HTML cannot be parsed ({error})") from error
    fatal = [entry.message for entry in parser.error_log if entry.level_name == "FATAL"]
    if fatal:
        # libxml2 drops whatever stands deeper or behind, and half a contract must not pass for the whole.
        raise FileError(f"its HTML cannot be parsed to its end ({fatal[0].strip()})")
    page = _walk(root) if root is not None else []
    return [(paragraph, None) for paragraph in page], notes


def _walk(root: etree._Element) -> list[str]:
    page = _Page()
    unseen: etree._Element | None = None
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if unseen is None and event == "start":
            if _is_unseen(element):
                unseen = element
            else:
                _start(page, element)
        elif unseen is None:
            _end(page, element)
        elif event == "end" and element is unseen:
            unseen = None
        if event == "end" and unseen is None and element.tail:
            _say(page, element.tail, element.getparent())
    page.end_line()
    return page.cells[0]


def _start(page: _Page, element: etree._Element) -> None:
    if element.tag == "br":
        # Kept apart from white space, which is folded; no text holds a NUL any more.
        page.words.append("\x00")
    elif element.tag in _BLOCKS or element.tag == "tr":
        page.end_line()
    if element.tag == "tr":
        page.rows.append([])
    elif element.tag in ("td", "th") and page.rows:
        page.end_line()
        page.cells.append([])
    if element.text:
        _say(page, element.text, element)


def _end(page: _Page, element: etree._Element) -> None:
    if element.tag in _BLOCKS:
        page.end_line()
    elif element.tag in ("td", "th") and page.rows and len(page.cells) > 1:
        page.end_line()
        page.rows[-1].append(page.cells.pop())
    elif element.tag == "tr":
        page.end_line()
        page.end_row()


def _say(page: _Page, text: str, within: etree._Element | None) -> None:
    if within is not None and within.tag == "pre":
        *paragraphs, last = _BLANK_LINES.split(text)
        for paragraph in paragraphs:
            page.words.append(paragraph.replace("\n", "\x00"))
            page.end_line()
        text = last.replace("\n", "\x00")
    page.words.append(text)


def _is_unseen(element: etree._Element) -> bool:
    if element.tag in _UNSEEN:
        return True
    return element.get("hidden") is not None or bool(_HIDDEN.search(element.get("style") or ""))


def _encoding(declared: str) -> str | None:
    # UTF-8 is tried before what is declared, so that a page that says so in vain has said nothing.
    if declared.lower() in ("utf-8", "utf8"):
        return None
    # What browsers do: pages that say Latin-1 or ASCII mean windows-1252.
    return "cp1252" if declared.lower() in ("iso-8859-1", "latin1", "us-ascii", "ascii") else declared

"""PDF to paragraphs, page by page, from the text layer alone.

Lines are pypdf's; a paragraph ends at a blank line, or where a line that ends a sentence stays clearly short of the
page's width or comes before a clause's number. Pages without text, as scans have them, are named. Not handled: optical
character recognition, columns and tables beyond pypdf's order, running heads (they stay), words hyphenated at a line's
end (they stay so).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import pairwise

from pypdf import PageObject, PasswordType, PdfReader
from pypdf.errors import PyPdfError

from corpora.files.limits import FileError, FileLimits
from corpora.files.text import clean, said

_SENTENCE_END = re.compile(r"[.;:!?][\"”')]?\Z")
_CLAUSE = re.compile(
    r"(?:(?:ARTICLE|Article|SECTION|Section|EXHIBIT|SCHEDULE)\s+\w|\d{1,3}(?:\.\d{1,3})*[.)]?\s+[A-Z\"“]|\(\w{1,4}\)\s)"
)
_SHORT = 0.75


def read_pdf(data: bytes, limits: FileLimits) -> tuple[list[tuple[str, int]], list[str]]:
    """The (paragraph, page)s of a PDF, as `places.compose` takes them, and which pages have no text; FileError."""
    reader, notes = _open(data)
    n_pages = _count(reader, limits)
    changed: Counter[str] = Counter()
    paragraphs: list[tuple[str, int]] = []
    silent: list[int] = []
    broken: dict[int, str] = {}
    for number in range(1, n_pages + 1):
        try:
            text = clean(_text(reader.pages[number - 1]), changed)
        except (MemoryError, FileError):
            raise
        except Exception as error:  # pypdf lets out whatever a malformed page trips over
            broken[number] = f"{type(error).__name__}: {error}"[:200]
            continue
        if text.strip():
            paragraphs.extend((paragraph, number) for paragraph in _paragraphs(text) if paragraph)
        else:
            silent.append(number)
    if broken:
        what = next(iter(broken.values()))
        notes.append(f"{_pages(broken, n_pages)} cannot be read ({what})")
    if silent:
        notes.append(f"{_pages(silent, n_pages)} {'has' if len(silent) == 1 else 'have'} no text layer")
    if not paragraphs:
        raise FileError("; ".join(notes) or "it has no pages")
    return paragraphs, notes + said(changed)


def _open(data: bytes) -> tuple[PdfReader, list[str]]:
    try:
        reader = PdfReader(BytesIO(data))
        if not reader.is_encrypted:
            return reader, []
        # Many are encrypted only to forbid printing or copying, and open with the empty password.
        if reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise FileError("it is encrypted and wants a password; save it without one")
    except (PyPdfError, NotImplementedError) as error:
        raise FileError(f"its PDF structure cannot be read ({error})") from error
    return reader, ["encrypted, opened with the empty password"]


def _count(reader: PdfReader, limits: FileLimits) -> int:
    try:
        n_pages = len(reader.pages)
    except (PyPdfError, NotImplementedError) as error:
        raise FileError(f"its pages cannot be found ({error})") from error
    if n_pages > limits.max_pages:
        raise FileError(f"it has {n_pages:,} pages, and {limits.max_pages:,} is the limit")
    return n_pages


def _text(page: PageObject) -> str:
    return page.extract_text() or ""


def _paragraphs(text: str) -> Iterator[str]:
    lines = [line.strip() for line in text.split("\n")]
    width = max(map(len, lines))
    start = 0
    for at, (line, below) in enumerate(pairwise(lines), 1):
        ended = bool(_SENTENCE_END.search(line)) and (len(line) < _SHORT * width or bool(_CLAUSE.match(below)))
        if not line or not below or ended:
            yield "\n".join(lines[start:at])
            start = at
    yield "\n".join(lines[start:])


def _pages(numbers: Iterable[int], n_pages: int) -> str:
    """ "pages 3-5, 9 of 12", at most eight runs."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs[:8])
    alone = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"page{'' if alone else 's'} {shown}{', ...' if len(runs) > 8 else ''} of {n_pages}"

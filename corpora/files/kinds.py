"""What a file is: by its content first, by its name's ending where the content leaves it open."""

import re
from pathlib import PurePosixPath

from corpora.files.limits import FileError
from corpora.files.text import is_binary

HEAD_BYTES = 65_536
KINDS = {
    "txt": ("text", (".txt", ".text", "")),
    "md": ("Markdown", (".md", ".markdown")),
    "html": ("HTML", (".html", ".htm", ".xhtml")),
    "json": ("JSON", (".json",)),
    "pdf": ("PDF", (".pdf",)),
    "docx": ("Word (.docx)", (".docx", ".docm", ".dotx")),
    "zip": ("zip", (".zip",)),
}
_OF_ENDING = {ending: kind for kind, (_, endings) in KINDS.items() for ending in endings}
# What is recognised in order to be refused by its name.
_OTHER = (
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or encrypted Office file; save it as .docx, without a password"),
    (b"{\\rtf", "RTF; save it as .docx"),
    (b"\x89PNG", "a PNG image; only text layers are read"),
    (b"\xff\xd8\xff", "a JPEG image; only text layers are read"),
    (b"GIF8", "a GIF image; only text layers are read"),
    (b"II*\x00", "a TIFF image; only text layers are read"),
    (b"MM\x00*", "a TIFF image; only text layers are read"),
    (b"\x1f\x8b", "gzip; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "7z; unpack it"),
    (b"Rar!\x1a\x07", "RAR; unpack it"),
    (b"BZh", "bzip2; unpack it"),
    (b"\xfd7zXZ\x00", "xz; unpack it"),
    (b"%!PS", "PostScript; save it as PDF"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x7fELF", "a program"),
)  # fmt: skip
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body)\b", re.I)
_CUAD = re.compile(rb'"data"\s*:\s*\[')


def is_zip(head: bytes) -> bool:
    """Whether a file that begins so is a zip, an office file among them."""
    return head.startswith(_ZIP)


def kind_of(head: bytes, name: str, office: str | None = None) -> tuple[str, list[str]]:
    """The key in KINDS for a file of that name, and what is to be said of its name's ending.

    `head` is its first HEAD_BYTES or all of it; `office` is what `archives.office_kind` says of a zip. Raises FileError
    for what is of no such kind, and for an ending that promises what the content is not.
    """
    ending = PurePosixPath(name.lower()).suffix
    named = _OF_ENDING.get(ending)
    if not head:
        raise FileError("it is empty")
    kind = _by_content(head, office, named)
    if kind is None:
        for magic, what in _OTHER:
            if head.startswith(magic):
                raise FileError(f"it is {what}" if named is None else f"it is named {ending} and is {what}")
        if is_binary(head):
            raise FileError(f"it is named {ending or 'without an ending'} and is of no kind that is read, nor text")
        if named in ("pdf", "docx", "zip"):
            raise FileError(f"it is named {ending}, but its content is text and no {KINDS[named][0]}")
        # What has no magic number is what its name says.
        return named or "txt", []
    if named == kind or (named is None and kind in ("txt", "html")) or {named, kind} == {"txt", "md"}:
        return kind, []
    return kind, [f"named {ending or 'without an ending'}, read as {KINDS[kind][0]}"]


def _by_content(head: bytes, office: str | None, named: str | None) -> str | None:
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if is_zip(head):
        if office not in (None, "docx"):
            raise FileError(f"it is {office}; save it as .docx or PDF")
        return office or "zip"
    start = head[:4096].replace(b"\x00", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")
    # A Markdown file may show HTML and a contract may quote it, each behind other words; a page begins with it.
    if _HTML.search(start[:1024] if named in ("txt", "md", None) else start):
        return "html"
    if start[:1] == b"{" and named != "json" and _CUAD.search(head):
        return "json"
    return None

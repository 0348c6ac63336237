"""Bytes to characters, and characters to text that can be stored, searched and quoted; whatever is changed is counted.

Not handled: UTF-32 and UTF-7, bidirectional overrides (they stay), words hyphenated at a line's end (they stay so).
"""

import codecs
import re
from collections import Counter

from charset_normalizer import from_bytes

from corpora.files.limits import FileError

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# What charset-normalizer looks at; the whole file is then decoded with what it finds.
_SAMPLE_BYTES = 500_000
_LINE_ENDS = re.compile(r"\r\n?|\v|\x85")
# Control characters, half characters, non-characters and byte-order marks; a form feed is a page's end, not rubbish.
_RUBBISH = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_HALVES = re.compile("[\ud800-\udfff]")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))
_UNREADABLE = "\ufffd"


def is_binary(data: bytes) -> bool:
    """Whether bytes without a magic number are no text either: more than one control byte in ten, UTF-16 aside."""
    head = data[:_SAMPLE_BYTES]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _utf16_without_mark(head):
        return False
    return 10 * (len(head) - len(head.translate(None, _CONTROL))) > len(head)


def decode(data: bytes, declared: str | None = None) -> tuple[str, list[str]]:
    """The characters of `data`, and what had to be assumed or replaced, in words.

    In this order: a byte-order mark, UTF-8, UTF-8 with stray bytes of windows-1252, the `declared` encoding (HTML's),
    UTF-16 without a mark, what charset-normalizer takes it for. Raises FileError where none fits.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _decode(data[len(mark) :], encoding)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _other_than_utf8(data, declared)
    # UTF-16 of English is valid UTF-8 full of NULs.
    return _decode(data, encoding) if (encoding := _utf16_without_mark(data)) else (text, [])


def clean(text: str, changed: Counter[str]) -> str:
    """Line ends to "\\n", form feeds to blank lines, no control or half characters; `changed` counts what went out."""
    text = _LINE_ENDS.sub("\n", text).replace("\f", "\n\n")
    text, n_rubbish = _RUBBISH.subn("", text)
    text, n_halves = _HALVES.subn(_UNREADABLE, text)
    changed.update({"control characters left out": n_rubbish, f"half characters replaced with {_UNREADABLE}": n_halves})
    return text


def said(changed: Counter[str]) -> list[str]:
    """What `clean` has counted, in words."""
    return [f"{count:,} {what}" for what, count in changed.items() if count]


def _other_than_utf8(data: bytes, declared: str | None) -> tuple[str, list[str]]:
    text, n_stray = _with_stray_bytes(data)
    if text is not None:
        return text, [f"{n_stray:,} bytes that are not UTF-8 read as windows-1252"]
    for encoding in (declared, _utf16_without_mark(data)):
        if encoding is not None:
            return _decode(data, encoding)
    # English with curly quotes and section signs: too little to go by for statistics, and the same in all of cp125x.
    if not data.translate(None, bytes([*range(128), *range(0x82, 0xC0)])):
        return _decode(data, "cp1252")
    best = from_bytes(data[:_SAMPLE_BYTES].translate(None, _CONTROL)).best()
    if best is None:
        raise FileError("the encoding of its text cannot be told; save it as UTF-8")
    return _decode(data, best.encoding)


def _decode(data: bytes, encoding: str) -> tuple[str, list[str]]:
    try:
        text = data.decode(encoding, errors="replace")
    except LookupError as error:
        raise FileError(f"it declares the encoding {encoding!r}, which is not known; save it as UTF-8") from error
    notes = [] if encoding == "utf-8" else [f"read as {encoding}"]
    if n_lost := text.count(_UNREADABLE):
        notes.append(f"{n_lost:,} characters could not be decoded and stand as {_UNREADABLE}")
    if 10 * n_lost > len(text):
        raise FileError(f"{n_lost:,} of its {len(text):,} characters cannot be decoded as {encoding}; save it as UTF-8")
    return text, notes


def _with_stray_bytes(data: bytes) -> tuple[str | None, int]:
    """UTF-8 with single bytes of windows-1252, as in pasted texts, and their number; None if it is not mostly UTF-8."""
    kept = data.decode("utf-8", errors="surrogateescape")
    stray = _HALVES.findall(kept)
    n_real = len(data.translate(None, bytes(range(128)))) - len(stray)
    # A valid multibyte character is two to four bytes; chance makes none to speak of.
    if len(stray) > n_real // 2:
        return None, 0
    read = {ord(one): bytes([ord(one) - 0xDC00]).decode("cp1252", errors="replace") for one in set(stray)}
    return kept.translate(read), len(stray)


def _utf16_without_mark(data: bytes) -> str | None:
    """UTF-16 in which most characters are Latin, so that every other byte is NUL."""
    head = data[: _SAMPLE_BYTES // 2 * 2]
    pairs = len(head) // 2
    if pairs and 10 * head[1::2].count(0) > 7 * pairs and 10 * head[::2].count(0) < pairs:
        return "utf-16-le"
    if pairs and 10 * head[::2].count(0) > 7 * pairs and 10 * head[1::2].count(0) < pairs:
        return "utf-16-be"
    return None

"""Zip archives: what is in them, and one member's bytes; nothing is unpacked under a name of the archive's choosing.

The archive's own account of sizes is checked first, and reading stops there whatever is really packed.
Not handled: 7z, RAR, tar, and encrypted members (named as such).
"""

import tempfile
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import IO

from corpora.files.limits import FileError, FileLimits

_RATIO_FROM_BYTES = 1_000_000
_ENCRYPTED = 0x1
_OFFICE = (
    ("word/document.xml", "docx"),
    ("xl/workbook.xml", "an Excel file"),
    ("ppt/presentation.xml", "a PowerPoint file"),
    ("META-INF/MANIFEST.MF", "a Java archive"),
)
_BAD = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError, UnicodeError, KeyError)


def open_archive(file: IO[bytes], limits: FileLimits) -> zipfile.ZipFile:
    """The archive in `file`; FileError if it is none, or has more entries than allowed."""
    try:
        archive = zipfile.ZipFile(file)
    except _BAD as error:
        raise FileError(f"its zip structure cannot be read ({error})") from error
    if len(archive.infolist()) > limits.zip_entries:
        raise FileError(f"it has {len(archive.infolist()):,} entries, and {limits.zip_entries:,} is the limit of a zip")
    return archive


def members(archive: zipfile.ZipFile, limits: FileLimits) -> tuple[list[tuple[str, int]], list[tuple[str, str]]]:
    """The files to read as (name, unpacked size), and those refused as (name, reason), both sorted by name.

    Folders, hidden files and what macOS adds are left out without a word. FileError where all together are too large.
    """
    good: list[tuple[str, int]] = []
    refused: list[tuple[str, str]] = []
    seen: set[str] = set()
    for entry in archive.infolist():
        if entry.is_dir() or any(part.startswith(".") and part != ".." for part in _parts(entry.filename)):
            continue
        if "__MACOSX" in _parts(entry.filename):
            continue
        reason = _refusal(entry, limits)
        if reason is None and entry.filename in seen:
            reason = "its name stands twice in the zip, and only the first is read"
        seen.add(entry.filename)
        if reason is None:
            good.append((entry.filename, entry.file_size))
        else:
            refused.append((entry.filename, reason))
    total = sum(size for _, size in good)
    if total > limits.zip_bytes:
        raise FileError(f"it unpacks to {total:,} bytes, and {limits.zip_bytes:,} is the limit of a zip")
    return sorted(good), sorted(refused)


def read_member(archive: zipfile.ZipFile, name: str, limits: FileLimits) -> bytes:
    """The unpacked bytes of a member; FileError if they are too many, encrypted or damaged."""
    entry = next((entry for entry in archive.infolist() if entry.filename == name), None)
    if entry is None:
        raise FileError(f"there is no {name!r} in the zip any more")
    if (reason := _refusal(entry, limits)) is not None:
        raise FileError(reason)
    try:
        with archive.open(entry) as file:
            # zipfile never gives more than the declared size, which has been checked, and then compares the CRC.
            return file.read()
    except (*_BAD, RuntimeError) as error:
        raise FileError(f"it cannot be unpacked ({error})") from error


def office_kind(archive: zipfile.ZipFile, limits: FileLimits) -> str | None:
    """ "docx", or what other kind of office file a zip is, in words; None for a plain zip. FileError for a bomb.

    An office file is opened whole by its library: its parts are held to the limits of a file, together.
    """
    names = set(archive.namelist())
    kind = next((kind for mark, kind in _OFFICE if mark in names), None)
    if kind is None and "mimetype" in names:
        kind = "an OpenDocument or EPUB file"
    if kind == "docx":
        for entry in archive.infolist():
            if (reason := _refusal(entry, limits)) is not None:
                raise FileError(f"its part {entry.filename!r}: {reason}")
        total = sum(entry.file_size for entry in archive.infolist())
        if total > limits.max_bytes:
            raise FileError(f"it unpacks to {total:,} bytes, and {limits.max_bytes:,} is the limit of a file")
    return kind


def spooled(data: bytes) -> IO[bytes]:
    """A temporary file without a name that holds `data`, for an archive inside an archive."""
    file = tempfile.TemporaryFile()
    file.write(data)
    return file


def _refusal(entry: zipfile.ZipInfo, limits: FileLimits) -> str | None:
    parts = _parts(entry.filename)
    if ".." in parts or not parts or parts[0] == "/" or parts[0].endswith(":"):
        return "its name leads out of the zip"
    if entry.flag_bits & _ENCRYPTED:
        return "it is encrypted; unpack it with its password"
    if entry.file_size > limits.max_bytes:
        return f"it unpacks to {entry.file_size:,} bytes, and {limits.max_bytes:,} is the limit of a file"
    ratio = entry.file_size // max(1, entry.compress_size)
    if entry.file_size > _RATIO_FROM_BYTES and ratio > limits.zip_ratio:
        return f"it unpacks to {ratio:,} times its packed size, and {limits.zip_ratio} is the limit"
    return None


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts

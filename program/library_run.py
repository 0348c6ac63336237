"""One run over a library's files: what is new, changed or unchanged, read, indexed and recorded, batch by batch.

The order of writing makes a kill harmless: first the index, then the record's rows in one transaction. What is in the
index without a row is taken out again at the end of the next run, unless that run has read it anew by then; a row whose
contract the index does not hold as recorded is read again.
"""

import hashlib
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from corpora.files.reader import FileReader, Reading
from corpora.files.walk import Found, shown
from corpora.types import Contract
from modules.retriever import PassageIndex
from program.library_record import DUPLICATE, FAILED, INDEXED, Record, SeenFile, Source

REPLACED, UNCHANGED, MISSING, PRUNED = "replaced", "unchanged", "missing", "pruned"
# Raised when the same bytes may give another text: earlier failures are then tried again.
READER_VERSION = 1
_BATCH_CHARS = 300_000
# A file written in the same moment as it was read may have changed under the same time stamp.
_SETTLED_NS = 2_000_000_000
_STALE = -1
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,5}\Z")


class LibraryRun:
    """What is known while the files are gone through; `outcome` says of each source what became of it, and a detail."""

    def __init__(
        self, record: Record, index: PassageIndex, reader: FileReader, on_passages: Callable[[int], object]
    ) -> None:
        self.outcome: dict[str, tuple[str, str]] = {}
        self.notes: dict[str, str] = {}
        self.queue: deque[Found] = deque()
        self.bytes_done = 0.0
        self._record, self._index, self._reader, self._on_passages = record, index, reader, on_passages
        self._tag = f"{READER_VERSION}:{text_sha256(str(reader.limits))[:16]}"
        rows = record.sources("status = ?", INDEXED)
        self._by_text = {row.text_sha256: row for row in rows}
        self._ids = {row.contract_id for row in rows}
        self._contracts: list[Contract] = []
        self._sources: list[Source] = []
        self._files: list[SeenFile] = []
        self._vanished: list[Source] = []

    def recover(self, *, thorough: bool) -> None:
        """Have read again what the record says is indexed and the index does not hold so."""
        self._index.repair(thorough=thorough)
        held = {key: text_sha256(self._index.contract_text(key)) for key in self._index.contract_ids}
        for row in self._record.sources("status = ?", INDEXED):
            if held.get(row.contract_id) == row.text_sha256:
                continue
            if os.path.exists(row.file):
                self._read_again(row.file)
            else:
                self._record.delete(sources=[row.source])
                self._lose(row)
                self.outcome[row.source] = (FAILED, "the last run was interrupted, and the file is no longer there")

    def look(self, files: Iterable[Found], *, retry_failed: bool) -> int:
        """Queue the files that must be read, and account for the others; the bytes of all that is queued."""
        queued = {found.path: found for found in self.queue}
        wanted = list(files)
        wanted.extend(queued[path] for path in queued.keys() - {found.path for found in wanted})
        self.queue.clear()
        size = 0
        for found in wanted:
            if not self._is_unchanged(found, retry_failed=retry_failed):
                self.queue.append(found)
                size += _size(found.path)
        return size

    def read(self, found: Found) -> None:
        """Read a file's contracts, index them and record them; a batch may stay in memory until `flush`."""
        key, start, size = shown(str(found.path)), self.bytes_done, _size(found.path)
        if any(file.path == key for file in self._files):
            self.flush()
        before = {row.source: row for row in self._record.sources("file = ?", key)}
        met: set[str] = set()
        failed: list[str] = []
        seen, failure = _see(found, self._tag)
        for reading in self._reader.read(found.path) if failure is None else [failure]:
            source = _source_key(key, reading)
            met.add(source)
            if reading.passing:
                # What the disk refuses today it may give tomorrow, and what it gave before still counts.
                seen = replace(seen, size=_STALE)
            elif reading.failure is not None:
                failed.append(source)
            self._take(found, source, reading, before.get(source))
            self.bytes_done = start + size * reading.share
            if sum(len(contract.text) for contract in self._contracts) >= _BATCH_CHARS:
                self.flush()
        self._files.append(seen)
        self._account([row for source, row in before.items() if source not in met], failed, seen)
        self.bytes_done = start + size

    def _account(self, rows: list[Source], failed: list[str], seen: SeenFile) -> None:
        """Rows of a file that it has not given this time: gone with a zip or a file that cannot be read, or missing."""
        for row in rows:
            if any(row.source.startswith((f"{key}!", f"{key}#")) for key in failed):
                self._lose(row)
                self._record.delete(sources=[row.source])
            elif seen.size != _STALE:
                self._vanished.append(row)
            elif row.status != INDEXED:
                self._record.delete(sources=[row.source])

    def flush(self) -> None:
        """Write what has been read: to the index, then to the record."""
        self._index.add(self._contracts, progress=False, on_passages=self._on_passages)
        self._record.write(sources=self._sources, files=self._files)
        self._contracts, self._sources, self._files = [], [], []

    def finish(self, roots: Iterable[Path], found: Iterable[Found], *, prune: bool) -> None:
        """Name or prune what is gone from the files, and take out of the index whatever the record does not hold."""
        self.flush()
        there = {shown(str(one.path)) for one in found}
        under = tuple(shown(str(root)) for root in roots)
        gone = [
            file.path
            for file in self._record.files()
            if file.path not in there
            and any(file.path == root or file.path.startswith(f"{root.rstrip('/')}/") for root in under)
        ]
        missing = [row for path in gone for row in self._record.sources("file = ?", path)]
        known = {row.source for row in missing}
        missing += [row for row in self._vanished if row.source not in known]
        for row in missing:
            if row.status != FAILED:
                self.outcome[row.source] = (PRUNED if prune else MISSING, "")
        if prune:
            self._prune(missing, gone)
        else:
            self._record.delete(sources=[row.source for row in missing if row.status == FAILED])
            # Read again the next time, or an unchanged zip would hide what is missing from it.
            for path in {row.file for row in self._vanished if row.status != FAILED}:
                self._record.write(files=[replace(self._record.file(path), size=_STALE)])
        recorded = {row.contract_id for row in self._record.sources("status = ?", INDEXED)}
        self._index.remove(set(self._index.contract_ids) - recorded)

    def _prune(self, missing: list[Source], files: list[str]) -> None:
        going = {row.source for row in missing}
        heirs = []
        for row in missing:
            twins = self._record.sources("status = ? AND contract_id = ?", DUPLICATE, row.contract_id or "")
            heir = next((twin for twin in twins if twin.source not in going), None)
            if row.status == INDEXED and heir is not None:
                heirs.append(replace(heir, status=INDEXED))
        self._record.delete(sources=going, files=files, then=heirs)

    def _is_unchanged(self, found: Found, *, retry_failed: bool) -> bool:
        """Whether a file is as it was when it was last read; its sources are then accounted for."""
        key = shown(str(found.path))
        known = self._record.file(key)
        if known is None or known.size == _STALE:
            return False
        try:
            status = os.stat(found.path)
            if (known.size, known.mtime_ns) != (status.st_size, status.st_mtime_ns) or (
                known.seen_ns - known.mtime_ns < _SETTLED_NS
            ):
                now = _seen(found, status, known.reader)
                if now.sha256 != known.sha256:
                    return False
                self._record.write(files=[now])
        except OSError:
            return False
        rows = self._record.sources("file = ?", key)
        if (retry_failed or known.reader != self._tag) and any(row.status == FAILED for row in rows):
            return False
        for row in rows:
            self.outcome[row.source] = (FAILED, row.reason or "") if row.status == FAILED else (UNCHANGED, "")
        return True

    def _take(self, found: Found, source: str, reading: Reading, old: Source | None) -> None:
        """Decide what a reading is: a failure, a duplicate, or a contract to index; `old` is what it was before."""
        was = old if old is not None and old.status == INDEXED else None
        contract_id, sha256, status = None, None, FAILED
        if reading.failure is None:
            sha256 = text_sha256(reading.text)
            twin = self._by_text.get(sha256)
            if twin is not None and twin.source != source:
                status, contract_id = DUPLICATE, twin.contract_id
            else:
                status, contract_id = INDEXED, was.contract_id if was else self._new_id(found, reading)
        # Names of encodings, entries and the like come out of the file.
        reason = None if reading.failure is None else shown(reading.failure)
        if was is not None and reading.passing:
            self.outcome[source] = (FAILED, f"{reason}; what was read of it before stays")
            return
        if was is not None and (status != INDEXED or was.text_sha256 != sha256):
            self._lose(was)
        notes, now = shown("; ".join(reading.notes)), datetime.now(UTC).isoformat(timespec="seconds")
        row = Source(source, shown(str(found.path)), status, contract_id, sha256, reason, notes, now)
        self._sources.append(row)
        self.outcome[source] = (status, reason or contract_id or "")
        if status == INDEXED:
            self._by_text[sha256] = row
            self._contracts.append(Contract(contract_id, reading.text, reading.places))
            if was is not None:
                self.outcome[source] = (REPLACED if was.text_sha256 != sha256 else UNCHANGED, "")
        if notes:
            self.notes[source] = notes

    def _lose(self, row: Source) -> None:
        """A contract is about to leave, or to change its text: whoever had the same text must be read again."""
        if row.status != INDEXED:
            return
        self.flush()
        holder = self._by_text.get(row.text_sha256)
        if holder is not None and holder.source == row.source:
            del self._by_text[row.text_sha256]
        for twin in self._record.sources("status = ? AND contract_id = ?", DUPLICATE, row.contract_id or ""):
            self._read_again(twin.file)

    def _read_again(self, path: str) -> None:
        known = self._record.file(path)
        if known is None or not os.path.exists(path):
            rows = self._record.sources("file = ? AND status != ?", path, INDEXED)
            self._record.delete(sources=[row.source for row in rows])
        elif all(str(found.path) != path for found in self.queue):
            self._record.write(files=[replace(known, size=_STALE)])
            self.queue.append(Found(Path(path), known.relative))

    def _new_id(self, found: Found, reading: Reading) -> str:
        """An id that no contract has; the rule stands in `program/library.py`."""
        for name in _names(found, reading):
            if name not in self._ids:
                self._ids.add(name)
                return name
        raise AssertionError("the names never end")


def text_sha256(text: str) -> str:
    """The hash under which a text counts as the same."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _names(found: Found, reading: Reading) -> Iterator[str]:
    whole = [shown(part.replace("\\", "/")) for part in (found.relative, *reading.members)]
    if reading.title is not None:
        whole = [shown(reading.title)]
    name = "/".join(whole)
    yield name if reading.title is not None else "/".join(_ENDING.sub("", part) for part in whole)
    yield name
    number = 2
    while True:
        yield f"{name}~{number}"
        number += 1


def _source_key(path: str, reading: Reading) -> str:
    key = "!".join([path, *map(shown, reading.members)])
    return key if reading.title is None else f"{key}#{shown(reading.title)}"


def _see(found: Found, tag: str) -> tuple[SeenFile, Reading | None]:
    """The file as it is now, or why it cannot be looked at."""
    gone = SeenFile(shown(str(found.path)), found.relative, _STALE, 0, "", time.time_ns(), tag)
    try:
        status = os.stat(found.path)
        if not stat.S_ISREG(status.st_mode):
            return gone, Reading(failure="it is no regular file", passing=True)
        return _seen(found, status, tag), None
    except OSError as error:
        return gone, Reading(failure=f"it cannot be read ({error.strerror})", passing=True)


def _seen(found: Found, status: os.stat_result, tag: str) -> SeenFile:
    seen_ns = time.time_ns()
    with open(found.path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    key, relative = shown(str(found.path)), shown(found.relative)
    return SeenFile(key, relative, status.st_size, status.st_mtime_ns, sha256, seen_ns, tag)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0

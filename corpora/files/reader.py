"""Files to contracts, as the rest of the program sees it: the parsing itself is done by a child that can be lost.

    with FileReader() as reader:
        for reading in reader.read(Path("contracts/acme.pdf")):
            reading.text, reading.places, reading.failure

No file can crash, hang or bloat the caller: whatever becomes of the child, the caller gets a reason and a new child. On
Windows, where a process cannot bound itself, only time is bounded.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corpora.files.child import Worker
from corpora.files.limits import FileError, FileLimits
from corpora.types import Place

_FILES_A_WORKER = 200


@dataclass(frozen=True, slots=True)
class Reading:
    """One contract found in a file, or why there is none: `failure` is None or the reason, `text` is then "".

    `members` are the names inside zips, from the outermost in; `title` is that of a CUADv1-format file's contract.
    `notes` say what was assumed, replaced or left out. `passing` marks failures of the disk rather than of the file.
    `share` is how much of the whole file, 0 to 1, has been read with this one.
    """

    members: tuple[str, ...] = ()
    title: str | None = None
    text: str = ""
    places: tuple[Place, ...] = ()
    notes: tuple[str, ...] = ()
    failure: str | None = None
    passing: bool = False
    share: float = 1.0


class FileReader:
    """Reads files one after another through one child, replaced when it is lost and after every 200 files.

    A context manager; not for several threads at once.
    """

    def __init__(self, limits: FileLimits | None = None) -> None:
        self.limits = limits or FileLimits()
        self._worker: Worker | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "FileReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child; the reader may be used again."""
        self._stop()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def read(self, path: Path) -> Iterator[Reading]:
        """All contracts of a file, failures among them, zips gone through to their depth; at least one Reading.

        Raises CorpusError only if no child can be started.
        """
        yield from self._read(path, (), _Budget(self.limits))

    def _read(self, path: Path, members: tuple[str, ...], budget: "_Budget") -> Iterator[Reading]:
        listing = None
        for reply in self._answers(path, members):
            if "zip" in reply:
                listing = reply["zip"]
            else:
                yield _reading(members, reply)
        if listing is not None:
            yield from self._read_zip(path, members, listing, budget)

    def _read_zip(
        self, path: Path, members: tuple[str, ...], listing: dict[str, Any], budget: "_Budget"
    ) -> Iterator[Reading]:
        try:
            budget.take(listing, len(members) + 1)
        except FileError as error:
            yield Reading(members, failure=str(error))
            return
        if not listing["members"] and not listing["refused"]:
            yield Reading(members, failure="there is no file in it")
        for name, reason in listing["refused"]:
            yield Reading((*members, name), failure=reason, share=0.0)
        total, done = max(1, sum(size for _, size in listing["members"])), 0
        for name, size in listing["members"]:
            for reading in self._read(path, (*members, name), budget):
                share = (done + size * reading.share) / total
                yield replace(reading, notes=(*listing["notes"], *reading.notes), share=share)
            done += size

    def _answers(self, path: Path, members: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """The worker's replies to one request; its loss is a reply too."""
        worker = self._ready()
        fresh = worker.n_files == 0
        for n_given, reply in enumerate(worker.ask(path, members)):
            if "memory" not in reply or fresh or n_given:
                yield reply
                continue
            # The heap of a used worker may have been in pieces before, and this file not be to blame.
            worker.kill()
            yield from self._ready().ask(path, members)
            return

    def _ready(self) -> Worker:
        if self._worker is not None and (not self._worker.alive or self._worker.n_files >= _FILES_A_WORKER):
            self._stop()
        if self._worker is None:
            if self._scratch is None:
                self._scratch = tempfile.TemporaryDirectory(prefix="evergreen-")
            self._worker = Worker(self._scratch.name, self.limits)
        return self._worker

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


@dataclass
class _Budget:
    """What is left for one outermost file: a zip full of zips is measured as a whole."""

    limits: FileLimits
    n_entries: int = field(default=0, init=False)
    n_bytes: int = field(default=0, init=False)

    def take(self, listing: dict[str, Any], depth: int) -> None:
        self.n_entries += len(listing["members"]) + len(listing["refused"])
        self.n_bytes += sum(size for _, size in listing["members"])
        if depth > self.limits.zip_depth:
            raise FileError(f"it is a zip inside {depth - 1} zips, and {self.limits.zip_depth} in all is the limit")
        if self.n_entries > self.limits.zip_entries:
            raise FileError(f"with its zips it has more than {self.limits.zip_entries:,} entries, the limit")
        if self.n_bytes > self.limits.zip_bytes:
            raise FileError(f"with its zips it unpacks to more than {self.limits.zip_bytes:,} bytes, the limit")


def _reading(members: tuple[str, ...], reply: dict[str, Any]) -> Reading:
    if "document" in reply:
        got = reply["document"]
        places = tuple(Place(*row) for row in got["places"])
        return Reading(members, None, got["text"], places, tuple(got["notes"]))
    if "contract" in reply:
        got = reply["contract"]
        return Reading(members, got["id"], got["text"], (), tuple(got["notes"]), share=got["share"])
    return Reading(members, reply.get("title"), failure=reply["failed"], passing=reply.get("passing", False))

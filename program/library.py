"""A library: an index of the contracts in a user's files, kept in step with them.

    report = index_paths(["contracts/"], "library")
    adopt("library", "runs/mine")    # the embedder that a run has tuned
    index = open_library("library")

A contract's id is made once and stays with its file: the file's path below the folder that was named, without its
ending (`2019/acme` for `contracts/2019/acme.pdf`, `acme` where the file itself was named); in a zip, the zip's and the
member's (`deals/2019/acme`); in a CUADv1-format file, the title. If that is taken, the path with its ending, then with
`~2`, `~3` ... behind it. When a file is pruned whose text another file has too, that one takes over the id.

The same text twice is one contract. A run may be killed at any moment: at the end of the next one the index holds what
the record (`library_record.py`) says, and nothing else. One run at a time; a second waits a minute and is refused.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from corpora.files.limits import FileLimits
from corpora.files.reader import FileReader
from corpora.files.walk import find_files
from modules.embedder import load_embedder
from modules.index_files import locked
from modules.retrieval_settings import write_settings
from modules.retriever import Embedder, PassageIndex, StoreError
from program.library_record import DUPLICATE, FAILED, FILE_NAME, INDEXED, Record
from program.library_report import IndexReport
from program.library_run import MISSING, PRUNED, REPLACED, UNCHANGED, LibraryRun
from program.run_retrieval import read_retrieval

__all__ = ["IndexReport", "adopt", "index_paths", "open_library"]

_LOCK = ".library.lock"
_BESIDE = "index-"
_MAX_CHARS = 600


def index_paths(
    paths: Iterable[Path | str],
    folder: Path | str,
    *,
    prune: bool = False,
    retry_failed: bool = False,
    max_chars: int | None = None,
    embedder: Embedder | str | None = None,
    limits: FileLimits | None = None,
    progress: bool = True,
) -> IndexReport:
    """Bring the library in `folder`, made if it is not there, into step with the files under `paths`.

    Read are txt, md, html, pdf, docx, CUADv1-format JSON, and zips of them; what cannot be read is listed with its
    reason and stops nothing. Unchanged files (size and time, else a hash of their bytes) are not read again, failures
    among them only with `retry_failed` or other `limits`. Contracts whose files are gone from under `paths` are named,
    or taken out with `prune`. `max_chars` bounds a passage (600, or what the library was made with); `embedder` is one,
    or the name of one, as `load_embedder` takes it. Raises CorpusError for a path that does not exist, and StoreError
    for a folder that holds something else, other settings than before, or another run that goes on for a minute.
    """
    began = time.monotonic()
    paths = [Path(os.path.abspath(path)) for path in paths]
    files = find_files(paths)
    folder = Path(folder).resolve()
    _check_folder(folder)
    with locked(folder, _LOCK):
        record = Record(folder, create=True)
        try:
            index = _open_index(record, folder, embedder, max_chars)
            files = [found for found in files if not found.path.resolve().is_relative_to(folder)]
            with FileReader(limits) as reader, tqdm(unit=" passages", desc="indexing", disable=not progress) as bar:
                run = LibraryRun(record, index, reader, bar.update)
                run.recover(thorough=record.setting("clean") != "yes")
                record.set("clean", "no")
                _read_all(run, run.look(files, retry_failed=retry_failed), bar)
                run.finish(paths, files, prune=prune)
                record.set("clean", "yes")
            return _report(folder, run, index, bar.n, time.monotonic() - began)
        finally:
            record.close()


def open_library(folder: Path | str, embedder: Embedder | str | None = None) -> PassageIndex:
    """The index of the library in `folder`, with the embedder it was made with unless one is given; StoreError."""
    folder = Path(folder).resolve()
    record = Record(folder, create=False)
    try:
        current = _current(record, folder)
    finally:
        record.close()
    return PassageIndex.open(current.index, _load(current.embedder if embedder is None else embedder))


def adopt(folder: Path | str, run: Path | str, *, progress: bool = True) -> int:
    """Let the library in `folder` retrieve as a run does, by its tuned embedder and numbers; how many passages that is.

    Its contracts are indexed anew in a folder of their own while the old index serves; then one write to the record
    swaps them, and who opens the library has the new one. Killed before that, nothing has changed. The index before
    stays until the next time, for processes that have it open. Raises StoreError and RunError.
    """
    folder, retrieval = Path(folder).resolve(), read_retrieval(Path(run))
    record = Record(folder, create=False)  # before the lock, which would be left in a folder that is no library
    try:
        with locked(folder, _LOCK):
            before = _current(record, folder)
            for stale in folder.glob(f"{_BESIDE}*"):
                if stale != before.index.parent:
                    shutil.rmtree(stale)
            home = folder / f"{_BESIDE}{uuid.uuid4().hex[:8]}"
            name = None
            if retrieval.embedder is not None:  # a copy: the run may be deleted
                shutil.copytree(retrieval.embedder, home / "embedder")
                name = str((home / "embedder").relative_to(folder))
            old = PassageIndex.open(before.index, _load(before.embedder))
            new = PassageIndex.build(
                (old.contract(key) for key in old.contract_ids),
                folder=home / "index", embedder=_load(_place(name, folder)), progress=progress, **retrieval.cut,
            )  # fmt: skip
            write_settings(new.folder, retrieval.settings)
            told = {"index": str(new.folder.relative_to(folder)), "embedder": name, "cut": retrieval.cut}
            record.set("current", json.dumps(told))
            return new.n_passages
    finally:
        record.close()


@dataclass(frozen=True, slots=True)
class _Current:
    """Where the index of a library stands, the name of its embedder, and its cut where it is not the default's."""

    index: Path
    embedder: str | None
    cut: dict[str, Any] | None


def _current(record: Record, folder: Path) -> _Current:
    adopted = record.setting("current")
    if adopted is None:
        return _Current(folder, record.setting("embedder") or None, None)
    told = json.loads(adopted)
    return _Current(folder / told["index"], _place(told["embedder"], folder), told["cut"])


def _place(name: str | None, folder: Path) -> str | None:
    """The name of an embedder, made whole where it stands in the library."""
    return str(folder / name) if name is not None and (folder / name).is_dir() else name


def _check_folder(folder: Path) -> None:
    """A folder of its own: whatever the record does not hold is taken out of the index, a run's contracts too."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / FILE_NAME).exists() and set(os.listdir(folder)) - {_LOCK}:
        raise StoreError(f"{folder} is not empty and holds no library. Name a new folder for it.")


def _open_index(record: Record, folder: Path, embedder: Embedder | str | None, max_chars: int | None) -> PassageIndex:
    current = _current(record, folder)
    if embedder is None:
        embedder = current.embedder
    if current.cut is not None:
        cut = current.cut if max_chars is None else {**current.cut, "max_chars": max_chars}
        return PassageIndex.build((), folder=current.index, embedder=_load(embedder), progress=False, **cut)
    known = record.setting("max_chars")
    if max_chars is None:
        max_chars = int(known) if known else _MAX_CHARS
    index = PassageIndex.build((), folder=folder, embedder=_load(embedder), max_chars=max_chars, progress=False)
    record.set("max_chars", str(max_chars))
    if record.setting("embedder") is None:
        record.set("embedder", embedder if isinstance(embedder, str) else "")
    return index


def _load(embedder: Embedder | str | None) -> Embedder:
    if embedder is None or isinstance(embedder, str):
        return load_embedder(embedder, device="cuda" if torch.cuda.is_available() else "cpu")
    return embedder


def _read_all(run: LibraryRun, n_bytes: int, bar: tqdm) -> None:
    """Read whatever is queued, and what is queued meanwhile; the bar's end is guessed from the share of bytes read."""
    while run.queue:
        before = bar.n
        run.read(run.queue.popleft())
        if not run.queue:
            run.flush()
        if bar.n > before and run.bytes_done:
            bar.total = max(bar.n, round(bar.n * n_bytes / run.bytes_done))
            bar.refresh()


def _report(folder: Path, run: LibraryRun, index: PassageIndex, n_embedded: int, seconds: float) -> IndexReport:
    def of(kind: str) -> tuple[str, ...]:
        return tuple(sorted(source for source, (outcome, _) in run.outcome.items() if outcome == kind))

    def pairs(kind: str) -> tuple[tuple[str, str], ...]:
        return tuple((source, run.outcome[source][1]) for source in of(kind))

    return IndexReport(
        folder=folder,
        indexed=of(INDEXED),
        replaced=of(REPLACED),
        unchanged=of(UNCHANGED),
        duplicates=pairs(DUPLICATE),
        missing=of(MISSING),
        pruned=of(PRUNED),
        failed=pairs(FAILED),
        notes=tuple(sorted(run.notes.items())),
        n_contracts=len(index.contract_ids),
        n_passages=index.n_passages,
        embedded_passages=n_embedded,
        seconds=seconds,
    )

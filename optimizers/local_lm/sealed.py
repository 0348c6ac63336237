"""Folders that appear whole or not at all, and tell when a file in them has changed since."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimizers.errors import ModelError
from optimizers.local_lm.weights import file_sha256

MARKER = "COMPLETE"


@contextmanager
def draft_beside(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` to write into; removed on leaving unless it was moved away."""
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def seal(folder: Path, told: dict[str, Any]) -> None:
    """Write COMPLETE: `told`, and the sha256 of every file below `folder`; all of it flushed to the disk."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MARKER)
    hashes = {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}
    (folder / MARKER).write_text(json.dumps({**told, "files": hashes}, indent=1))
    for file in [*files, folder / MARKER]:
        _sync(file)
    _sync(folder)


def check_seal(folder: Path) -> dict[str, Any]:
    """What `seal` was told. Raises ModelError if the folder is missing, unfinished, or a file in it has changed."""
    marker = folder / MARKER
    if not marker.is_file():
        why = "has no COMPLETE marker: its writing was cut short" if folder.is_dir() else "is not there"
        raise ModelError(f"{folder.name!r} {why}; make it again, or give the folder that holds it")
    told = json.loads(marker.read_text())
    for name, sha256 in told["files"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256:
            raise ModelError(f"{name} in {folder.name!r} is not the file that was written (sha256 differs); restore it")
    return told


def move_into_place(draft: Path, target: Path) -> None:
    """Put the sealed `draft` in `target`'s place: a reader finds the old folder, for an instant none, then the new."""
    old = None
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=target.parent)) / target.name
        os.replace(target, old)
    os.replace(draft, target)
    _sync(target.parent)
    if old is not None:
        shutil.rmtree(old.parent, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

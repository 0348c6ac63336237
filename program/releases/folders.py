"""Folders that appear whole and then stay as they are: copied or linked, synced, made read-only, removed."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from program.failpoints import reach


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bring(source: Path, target: Path, twin: Path | None, sha256: str | None) -> None:
    """Make `target` from `source`: a hard link to `twin` if that still has the hash `sha256`, a copy otherwise.

    `twin` is a file of another release, never of a run: a run's files are written in place by whoever opens it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if twin is not None:
        try:
            os.link(twin, target)
        except OSError:  # another device, no such thing here, too many links, gone meanwhile: the copy needs none of it
            pass
        else:
            if file_sha256(target) == sha256:
                return
            target.unlink()
    shutil.copyfile(source, target)


def sync_tree(folder: Path) -> None:
    """Flush every file below `folder`, and every folder, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def freeze(folder: Path) -> None:
    """Take the right to write from everything in `folder` and from itself."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)


def remove(folder: Path) -> None:
    """Remove a folder that may be read-only."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IRWXU)
    reach("release.collect.removing")
    shutil.rmtree(folder)


def twins(manifests: Iterable[tuple[Path, Mapping[str, Mapping[str, object]]]]) -> dict[str, Path]:
    """Where a file of each hash stands already, by (folder, its files) of the releases there are."""
    return {told["sha256"]: folder / name for folder, files in manifests for name, told in files.items()}

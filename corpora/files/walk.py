"""Which files the paths on a command line mean."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from corpora.errors import CorpusError


@dataclass(frozen=True, slots=True)
class Found:
    """A file, absolute, and its path as seen from the folder that was named (or its bare name, if it was named)."""

    path: Path
    relative: str


def require_paths(paths: Iterable[Path | str]) -> None:
    """Raise CorpusError for a path that does not exist."""
    for path in paths:
        if not Path(path).exists():
            raise CorpusError(f"there is no {path}; give files or folders that exist")


def find_files(paths: Iterable[Path | str]) -> list[Found]:
    """The files that are named, and those in the folders that are named, at any depth: sorted, each of them once.

    Hidden files and folders (a leading dot) are left out unless they are named; links to files are followed, links to
    folders are not. Raises CorpusError for a path that does not exist and for a folder that cannot be listed.
    """
    paths = list(paths)
    require_paths(paths)
    found: dict[Path, Found] = {}
    for given in paths:
        path = Path(os.path.abspath(given))
        for one in [Found(path, path.name)] if not path.is_dir() else _in_folder(path):
            found.setdefault(one.path, one)
    return sorted(found.values(), key=lambda one: one.path)


def shown(text: str) -> str:
    """A file's name as it can be stored and printed: bytes that are no characters, and control characters, escaped."""
    text = text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def _in_folder(folder: Path) -> Iterator[Found]:
    def refuse(error: OSError) -> None:
        raise CorpusError(f"the folder {error.filename} cannot be listed ({error.strerror})") from error

    for here, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(here, name)
                yield Found(path, path.relative_to(folder).as_posix())

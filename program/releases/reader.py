"""Releases read: any number of processes may, without a lock."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from program.releases import history
from program.releases.manifest import read_release, verify
from program.releases.pointer import POINTER, RELEASE_ID, number_of, read_pointer
from program.releases.types import Event, Release, ReleaseError, Served

log = logging.getLogger(__name__)


class ReleaseReader:
    """What of `ReleaseStore` needs no lock. All raise ReleaseError."""

    def __init__(self, root: Path, now: Callable[[], datetime]) -> None:
        """Use `open`."""
        self.root, self._now = root, now

    @classmethod
    def open(cls, root: str | Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Self:
        """The store in `root`, which the first release makes if it is not there; `now` is the clock."""
        root = Path(root).absolute()
        if root.exists() and not root.is_dir():
            raise ReleaseError(f"{root} is a file; give the folder that holds the releases")
        return cls(root, now)

    @staticmethod
    def is_root(path: Path) -> bool:
        """Whether `path` is a folder that holds releases."""
        return path.is_dir() and any(RELEASE_ID.fullmatch(each.name) or each.name == POINTER for each in path.iterdir())

    def live(self) -> Release | None:
        """The live release, None where none is; its files are not looked at."""
        while (name := read_pointer(self.root)) is not None:
            try:
                return self.get(name)
            except ReleaseError:
                if read_pointer(self.root) == name:  # else another was promoted and this one collected, just now
                    raise
        return None

    def get(self, release_id: str) -> Release:
        """The release of that id, or the only one whose id begins so ("0007")."""
        names = self.names()
        found = [name for name in names if release_id and name.startswith(release_id)]
        if len(found) != 1:
            what = f"{len(found)} releases begin with" if found else "there is no release"
            raise ReleaseError(
                f"{what} {release_id!r} in {self.root}; the newest there are {', '.join(names[-5:]) or 'none'}"
            )
        return read_release(self.root / found[0])

    def history(self) -> list[Event]:
        """Every promotion and rollback that was carried out, and what was to be collected, in order."""
        events = history.read_history(self.root)
        moves = history.carried_out(events, read_pointer(self.root))
        return [event for event in events if event.event == "collect" or event in moves]

    def verify(self, release_id: str) -> Release:
        """The release, after every one of its files was read; ReleaseError that names the first which has changed."""
        release = self.get(release_id)
        verify(release)
        return release

    def servable(self) -> tuple[Release, tuple[str, ...]] | None:
        """The release to serve, verified, and why each that should have come first is refused; None: nothing is live.

        That is the live one; where it is broken, which is logged, the one that a rollback would bring back.
        """
        refused: list[str] = []
        events = history.read_history(self.root)
        try:
            live = read_pointer(self.root)
            names = history.lives(history.carried_out(events, live))
            names = [live, *(name for name in names if name != live)] if live else names
            if names and live is None:
                refused.append(f"{self.root / POINTER} is gone, and the history has {names[0]}; promote one")
        except ReleaseError as error:  # the history knows, too
            refused.append(str(error))
            names = history.lives(history.moves_of(events))
        for name in names:
            try:
                release = self.verify(name)
            except ReleaseError as error:
                refused.append(str(error))
                continue
            for why in refused:
                log.warning("release %s is served instead: %s", release.id, why)
            return release, tuple(refused)
        if refused:
            raise ReleaseError(f"{self.root}: nothing that was live is whole. {' '.join(refused)}")
        return None

    @contextmanager
    def open_live(self) -> Iterator[Served]:
        """The program of `servable()`, open for the block on a copy of its vectors; errors as of `open_run`."""
        from program.evaluate_run import open_run

        found = self.servable()
        if found is None:
            raise ReleaseError(f"no release in {self.root} is live; promote one first")
        release, refused = found
        with open_run(release.path) as program:
            yield Served(program, release, refused)

    def names(self) -> list[str]:
        """The ids of all releases, broken ones too, in the order they were made."""
        found = [each.name for each in self.root.iterdir()] if self.root.is_dir() else []
        return sorted((name for name in found if RELEASE_ID.fullmatch(name)), key=lambda name: (number_of(name), name))

    def list(self) -> list[Release]:  # last: it hides the built-in one from annotations below it
        """All releases in the order they were made; one whose manifest cannot be read is logged and left out."""
        found = []
        for name in self.names():
            try:
                found.append(read_release(self.root / name))
            except ReleaseError as error:
                if (self.root / name).is_dir():  # else it was collected just now
                    log.warning("%s", error)
        return found

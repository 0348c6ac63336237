"""A folder of releases, and the pointer to the one that is live.

    releases/  0007-3fa9c1d2/   a complete run, read-only, and manifest.json, MODEL_CARD.md, DATA_CARD.md
               LIVE             one line: the id of the live release
               history.jsonl    what was made live, by whom and why
               .lock            held by whoever writes; reading takes no lock

Killed at any moment, a writer leaves the pointer and every listed release whole; what it had begun is removed or
written off by the next one. Files that releases share are hard links where the file system has them, but for
`program/`: damaged prompts or adapters damage one release alone. Ids count on (0001, 0002 ...), none is given twice.

Not handled: a run that is written to while it is added, Windows, and network file systems without atomic renames.
"""

import getpass
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from program.failpoints import reach
from program.releases import folders, history
from program.releases.collecting import unneeded
from program.releases.draft import content_of, write_draft
from program.releases.pointer import move_pointer, number_of, read_pointer
from program.releases.reader import ReleaseReader
from program.releases.types import Event, Release, ReleaseError
from program.releases.writing import DRAFT, GONE, note, writing

log = logging.getLogger(__name__)

Allow = Callable[[Release, Release | None], bool]
# Of the live release and those before it, newest first, the one to make live.
Pick = Callable[[list[str]], Release]


class ReleaseStore(ReleaseReader):
    """The releases in one folder; any number of processes may read, one writes at a time. All raise ReleaseError."""

    def add(
        self,
        run: str | Path,
        *,
        parents: Sequence[str] = (),
        lineage: Mapping[str, Any] | None = None,
        scores: Mapping[str, Any] | None = None,
        decision: str | None = None,
    ) -> Release:
        """Make a release of a complete compile run; the run stays as it is, and may be deleted afterwards.

        `parents` are the releases it was compiled from; `lineage` and `scores` are added to what data.json and
        summary.json of the run say; `decision` is the id of the gate's. A run that is here already, by its content,
        gives the release that it is, unchanged, whatever else is told.
        """
        run = Path(run).absolute()
        content = content_of(run)
        with writing(self.root, f"make a release of {run}", self._now):
            told = {"parents": [self.get(parent).id for parent in parents], "decision": decision}
            if known := self._whole_of(content.sha256):
                return known
            told |= {"id": f"{self._next_number():04d}-{content.sha256[:8]}"}
            told |= {"created": self._now().isoformat(timespec="seconds")}
            draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=self.root))
            try:
                write_draft(draft, run, content, told, self.list(), lineage=lineage, scores=scores)
                os.rename(draft, self.root / told["id"])
            except BaseException:
                with suppress(OSError):  # the next writer removes it; the first error is the one to tell
                    folders.remove(draft)
                raise
            reach("release.add.moved")
            folders.sync(self.root)
            folders.freeze(self.root / told["id"])
            reach("release.add.frozen")
        return self.get(told["id"])

    def promote(
        self,
        release_id: str,
        reason: str,
        *,
        decision: str | None = None,
        by: str | None = None,
        allow: Allow | None = None,
    ) -> Release:
        """Verify a release and make it the live one; once this returns, that outlives a power cut.

        `allow(candidate, live)` is asked just before, while nobody else can write, and False refuses; `live` is None
        where nothing is, or its manifest is damaged. What is live already stays so, without another row in the
        history. `by` is who (default: the user's name).
        """

        def pick(_: list[str]) -> Release:
            release = self.verify(release_id)
            if allow is not None and not allow(release, self._readable_live()):
                raise ReleaseError(
                    f"release {release.id} was not promoted: what was asked before the pointer moved says no"
                )
            return release

        return self._move("promote", pick, reason, decision, by)

    def rollback(
        self, to: str | None = None, reason: str = "", *, decision: str | None = None, by: str | None = None
    ) -> Release:
        """Make the release live again that was so before, or the one named; it is verified first.

        Without `to`, one that is broken or gone is passed over with a warning; a second rollback goes further back, so
        name it where a kill may make you do it again: what is live already stays so.
        """
        pick = self._earlier if to is None else lambda _: self.verify(to)
        return self._move("rollback", pick, reason, decision, by)

    def collect(self, keep: int = 5, *, younger_s: float = 30 * 86_400.0) -> list[str]:
        """Remove releases that nobody needs, and say which.

        Kept are the live one, what `keep` rollbacks would bring back, the ancestors of all these, and whatever is
        younger than `younger_s` (or dated in the future: a clock that is wrong removes nothing).
        """
        if keep < 1 or younger_s < 0:
            raise ReleaseError(f"keep is {keep} and younger_s {younger_s}; keep 1 or more, for 0 s or more")
        with writing(self.root, "remove old releases", self._now):
            live = read_pointer(self.root)
            lives = history.lives(history.carried_out(history.read_history(self.root), live))
            old = unneeded(self.list(), live, lives[: keep + 1], self._now() - timedelta(seconds=younger_s))
            if old:
                note(self.root, Event(0, "collect", reason=f"keep {keep}", by=_user(), ids=tuple(old)), self._now)
                reach("release.collect.noted")
            for name in old:
                gone = self.root / f"{GONE}{name}"
                os.rename(self.root / name, gone)
                folders.sync(self.root)
                reach("release.collect.hidden")
                folders.remove(gone)
                reach("release.collect.removed")
        return old

    def _move(self, event: str, pick: Pick, reason: str, decision: str | None, by: str | None) -> Release:
        if not reason.strip():
            raise ReleaseError(f"no reason is given for the {event}; say why, it is what the history is for")
        with writing(self.root, event, self._now):
            live = read_pointer(self.root)
            release = pick(history.lives(history.carried_out(history.read_history(self.root), live)))
            reach(f"release.{event}.verified")
            if release.id != live:
                told = Event(0, event, release.id, live, reason, _user() if by is None else by, decision=decision)
                note(self.root, told, self._now)
                reach(f"release.{event}.noted")
                move_pointer(self.root, release.id, event)
        return release

    def _earlier(self, lives: list[str]) -> Release:
        for name in lives[1:]:
            try:
                return self.verify(name)
            except ReleaseError as error:
                log.warning("passed over: %s", error)
        raise ReleaseError(f"{self.root}: nothing whole was live before {lives[0] if lives else 'now'}; name a release")

    def _readable_live(self) -> Release | None:
        try:
            return self.live()
        except ReleaseError as error:
            log.warning("%s", error)
            return None

    def _whole_of(self, content: str) -> Release | None:
        for release in self.list():
            if release.manifest["content"] == content:
                with suppress(ReleaseError):  # a broken one is not what is asked for: a whole one is made beside it
                    return self.verify(release.id)
        return None

    def _next_number(self) -> int:
        # Of those collected too: an id in the history means one release for ever.
        noted = [name for event in history.read_history(self.root) for name in (event.id, *event.ids) if name]
        return 1 + max(map(number_of, [*self.names(), *noted]), default=0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"

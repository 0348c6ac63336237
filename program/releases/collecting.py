"""Which releases nobody needs any more."""

from collections.abc import Sequence
from datetime import datetime

from program.releases.types import Release


def unneeded(releases: Sequence[Release], live: str | None, kept: Sequence[str], since: datetime) -> list[str]:
    """The ids of releases that are neither live, nor `kept`, nor made after `since`, nor ancestors of one of these."""
    known = {release.id: release for release in releases}
    young = [release.id for release in releases if datetime.fromisoformat(release.created) > since]
    waiting = [*([live] if live else []), *kept, *young]
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += known[name].parents if name in known else ()
    return [name for name in known if name not in needed]

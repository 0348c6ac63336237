"""What a check of `evergreen doctor` says: frozen data.

Finding(level="warning", what="disk", why="6.1 GB are free", remedy="free some: a renewal needs room for a run")
"""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` was looked at, `why` it is of that level, and what to do (`remedy`, "" where all is well)."""

    level: Level
    what: str
    why: str
    remedy: str = ""


def well(what: str, why: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", what, why)


def odd(what: str, why: str, remedy: str) -> Finding:
    """It works, and will not for long, or not as well as it could."""
    return Finding("warning", what, why, remedy)


def wrong(what: str, why: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding("error", what, why, remedy)

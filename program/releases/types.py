"""The nouns of releases.

Release(id="0007-3fa9c1d2", path=Path("releases/0007-3fa9c1d2"), parents=("0006-9be01f44",),
        created="2031-05-04T09:12:55+00:00", manifest={...})
Event(number=12, event="promote", id="0007-3fa9c1d2", before="0006-9be01f44", reason="gain +2.1 [+0.4, +3.9]",
      by="ada", at="2031-05-04T09:13:02+00:00", decision="2031-05-04", ids=())
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
CARDS = ("MODEL_CARD.md", "DATA_CARD.md")


class ReleaseError(RuntimeError):
    """A release is absent, broken, refused, or cannot be written; the message says which, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release as its manifest tells it (`program/releases/manifest.py`); `created` is UTC and orders nothing."""

    id: str
    path: Path
    parents: tuple[str, ...]
    created: str
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the history: `event` is promote, rollback, collect (of `ids`) or undone (it was never carried out).

    `number` counts from 1 and orders events, whatever the clock `at` says; `before` is what was live until then.
    """

    number: int
    event: str
    id: str = ""
    before: str | None = None
    reason: str = ""
    by: str = ""
    at: str = ""
    decision: str | None = None
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Served:
    """An open release: its program, which release that is, and why each one that should have come first was refused."""

    program: Any
    release: Release
    refused: tuple[str, ...] = ()

"""Which release answers silently now: one small file in the folder of the pairs, which serving looks at.

    home/shadow/NOW.json   {"release": "0002-3fa9c1d2", "beside": "0001-9be01f44", "since": "2031-05-04T09:13:02+00:00",
                            "share": 1.0}

Written beside and replaced, so that whoever looks finds the old line or the new one. It holds only beside the release
that it names: after a promotion or a rollback by hand nobody is asked silently any more.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from program.runs import write_json

FILE_NAME = "NOW.json"


@dataclass(frozen=True, slots=True)
class InShadow:
    """`release` is asked a `share` of what the live release `beside` is asked, since then (ISO 8601, UTC)."""

    release: str
    beside: str
    since: str
    share: float = 1.0


def put_in_shadow(folder: Path, told: InShadow) -> None:
    """Let serving ask that release silently; the same again changes nothing."""
    if read_shadow(folder) != told:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE_NAME, asdict(told))


def read_shadow(folder: Path) -> InShadow | None:
    """What answers silently now; None where nothing does, or the file says something else: then serving asks nobody."""
    try:
        return InShadow(**json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def end_shadow(folder: Path, release: str) -> None:
    """Let serving ask that release no more; another's shadow is left alone."""
    told = read_shadow(folder)
    if told is not None and told.release == release:
        (folder / FILE_NAME).unlink(missing_ok=True)

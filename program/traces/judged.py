"""What a judge said of answers that were served: a JSON line each beside the traces, added once and never changed.

One real line:

    {"trace": "0b6e...", "release": "0003-3fa9c1d2", "judge": "9f3c21d0aa41b7e2", "score": 0.93, "why": "",
     "at": "2031-05-04T09:13:02+00:00"}

No words of answers are kept here. Not handled: taking out the lines of traces that are too old for their store.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from program.feedback.tables import for_its_owner


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer by its trace, and the judge's score for it in [0, 1]; None where the verdict could not be read: `why`.

    `judge` is the identity of the judge (program/judging/trust.py); scores of two of them are not to be compared.
    """

    trace: str
    release: str
    judge: str
    score: float | None
    at: str
    why: str = ""


def add_judged(path: Path, judged: Iterable[Judged]) -> None:
    """Append a line for each, in one write, from a new line on: the one before may be torn by a kill. StoreError."""
    lines = "".join("\n" + json.dumps(asdict(one), allow_nan=False) + "\n" for one in judged)
    if lines:
        with for_its_owner(path).open("ab", buffering=0) as file:
            file.write(lines.encode())


def read_judged(path: Path) -> list[Judged]:
    """All that were judged, in order; [] where there is no file. A torn line is passed over: it is judged again."""
    if not path.is_file():
        return []
    found: dict[str, Judged] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            one = Judged(**json.loads(line)) if line else None
        except (ValueError, TypeError):
            continue
        if one is not None:
            found.setdefault(one.trace, one)
    return list(found.values())

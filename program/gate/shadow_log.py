"""Pairs of shadow mode on disk, a JSON line each; what a killed server left half written is passed over.

One real line: {"question": "Which law governs?", "contract_id": "acme-2019", "live": {"answer": "Ohio", "found": true,
"quotes": [["Ohio", "acme-2019", 5120, 5124]], "passages": [], "seconds": 0.8, "error": null}, "candidate": {...},
"beside": "0001-9be01f44"}

Passages are kept by their places alone. Questions and answers are kept as they are: who wants hashes runs no shadow.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from corpora.types import Passage, Quote
from program.gate.shadow import ShadowAnswer, ShadowPair


def recorder(path: Path, beside: str = "") -> Callable[[ShadowPair], None]:
    """A function that appends a pair to the file, which is made, readable by its owner alone.

    `beside` is the release whose answers are the live ones. Several processes may write to one file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)

    def record(pair: ShadowPair) -> None:
        told = {"question": pair.question, "contract_id": pair.contract_id}
        row = told | {"live": _row(pair.live), "candidate": _row(pair.candidate), "beside": beside}
        # From a new line on: the one before may be torn. An empty line is none. In one write, unbuffered: two servers'
        # lines must not run into each other.
        with path.open("ab", buffering=0) as file:
            file.write(("\n" + json.dumps(row) + "\n").encode())

    return record


def read_pairs(path: Path, texts: Mapping[str, str], beside: str | None = None) -> list[ShadowPair]:
    """The pairs in the file, none where there is no file; `texts` are the contracts that passages are read from.

    With `beside` only those in which that release was the live one.
    """
    if not path.is_file():
        return []
    pairs = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line) if line else None
        except ValueError:  # torn by a kill
            continue
        said_beside = None if row is None else row.pop("beside", "")
        if row is not None and beside in (None, said_beside):
            sides = {name: _answer(row.pop(name), texts) for name in ("live", "candidate")}
            pairs.append(ShadowPair(**row, **sides))
    return pairs


def _row(said: ShadowAnswer) -> dict[str, Any]:
    return {
        "answer": said.answer, "found": said.found, "seconds": said.seconds, "error": said.error,
        "quotes": [(quote.text, quote.contract_id, quote.start, quote.end) for quote in said.quotes],
        "passages": [(one.id, one.contract_id, one.start, one.end) for one in said.passages],
    }  # fmt: skip


def _answer(row: dict[str, Any], texts: Mapping[str, str]) -> ShadowAnswer:
    passages = tuple(
        Passage(key, contract_id, start, end, texts[contract_id][start:end])
        for key, contract_id, start, end in row["passages"] if contract_id in texts
    )  # fmt: skip
    return ShadowAnswer(**row | {"quotes": tuple(Quote(*quote) for quote in row["quotes"]), "passages": passages})

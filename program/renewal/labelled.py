"""People's labels as a renewal takes them: those that are new, and those that made a candidate worse, which wait.

    home/quarantine.json   {"9f3c...": {"contract": "acme-2019", "renewal": "0009", "why": "gain -8.1 [-11.0, -5.2]"}}

A labelled contract is known by a hash of its text and its labels, so that one whose labels are mended is another. What
is in quarantine is trained on again once somebody takes it out of the file.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from corpora.cuad import read_cuad, write_cuad
from corpora.splits import subset
from corpora.types import Corpus
from program.gate.types import Decision
from program.runs import write_json

FILE_NAME = "quarantine.json"


def hashes_of_labelled(corpus: Corpus) -> dict[str, str]:
    """Contract id -> SHA-256 of its text and labels."""
    texts = {contract.id: sha256(contract.text.encode()) for contract in corpus.contracts}
    for label in corpus.labels:
        told = [label.question.text, label.answer, [(span.start, span.end) for span in label.spans]]
        texts[label.question.contract_id].update(json.dumps(told).encode())
    return {name: one.hexdigest() for name, one in texts.items()}


def read_quarantine(home: Path) -> dict[str, dict[str, Any]]:
    """What waits, by hash; empty where nothing does."""
    path = home / FILE_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_trusted(corpus: str | Path, home: Path) -> Corpus:
    """The labelled contracts but for those in quarantine. CorpusError."""
    read, waiting = read_cuad(corpus), read_quarantine(home)
    if not waiting:
        return read
    hashes = hashes_of_labelled(read)
    return subset(read, [contract.id for contract in read.contracts if hashes[contract.id] not in waiting])


def snapshot(corpus: str | Path, home: Path, target: Path) -> dict[str, str]:
    """Write what `read_trusted` reads to `target`, as a CUADv1-format file; its hashes by contract."""
    trusted = read_trusted(corpus, home)
    write_cuad(trusted, target)
    return hashes_of_labelled(trusted)


def count_new(corpus: Corpus, known: Iterable[str]) -> int:
    """How many labelled questions are about contracts whose hash is not among `known`."""
    hashes, known = hashes_of_labelled(corpus), frozenset(known)
    return sum(hashes[label.question.contract_id] not in known for label in corpus.labels)


def harm(decision: Decision) -> str:
    """What the candidate is shown to have lost, in words: the whole interval of its gain, or a skill's, is below 0."""
    lost = [
        check for check in decision.checks
        if check.name in ("gain", "skill") and check.high is not None and check.high < 0
    ]  # fmt: skip
    return "; ".join(f"{check.about or check.name}: {check.why}" for check in lost)


def set_apart(home: Path, labelled: Mapping[str, str], trusted: Iterable[str], renewal: str, why: str) -> list[str]:
    """Put the labelled contracts whose hash is not among `trusted` into quarantine; their ids."""
    waiting, trusted = read_quarantine(home), frozenset(trusted)
    new = {name: one for name, one in labelled.items() if one not in trusted}
    waiting |= {one: {"contract": name, "renewal": renewal, "why": why} for name, one in new.items()}
    write_json(home / FILE_NAME, waiting)
    return sorted(new)

"""Every skill a release was ever trained for, with a frozen test set and its score at the time, as a JSON folder.

    <suite>/Governing-Law-1b2c3d/  skill.json  (name, release, score, marks by question, hashes)
                                   test.json   (contracts and labels in CUAD's format, or an ability's items)

One real skill.json: {"name": "house juniper", "kind": "review", "release": "2026-03-r4", "labelled_by": "person",
"test_sha256": "9f…", "question_ids": ["juniper-2019-7-00003__Insurance", …], "score": 0.81, "marks": {…: 1.0}, …}
Not handled: two processes that add at the same time (the later is refused, nothing is mixed).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from corpora.cuad import read_cuad, write_cuad
from corpora.types import Corpus
from modules.index_files import StoreError
from program.runs import write_json

KINDS = ("review", "ability")
LABELLED_BY = ("person", "generator")


@dataclass(frozen=True, slots=True)
class Mark:
    """What became of one question: `right` from 0 to 1; of a review also `abstained` and the answer's `n_words`."""

    skill: str
    question_id: str
    contract_id: str
    right: float
    abstained: bool | None = None
    n_words: int | None = None


@dataclass(frozen=True, slots=True)
class Skill:
    """A skill as it was when its release came out: `marks` are `right` by question id, `score` their mean."""

    name: str
    kind: str
    release: str
    labelled_by: str
    test_sha256: str
    question_ids: tuple[str, ...]
    contract_ids: tuple[str, ...]
    score: float
    marks: Mapping[str, float]


class SuiteStore:
    """The skills in a folder. What stands there is never changed: a skill is added once, and read back verified."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def add(self, name: str, corpus: Corpus, marks: Sequence[Mark], *, release: str, labelled_by: str) -> Skill:
        """Freeze a review skill: its labelled contracts and how the release did on them (all questions, each once).

        Raises StoreError for labels of a program, marks of other questions, or a skill that is there with another test.
        """
        if labelled_by not in LABELLED_BY:
            raise StoreError(
                f"skill {name!r} is labelled by {labelled_by!r}; a test set is labelled by one of {LABELLED_BY}, never "
                "by a program that is judged on it"
            )
        ids = [label.question.id for label in corpus.labels]
        return self._freeze(name, "review", ids, marks, release, labelled_by, lambda path: write_cuad(corpus, path))

    def add_ability(
        self, name: str, items: Sequence[Mapping[str, Any]], marks: Sequence[Mark], *, release: str
    ) -> Skill:
        """Freeze a general ability of the base: its items (abilities.py). Raises StoreError as `add`."""
        ids, told = [item["id"] for item in items], list(map(dict, items))
        return self._freeze(name, "ability", ids, marks, release, "generator", lambda path: write_json(path, told))

    def skills(self) -> tuple[Skill, ...]:
        """All skills by name, each with its test set verified. Raises StoreError for what was changed since."""
        found = [self._read(path) for path in sorted(self.folder.glob("*/skill.json"))]
        return tuple(sorted(found, key=lambda skill: skill.name))

    def corpus(self, skill: Skill) -> Corpus:
        """The contracts and labels of a review skill. Raises StoreError if they are not those that were frozen."""
        return replace(read_cuad(self._verified(skill)), name=skill.name)

    def items(self, skill: Skill) -> list[dict[str, Any]]:
        """The items of an ability. Raises StoreError as `corpus`."""
        return json.loads(self._verified(skill).read_text(encoding="utf-8"))

    def _freeze(self, name, kind, ids, marks, release, labelled_by, write) -> Skill:
        by_id = {mark.question_id: mark for mark in marks}
        if not ids or sorted(by_id) != sorted(ids) or len(marks) != len(ids):
            raise StoreError(
                f"skill {name!r} has {len(ids)} questions and {len(marks)} marks of {len(set(ids) & set(by_id))} of "
                "them; score each question once, failed calls again, before it is frozen"
            )
        place = self._place(name)
        place.mkdir(parents=True, exist_ok=True)
        beside = place / "test.json.new"
        write(beside)
        digest = _sha256(beside)
        if (place / "skill.json").exists():
            beside.unlink()
            known = self._read(place / "skill.json")
            if known.test_sha256 != digest:
                raise StoreError(
                    f"skill {name!r} is frozen since release {known.release!r} with another test set "
                    f"({known.test_sha256[:8]}, not {digest[:8]}); give the new one another name"
                )
            return known
        beside.replace(place / "test.json")
        skill = Skill(
            name, kind, release, labelled_by, digest, tuple(ids), tuple(by_id[i].contract_id for i in ids),
            fmean(mark.right for mark in marks), {i: float(by_id[i].right) for i in ids},
        )  # fmt: skip
        told = asdict(skill)
        write_json(place / "skill.json", told | {"sha256": _digest(told)})
        return skill

    def _read(self, path: Path) -> Skill:
        told = json.loads(path.read_text(encoding="utf-8"))
        sealed = told.pop("sha256", None)
        if sealed != _digest(told):
            raise StoreError(
                f"{path} is not as it was written; take it from a backup, or the score at the time is lost"
            )
        skill = Skill(**{key: tuple(value) if isinstance(value, list) else value for key, value in told.items()})
        self._verified(skill)
        return skill

    def _verified(self, skill: Skill) -> Path:
        path = self._place(skill.name) / "test.json"
        if not path.is_file() or (digest := _sha256(path)) != skill.test_sha256:
            found = digest[:8] if path.is_file() else "no file"
            raise StoreError(
                f"the test set of skill {skill.name!r} is not the frozen one ({found}, not {skill.test_sha256[:8]}): "
                f"scores on it cannot be compared with release {skill.release!r}; take {path} from a backup"
            )
        return path

    def _place(self, name: str) -> Path:
        told = hashlib.sha256(name.encode()).hexdigest()[:6]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')[:60]}-{told}"


def marks_of(skill: str, rows: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """Marks from score rows (program/evaluate.py); failed calls are left out, for the caller to count."""
    return [
        Mark(
            skill, row["question_id"], row["contract_id"], float(row["exact_match"]), not row["found"],
            len(row["answer"].split()) if row["found"] else None,
        )
        for row in rows if row["error"] is None
    ]  # fmt: skip


def marks_then(skill: Skill) -> list[Mark]:
    """The marks at the time, as they were frozen."""
    pairs = zip(skill.question_ids, skill.contract_ids, strict=True)
    return [Mark(skill.name, question, contract, skill.marks[question]) for question, contract in pairs]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(told: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(told))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

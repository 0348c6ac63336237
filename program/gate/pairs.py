"""The same questions on both sides: paired, failed calls left out of both, anything else refused."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from program.forgetting.skills import Mark, marks_of
from program.gate.types import Evidence, GateError, Row, Side
from program.runs import Run

_FROZEN = ("contract_id", "gold_answer", "gold_quotes")


@dataclass(frozen=True, slots=True)
class Pairs:
    """(incumbent, candidate) score rows of the same questions, by question id; how many calls failed on each side."""

    kept: tuple[tuple[Row, Row], ...]
    n_asked: int
    n_failed_incumbent: int
    n_failed_candidate: int

    @property
    def contracts(self) -> list[str]:
        """The contract of every pair."""
        return [old["contract_id"] for old, _ in self.kept]

    @property
    def failed_share(self) -> float:
        """The share of questions that no comparison can be made of."""
        return 1 - len(self.kept) / self.n_asked


def side_of(run: Run, stage: str, *, memory_bytes: int | None = None) -> Side:
    """One stage of a run as a side: "base" is what a first candidate is held against. GateError where it has no rows.

    Only for a run whose test contracts are the frozen ones; `run` is that of `read_run`.
    """
    rows = [row for row in run.rows if row["stage"] == stage]
    if not rows:
        stages = sorted({row["stage"] for row in run.rows})
        raise GateError(f"the run {run.path} has no stage {stage!r}; its stages are {stages}")
    return Side(f"{run.path.name}, {stage}", rows, memory_bytes)


def paired_rows(evidence: Evidence, score: str) -> Pairs:
    """Pairs of rows that neither side failed on. GateError for other questions, other gold, or rows without a score."""
    old, new = (_by_id(side.name, side.rows) for side in (evidence.incumbent, evidence.candidate))
    _same_questions("the test set", old, new)
    for question in old:
        if changed := [key for key in _FROZEN if old[question][key] != new[question][key]]:
            raise GateError(
                f"question {question!r} has another {changed[0]} for {evidence.candidate.name!r} than for "
                f"{evidence.incumbent.name!r}: the test set is not frozen; score both on the same one"
            )
    kept = tuple((old[i], new[i]) for i in sorted(old) if old[i]["error"] is None and new[i]["error"] is None)
    for name, rows in zip((evidence.incumbent.name, evidence.candidate.name), zip(*kept, strict=True), strict=False):
        for row in rows:
            _checked_score(name, row, score)
    n_failed = [sum(row["error"] is not None for row in side.values()) for side in (old, new)]
    return Pairs(kept, len(old), *n_failed)


def paired_marks(
    skill: str, then: Sequence[Row | Mark], now: Sequence[Row | Mark]
) -> tuple[list[Mark], list[Mark], int]:
    """Marks of the questions that both sides have, in one order, and how many questions one of them lacks.

    A question of the candidate's that the score at the time knows nothing of is a GateError.
    """
    if not then:
        raise GateError(f"skill {skill!r} has no questions; leave it out, or freeze its test set")
    old, new = _asked(skill, then), _asked(skill, now)
    if all(isinstance(one, Mark) for one in now):  # marks leave failed calls out
        new = dict.fromkeys(old) | new
    _same_questions(f"skill {skill!r}", old, new)
    common = [question for question in sorted(old) if old[question] and new[question]]
    return [old[i] for i in common], [new[i] for i in common], len(old) - len(common)


def _asked(skill: str, rows: Sequence[Row | Mark]) -> dict[str, Mark | None]:
    if not all(isinstance(row, Mark) for row in rows):
        by_id = _by_id(skill, rows)
        return dict.fromkeys(by_id) | {mark.question_id: mark for mark in marks_of(skill, list(by_id.values()))}
    asked = {mark.question_id: mark for mark in rows}
    if len(asked) != len(rows):
        raise GateError(f"skill {skill!r} has {len(rows)} marks of {len(asked)} questions; score each once")
    return asked


def _by_id(name: str, rows: Sequence[Row]) -> dict[str, Row]:
    by_id = {row["question_id"]: row for row in rows}
    if not rows or len(by_id) != len(rows):
        raise GateError(f"{name!r} has {len(rows)} score rows of {len(by_id)} questions; score each question once")
    return by_id


def _same_questions(what: str, old: Mapping[str, object], new: Mapping[str, object]) -> None:
    if other := sorted(old.keys() ^ new.keys()):
        raise GateError(
            f"{what}: {len(other)} questions were put to one side only (the first: {other[0]!r}); score incumbent "
            "and candidate on the same frozen questions"
        )


def _checked_score(name: str, row: Row, score: str) -> None:
    value = row.get(score)
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise GateError(
            f"{name!r} has {score}={value!r} for question {row['question_id']!r}, which did not fail; a score is 0 to 1"
        )

"""From marks round by round to the matrix of skill by round and what it says of forgetting, each with its interval.

R[i, j] is the score on skill j after round i; skill j was learnt in round `learnt[j]` (0: known before the first). All
intervals come of one bootstrap over contracts (program/intervals.py). Forgetting takes a maximum over rounds, so noise
alone makes it positive: read it beside backward transfer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from program.forgetting.skills import Mark
from program.intervals import mean_interval, paired_interval, ratio_interval

Rounds = Sequence[Sequence[Mark]]


def average_accuracy(r: np.ndarray) -> np.ndarray:
    """ACC = mean_j R[T, j] of R (..., T+1, S), Lopez-Paz & Ranzato 2017 (arXiv:1706.08840), eq. 2."""
    return r[..., -1, :].mean(-1)


def backward_transfer(r: np.ndarray, learnt: Sequence[int]) -> np.ndarray:
    """BWT = mean over skills learnt before the last round of R[T, j] - R[learnt[j], j], ibid. eq. 3; nan for none."""
    earlier = [(j, i) for j, i in enumerate(learnt) if i < r.shape[-2] - 1]
    if not earlier:
        return np.full(r.shape[:-2], np.nan)
    return np.mean([r[..., -1, j] - r[..., i, j] for j, i in earlier], axis=0)


def forgetting(r: np.ndarray, learnt: Sequence[int]) -> np.ndarray:
    """F = mean over the same skills of max_{learnt[j] <= l < T} R[l, j] - R[T, j].

    Chaudhry et al. 2018 (arXiv:1801.10112), eq. 3; nan for none.
    """
    earlier = [(j, i) for j, i in enumerate(learnt) if i < r.shape[-2] - 1]
    if not earlier:
        return np.full(r.shape[:-2], np.nan)
    return np.mean([r[..., i:-1, j].max(-1) - r[..., -1, j] for j, i in earlier], axis=0)


def forgetting_figures(
    rounds: Rounds,
    learnt: Mapping[str, int],
    *,
    abilities: Sequence[str] = (),
    margin: float = 0.02,
    kl: Sequence[tuple[float, str]] | None = None,
    then: Mapping[str, Sequence[Mark]] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
) -> dict[str, Any]:
    """All figures of a candidate, the last of `rounds` (0: before any training); JSON-able, nan as None.

    `learnt`: the round in which each skill was learnt, in the order of the columns; `abilities` among them are in the
    matrix and are compared, but are no part of the averages. `kl`: nats per token from the base on the new task's
    answers, with their contracts. `then`: frozen marks to compare with, in the place of those of the round. Questions
    that a round has no mark of (failed calls) are left out of all rounds and counted. Raises ValueError for a round
    beyond those given, or a skill without any mark.
    """
    skills = list(learnt)
    if late := [name for name in skills if not 0 <= learnt[name] < len(rounds)]:
        raise ValueError(f"skills {late} were learnt in rounds {[learnt[n] for n in late]} of {len(rounds)} given")
    counts, clusters, n_left_out = _counts(rounds, skills)
    n, s = len(rounds), len(skills)
    reviewed = [j for j, name in enumerate(skills) if name not in set(abilities)]
    of = [learnt[skills[j]] for j in reviewed]

    def interval(statistic: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        def over(sums: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore", divide="ignore"):  # a resample may lack a skill: nan, and left out
                return statistic(sums[..., : n * s].reshape(*sums.shape[:-1], n, s) / sums[..., None, n * s :])

        return _plain(ratio_interval(counts, clusters, over, level=level, resamples=resamples))

    cell = lambda i, j: interval(lambda r: r[..., i, j])  # noqa: E731
    return {
        "skills": skills,
        "abilities": list(abilities),
        "learnt": dict(learnt),
        "n_rounds": n,
        "matrix": [[cell(i, j) for j in range(s)] for i in range(n)],
        "average_accuracy": interval(lambda r: average_accuracy(r[..., reviewed])),
        "backward_transfer": interval(lambda r: backward_transfer(r[..., reviewed], of)),
        "forgetting": interval(lambda r: forgetting(r[..., reviewed], of)),
        "non_inferiority": [_compared(name, rounds, learnt[name], margin, level, then) for name in skills],
        "margin": margin,
        "kl": None if not kl else _plain(mean_interval([v for v, _ in kl], [c for _, c in kl], level=level)),
        "abstention": [_mean(marks, lambda mark: mark.abstained, level) for marks in rounds],
        "answer_words": [_mean(marks, lambda mark: mark.n_words, level) for marks in rounds],
        "n_left_out": n_left_out,
    }


def _counts(rounds: Rounds, skills: Sequence[str]) -> tuple[np.ndarray, list[str], int]:
    """A row a question: its marks at (round, skill), and a 1 at its skill; the questions' contracts; those left out."""
    by_round = [{(mark.skill, mark.question_id): mark for mark in marks} for marks in rounds]
    every = [key for key in dict.fromkeys(key for marks in by_round for key in marks) if key[0] in skills]
    common = [key for key in every if all(key in marks for marks in by_round)]
    if missing := [name for name in skills if not any(key[0] == name for key in common)]:
        raise ValueError(f"no question of {missing} has a mark in every round; score all rounds on the same questions")
    n, s = len(rounds), len(skills)
    counts = np.zeros((len(common), (n + 1) * s))
    for row, key in zip(counts, common, strict=True):
        j = skills.index(key[0])
        row[n * s + j] = 1
        for i, marks in enumerate(by_round):
            row[i * s + j] = marks[key].right
    return counts, [by_round[0][key].contract_id for key in common], len(every) - len(common)


def _compared(
    name: str, rounds: Rounds, learnt: int, margin: float, level: float, then: Mapping[str, Sequence[Mark]] | None
) -> dict[str, Any]:
    """Candidate minus the score at the time; `kept` if the lower bound is above -margin, None where it is not known."""
    before = then[name] if then and name in then else rounds[learnt]
    old = {mark.question_id: mark for mark in before if mark.skill == name}
    new = {mark.question_id: mark for mark in rounds[-1] if mark.skill == name}
    ids = [question for question in old if question in new]
    if not ids:
        raise ValueError(f"skill {name!r}: the candidate and the score at the time have no question in common")
    pair = ([marks[i].right for i in ids] for marks in (old, new))
    told = asdict(paired_interval(*pair, [old[i].contract_id for i in ids], level=level))
    low = told["low"]
    kept = None if math.isnan(low) else bool(low > -margin)
    return {"skill": name, "learnt": learnt, "kept": kept, **_none(told)}


def _mean(marks: Sequence[Mark], of: Callable[[Mark], Any], level: float) -> dict[str, Any] | None:
    told = [(float(value), mark.contract_id) for mark in marks if (value := of(mark)) is not None]
    return _plain(mean_interval([v for v, _ in told], [c for _, c in told], level=level)) if told else None


def _plain(interval: Any) -> dict[str, Any]:
    return _none(asdict(interval))


def _none(told: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in told.items()}

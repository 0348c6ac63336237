"""What a judge must have shown before anything is trained on what it says."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import dspy

from modules.judge import Candidate, Case, Grade, Judge, JudgeError, Verdict

MIN_KAPPA = 0.7
MIN_PAIRS = 50
MIN_DEGENERATE = 200
MAX_UNREADABLE = 0.2


class TrustedJudge:
    """A judge with the report that speaks for it; JudgeError where the report does not, or is another judge's.

    `noise` is the test-retest noise of its margins, None where none was measured.
    """

    def __init__(self, judge: Judge, report: Mapping[str, Any], min_kappa: float = MIN_KAPPA) -> None:
        check_judge(report, min_kappa)
        if report["judge"]["identity"] != judge_identity(judge):
            raise JudgeError(
                f"the report is that of {report['judge']['name']!r}, measured with other prompts, weights or "
                "thresholds than this judge has; measure this one (`evergreen judge`)"
            )
        self.judge, self.report = judge, report
        self.noise: float | None = report["retest"]["noise"]

    def grade(self, case: Case, candidate: Candidate) -> Grade:
        """The judge's grade."""
        return self.judge.grade(case, candidate)

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict:
        """The judge's verdict."""
        return self.judge.compare(case, a, b)


def check_judge(report: Mapping[str, Any], min_kappa: float = MIN_KAPPA) -> None:
    """JudgeError unless the judge of a `judge_report` may train something.

    Its kappa with gold must be at least `min_kappa` on at least 50 pairs, at most a fifth of its verdicts unreadable,
    and no degenerate answer of at least 200 may have won.
    """
    name, gold, bad = report["judge"]["name"], report["gold"], report["degenerate"]["guarded"]
    todo = "it may train nothing; take another judge or LM, compile its prompt (compile_judge), or judge by people"
    if gold["n"] < MIN_PAIRS or gold["kappa"] is None:
        raise JudgeError(f"{name}: measured on {gold['n']} pairs with gold, {MIN_PAIRS} are needed; measure it on more")
    if gold["n_unreadable"] > MAX_UNREADABLE * (gold["n"] + gold["n_unreadable"]):
        raise JudgeError(
            f"{name}: {gold['n_unreadable']} of {gold['n'] + gold['n_unreadable']} verdicts cannot be read (limit "
            f"{MAX_UNREADABLE:.0%}); {todo}"
        )
    kappa = gold["kappa"]
    if not kappa["mean"] >= min_kappa:
        interval = "" if kappa["low"] is None else f" [95% {kappa['low']:.2f}, {kappa['high']:.2f}]"
        raise JudgeError(
            f"{name}: kappa with gold is {kappa['mean']:.2f}{interval} on {gold['n']} pairs, below the {min_kappa:.2f} "
            f"that is asked; {todo}"
        )
    if bad["wins"]:
        raise JudgeError(
            f"{name}: {bad['wins']} of {bad['n']} degenerate answers won, and none may; the guard does not know them: "
            "add a rule to modules/degenerate.py, or take another judge"
        )
    if bad["n"] < MIN_DEGENERATE:
        raise JudgeError(f"{name}: measured on {bad['n']} degenerate answers, {MIN_DEGENERATE} are needed")


def judge_identity(judge: Any) -> str:
    """A hash of what a judge's verdicts rest on: its kind, instructions, demonstrations, LMs and thresholds."""
    return hashlib.sha256(json.dumps(_described(judge), sort_keys=True, default=str).encode()).hexdigest()[:16]


def judge_name(judge: Any) -> str:
    """Its kind with the LMs it asks, as `Guarded(LikelihoodJudge) on local/evergreen-base`."""
    predictors = judge.predictors() if isinstance(judge, dspy.Module) else []
    lms = [predictor.lm or dspy.settings.lm for predictor in predictors]
    models = ", ".join(dict.fromkeys(lm.model for lm in lms if lm is not None))
    return _kind(judge) + (f" on {models}" if models else "")


def _kind(judge: Any) -> str:
    inner = [_kind(one) for one in _inner(judge)]
    return type(judge).__name__ + (f"({', '.join(inner)})" if inner else "")


def _inner(judge: Any) -> list[Any]:
    held = [getattr(judge, "judge", None), *(getattr(judge, "judges", None) or ())]
    return [one for one in held if one is not None]


def _described(judge: Any) -> dict[str, Any]:
    plain = {
        name: value for name, value in vars(judge).items() if name[0] != "_" and isinstance(value, int | float | str)
    }
    if control := getattr(judge, "control", None):
        plain["control"] = repr(control)
    if isinstance(judge, dspy.Module) and not _inner(judge):
        plain["predictors"] = [_asked_with(predictor) for predictor in judge.predictors()]
    return {"kind": type(judge).__name__, "own": plain, "inner": [_described(one) for one in _inner(judge)]}


def _asked_with(predictor: dspy.Predict) -> dict[str, Any]:
    lm, signature = predictor.lm or dspy.settings.lm, predictor.signature
    return {
        "instructions": signature.instructions,
        "fields": {name: str(field.json_schema_extra) for name, field in signature.fields.items()},
        "demos": [dict(demo) for demo in predictor.demos],
        "lm": lm and [lm.model, lm.kwargs.get("temperature")],
    }

"""Score a program on labelled questions: every call's answer, time and error, none of them lost."""

import time
from collections.abc import Sequence
from typing import Any

import dspy

from optimizers.parallel import in_parallel
from program.summary import score_row

MAX_FAILED_SHARE = 0.2


class EvaluationError(RuntimeError):
    """So many calls failed that the scores of the others would mislead."""


def score_program(
    program: dspy.Module, examples: Sequence[dspy.Example], stage: str, *, threads: int, progress: bool = True
) -> list[dict[str, Any]]:
    """One score row per example, in order (`program/runs.py` shows one).

    A call that raises is a row with `error` and no score. Raises EvaluationError where more than a fifth fail.
    """

    def ask(example: dspy.Example) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            prediction, error = program(**example.inputs()), None
        except Exception as raised:  # whatever it was: counted below, never scored
            prediction, error = None, f"{type(raised).__name__}: {raised}"
        return score_row(stage, example, prediction, seconds=round(time.perf_counter() - began, 4), error=error)

    rows = in_parallel(ask, examples, threads=threads, progress=progress)
    failed = [row["error"] for row in rows if row["error"]]
    if len(failed) > MAX_FAILED_SHARE * len(rows):
        raise EvaluationError(
            f"stage {stage!r}: {len(failed)} of {len(rows)} calls failed (limit {MAX_FAILED_SHARE:.0%}); "
            f"the first: {failed[0]}"
        )
    return rows

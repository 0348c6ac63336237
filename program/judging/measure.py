"""Asks a judge about pairs: as they stand, with the sides exchanged, and again as another sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from modules.judge import Judge, JudgeError, Verdict
from optimizers.parallel import in_parallel
from program.asking import resampled
from program.evaluate import EvaluationError
from program.judging.types import JudgedPair

MAX_FAILED_SHARE = 0.2
_OTHER = {"A": "B", "B": "A", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a judge says of a pair; `verdict` None with `error` where it cannot be read or the call failed.

    `flipped`: with the sides exchanged the verdict is not the mirrored one, or the judge found that out itself; None
    where that was not asked or not read. `again`: the verdict of another sample, None where none was taken or read.
    """

    pair: JudgedPair
    verdict: Verdict | None
    flipped: bool | None = None
    again: Verdict | None = None
    error: str | None = None
    failed: bool = False

    @property
    def right(self) -> bool:
        """Whether a verdict that was read names the winner."""
        return self.verdict is not None and self.verdict.winner == self.pair.winner


def ask_judge(
    judge: Judge,
    pairs: Sequence[JudgedPair],
    *,
    threads: int,
    swap: bool = False,
    retest: bool = False,
    progress: bool = False,
) -> list[Outcome]:
    """One outcome per pair, in order.

    `retest` asks a judge that is a DSPy program with predictors for another sample, at temperature 0.7 or its own; of
    any other judge there is none to take. A verdict that cannot be read is unreadable, any other exception a failed
    call; EvaluationError where more than a fifth of the pairs fail.
    """
    other = resampled(judge, 1) if retest and isinstance(judge, dspy.Module) and judge.predictors() else None

    def ask(pair: JudgedPair) -> Outcome:
        try:
            verdict = judge.compare(pair.case, pair.a, pair.b)
            mirrored = _unless_unreadable(judge, pair, mirror=True) if swap else None
            again = _unless_unreadable(other, pair) if other is not None else None
        except (JudgeError, AdapterParseError) as error:
            return Outcome(pair, None, error=str(error)[:300])
        except Exception as error:  # whatever it was: the caller counts it, and it is no verdict
            return Outcome(pair, None, error=f"{type(error).__name__}: {error}"[:300], failed=True)
        flipped = None if mirrored is None else not verdict.stable or mirrored.winner != _OTHER[verdict.winner]
        return Outcome(pair, verdict, flipped, again)

    outcomes = in_parallel(ask, pairs, threads=threads, progress=progress)
    failed = [outcome.error for outcome in outcomes if outcome.failed]
    if len(failed) > MAX_FAILED_SHARE * len(outcomes):
        raise EvaluationError(
            f"{len(failed)} of {len(outcomes)} calls of the judge failed (limit {MAX_FAILED_SHARE:.0%}); the first: "
            f"{failed[0]}"
        )
    return outcomes


def _unless_unreadable(judge: Any, pair: JudgedPair, mirror: bool = False) -> Verdict | None:
    a, b = (pair.b, pair.a) if mirror else (pair.a, pair.b)
    try:
        return judge.compare(pair.case, a, b)
    except (JudgeError, AdapterParseError):
        return None

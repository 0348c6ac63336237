"""A program's answers as its LMs wrote them: several samples of each example, and what went into every call.

Each call of the program runs on a copy of its own, with LMs of its own, so that what an LM wrote is known to belong to
this example and this sample. A call that failed is an outcome with its error; it is never an answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from optimizers.errors import TrainingError
from optimizers.parallel import in_parallel

MAX_FAILED_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class LMCall:
    """One call of a predictor's LM: the conversation it was given, and the whole text that it wrote.

    `inputs` are the predictor's, None where the text could not be read.
    """

    predictor: int
    messages: tuple[Mapping[str, str], ...]
    text: str
    inputs: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One run of a program on one example; either `error`, or a `prediction`.

    An AdapterParseError is no failure: what the LM wrote is there, and cannot be read.
    """

    example: dspy.Example
    sample: int
    prediction: dspy.Prediction | None
    calls: tuple[LMCall, ...]
    error: Exception | None = None


def rollouts(
    program: dspy.Module,
    examples: Sequence[dspy.Example],
    n: int = 1,
    *,
    temperature: float | None,
    threads: int,
    first_id: int = 1,
    max_failed_share: float = MAX_FAILED_SHARE,
) -> list[list[Rollout]]:
    """`n` runs of the program on each example, in order, at `temperature`; None: as it is served, the same each time.

    `first_id` numbers the samples for DSPy's cache: another one draws others. TrainingError above `max_failed_share`
    of failed runs, naming the first.
    """

    def run(job: tuple[dspy.Example, int]) -> tuple[Rollout]:
        return (_run(program, *job, temperature, settings),)

    settings = {"adapter": dspy.settings.adapter, "lm": dspy.settings.lm}
    jobs = list(product(examples, range(first_id, first_id + n)))
    done = [rollout for (rollout,) in in_parallel(run, jobs, threads=threads, progress=False)] if jobs else []
    failed = [rollout.error for rollout in done if has_failed(rollout)]
    if len(failed) > max_failed_share * len(done):
        raise TrainingError(
            f"{len(failed)} of {len(done)} runs of the program failed (limit {max_failed_share:.0%}); the first: "
            f"{type(failed[0]).__name__}: {failed[0]}"
        ) from failed[0]
    return [done[i : i + n] for i in range(0, len(done), n)]


def has_failed(rollout: Rollout) -> bool:
    """Whether the machinery failed, so that nothing is known of the program's answer."""
    return rollout.error is not None and not isinstance(rollout.error, AdapterParseError)


def _run(
    program: dspy.Module, example: dspy.Example, sample: int, temperature: float | None, settings: dict[str, Any]
) -> Rollout:
    copy = program.deepcopy()
    told = {} if temperature is None else {"temperature": temperature, "rollout_id": sample}
    for predictor in copy.predictors():
        predictor.lm = (predictor.lm or settings["lm"]).copy(**told)
    trace: list[tuple] = []
    error = prediction = None
    try:
        with dspy.context(**settings, trace=trace, disable_history=False):
            prediction = copy(**example.inputs())
    except Exception as err:  # whatever it was: counted by the caller, and no answer
        error = err
    calls = [call for i, predictor in enumerate(copy.predictors()) for call in _calls(i, predictor, trace)]
    return Rollout(example, sample, prediction, tuple(calls), error)


def _calls(place: int, predictor: Any, trace: Sequence[tuple]) -> list[LMCall]:
    """What the predictor's LM was asked and wrote; with its inputs where each text is known to be one step's."""
    said = [(entry["messages"], _text(output)) for entry in predictor.lm.history for output in entry["outputs"][:1]]
    steps = [dict(inputs) for who, inputs, _ in trace if who is predictor]
    known: list[dict | None] = steps if len(steps) == len(said) else [None] * len(said)
    return [LMCall(place, tuple(messages), text, inputs) for (messages, text), inputs in zip(said, known, strict=True)]


def _text(output: Any) -> str:
    return (output["text"] if isinstance(output, dict) else output) or ""

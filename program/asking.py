"""Many calls at once, each answered or failed, none lost: failures are tried again within a budget and counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from optimizers.parallel import in_parallel

RETRY_TEMPERATURE = 0.7


class LabelingError(RuntimeError):
    """So many of a labeller's calls failed, or there is so little to label from, that going on would mislead."""


@dataclass(slots=True)
class Tally:
    """Calls so far: how many were made, of those again, and what failed for good, by the kind of failure."""

    calls: int = 0
    again: int = 0
    failed: int = 0
    unreadable: int = 0


def ask_all(
    program: dspy.Module,
    inputs: Sequence[dict[str, Any]],
    tally: Tally,
    *,
    threads: int,
    retries: int = 2,
    retry_share: float = 0.2,
    max_failed_share: float = 0.3,
    progress: bool = False,
) -> list[dspy.Prediction | Exception]:
    """The program's prediction for each of `inputs`, in order, or the exception that came in its place.

    What failed or cannot be read (AdapterParseError, or a prediction with `readable` False) is asked again up to
    `retries` times, as another sample, in all at most `retry_share` of the calls and at least 3. Raises LabelingError
    where more than `max_failed_share` of the calls, and more than 3, ended in an exception that is not about reading.
    """
    results = _each(program, inputs, threads, progress)
    tally.calls += len(inputs)
    budget = max(3, int(retry_share * len(inputs)))
    for attempt in range(1, retries + 1):
        bad = [i for i, result in enumerate(results) if _failed(result)][:budget]
        if not bad:
            break
        budget -= len(bad)
        again = _each(resampled(program, attempt), [inputs[i] for i in bad], threads, False)
        tally.calls += len(bad)
        tally.again += len(bad)
        for i, result in zip(bad, again, strict=True):
            results[i] = result
    unread = [result for result in results if _unreadable(result)]
    failures = [r for r in results if isinstance(r, Exception) and not _unreadable(r)]
    tally.failed += len(failures)
    tally.unreadable += len(unread)
    if len(failures) > max(3, max_failed_share * len(inputs)):
        first = failures[0]
        raise LabelingError(
            f"{len(failures)} of {len(inputs)} calls failed, {retries} more tries included (limit "
            f"{max_failed_share:.0%}); the first: {type(first).__name__}: {first}"
        ) from first
    return results


def resampled(program: dspy.Module, sample: int, temperature: float | None = None) -> dspy.Module:
    """A copy of the program whose LMs give another sample, past DSPy's cache: at `temperature`, theirs, or 0.7."""
    other = program.deepcopy()
    for predictor in other.predictors():
        lm = predictor.lm or dspy.settings.lm
        heat = temperature if temperature is not None else lm.kwargs.get("temperature") or RETRY_TEMPERATURE
        predictor.lm = lm.copy(rollout_id=sample, temperature=heat)
    return other


def remote(model: str | None) -> dspy.LM | None:
    """A litellm model as DSPy's LM, with log probabilities for confidences where it gives them; None for None."""
    if model is None:
        return None
    import litellm  # it asks the network for prices as soon as it is imported

    given = {"logprobs": True} if "logprobs" in (litellm.get_supported_openai_params(model=model) or ()) else {}
    return dspy.LM(model, temperature=0.0, max_tokens=1024, **given)


def _each(program: dspy.Module, inputs: Sequence[dict[str, Any]], threads: int, progress: bool) -> list:
    def ask(given: dict[str, Any]) -> tuple[dspy.Prediction | Exception]:
        # In a tuple: an exception by itself would be lost.
        try:
            return (program(**given),)
        except Exception as error:  # whatever it was: the caller counts it, and it is no answer
            return (error,)

    return [result for (result,) in in_parallel(ask, inputs, threads=threads, progress=progress)] if inputs else []


def _failed(result: Any) -> bool:
    return isinstance(result, Exception) or _unreadable(result)


def _unreadable(result: Any) -> bool:
    if isinstance(result, Exception):
        return isinstance(result, AdapterParseError)
    return result.get("readable", True) is False

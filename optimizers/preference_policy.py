"""How far a tuned program has gone from the one it came from: KL per token, and the length of its answers."""

from collections.abc import Sequence

import dspy

from optimizers.errors import TrainingError
from optimizers.guard_kl import Said, kl_per_token
from optimizers.local_lm.prompts import encode_completion
from optimizers.local_lm.serving.engine import LocalEngine
from optimizers.preference_rollouts import LMCall, Rollout, has_failed, rollouts

FIRST_ID = 1_000_003  # apart from the samples that pairs are made of, in DSPy's cache


def kl_from_incumbent(
    program: dspy.Module, incumbent: dspy.Module, examples: Sequence[dspy.Example], *, threads: int, seed: int = 0
) -> float:
    """KL(program || incumbent) in nats per token, on one sample of the program for each example, at temperature 1.

    At every token that the program wrote, over the whole vocabulary; the mean over all tokens. TrainingError where an
    LM is no local one, of which likelihoods can be asked.
    """
    tuned, before = program.predictors(), incumbent.predictors()
    for predictor in (*tuned, *before):
        if not isinstance(getattr(predictor.lm, "engine", None), LocalEngine):
            raise TrainingError(
                f"the KL from the incumbent cannot be measured on {getattr(predictor.lm, 'model', predictor.lm)!r}, "
                "whose weights are not here; give max_kl=None to go without"
            )
    total, tokens = 0.0, 0
    sampled = rollouts(program, examples, 1, temperature=1.0, threads=threads, first_id=FIRST_ID + seed)
    for call in all_calls(sampled):
        now, then = tuned[call.predictor].lm, before[call.predictor].lm
        n = len(encode_completion(now.engine.weights, call.messages, call.text, with_end=False))
        if n and now.model != then.model:
            total += n * kl_per_token(now, then, [Said(call.messages, call.text, False, n)])[0]
        tokens += n
    if not tokens:
        raise TrainingError("the program said nothing at all on the validation questions; there is no KL to measure")
    return total / tokens


def mean_length(program: dspy.Module, examples: Sequence[dspy.Example], *, threads: int) -> float:
    """Characters of what an LM of the program writes, on average over its calls, as the program is served."""
    calls = all_calls(rollouts(program, examples, 1, temperature=None, threads=threads))
    if not calls:
        raise TrainingError("the program asked no LM on the validation questions; there is nothing to measure")
    return sum(len(call.text) for call in calls) / len(calls)


def all_calls(done: Sequence[Sequence[Rollout]]) -> list[LMCall]:
    """The calls of all runs that did not fail, in order."""
    return [call for runs in done for run in runs if not has_failed(run) for call in run.calls]

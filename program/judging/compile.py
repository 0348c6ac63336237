"""A judge's own prompt, compiled against what people prefer, by any stock DSPy optimizer."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

import dspy
from dspy.teleprompt.teleprompt import Teleprompter

from modules.judge_scoring import show_answer, show_candidate, show_passages
from modules.signatures import NO_REFERENCE
from optimizers.errors import TrainingError
from optimizers.stock import on_own_lm
from program.judging.measure import ask_judge
from program.judging.types import JudgedPair

MIN_CONTRACTS = 4


@dataclass(frozen=True, slots=True)
class CompiledJudge:
    """The judge that agrees better on the validation pairs: the compiled one (`kept`), or the one that came in.

    `before` and `after` are mean agreement in [0, 1], ties half, on `n` validation pairs of `contracts`; what could not
    be read counts as no agreement here, where prompts are chosen.
    """

    judge: dspy.Module
    kept: bool
    before: float
    after: float
    n: int
    contracts: tuple[str, ...]


def compile_judge(
    judge: dspy.Module,
    verdicts: Sequence[JudgedPair],
    optimizer: Callable[[Callable[..., Any]], Teleprompter],
    *,
    val_share: float = 0.5,
    seed: int = 0,
    threads: int = 8,
    **compile_args: Any,
) -> CompiledJudge:
    """Compile the prompt of a judge (a program of `case`, `a`, `b`) so that it agrees with people's `verdicts`.

    `optimizer` makes the DSPy optimizer for a metric: `lambda metric: dspy.BootstrapFewShot(metric=metric)`, and so
    RandomSearch, MIPROv2 or GEPA; `compile_args` go to its `compile`. `val_share` of the contracts is held out, given
    to optimizers that take a `valset`, and decides whether the compiled prompt is kept: it must agree better. Raises
    TrainingError below 4 contracts.
    """
    contracts = sorted({pair.contract_id for pair in verdicts})
    if len(contracts) < MIN_CONTRACTS:
        raise TrainingError(
            f"{len(verdicts)} verdicts are on {len(contracts)} contracts; at least {MIN_CONTRACTS} are needed, so that "
            "the compiled judge is chosen on contracts that it has not learnt from"
        )
    Random(seed).shuffle(contracts)
    held_out = tuple(sorted(contracts[: min(len(contracts) - 1, max(1, round(val_share * len(contracts))))]))
    val = [pair for pair in verdicts if pair.contract_id in held_out]
    train = [pair for pair in verdicts if pair.contract_id not in held_out]
    tuner = on_own_lm(optimizer(agrees))
    if "valset" in inspect.signature(tuner.compile).parameters:
        compile_args["valset"] = [to_example(pair) for pair in val]
    before = _agreement(judge, val, threads)
    compiled = tuner.compile(judge.deepcopy(), trainset=[to_example(pair) for pair in train], **compile_args)
    after = _agreement(compiled, val, threads)
    kept = after > before
    return CompiledJudge(compiled if kept else judge, kept, before, after, len(val), held_out)


def agrees(
    example: dspy.Example, prediction: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
) -> Any:
    """DSPy metric: 1 where the judge names the person's winner, 0.5 where one of the two has a tie, else 0.

    While demonstrations are gathered (`trace`) only full agreement will do; GEPA is told in words what was preferred.
    """
    score = half_for_ties(prediction.winner, example.winner)
    if pred_name is not None:
        said = "agrees with" if score == 1 else "does not agree with"
        feedback = f"The verdict {prediction.winner} {said} the person, who says {example.winner}."
        return dspy.Prediction(score=score, feedback=feedback)
    return score == 1 if trace is not None else score


def half_for_ties(said: str, person: str) -> float:
    """1 for the same verdict, 0.5 where one of two different verdicts is a tie, else 0."""
    return 1.0 if said == person else 0.5 if "tie" in (said, person) else 0.0


def to_example(pair: JudgedPair) -> dspy.Example:
    """A person's verdict with the inputs of a judge, and, for labelled demonstrations, those of its predictor."""
    shown = {
        "passages": show_passages(pair.case),
        "question": pair.case.question,
        "reference": NO_REFERENCE if pair.case.reference is None else show_answer(pair.case.reference),
        "answer_a": show_candidate(pair.a),
        "answer_b": show_candidate(pair.b),
        "verdict": pair.winner,
    }
    return dspy.Example(case=pair.case, a=pair.a, b=pair.b, winner=pair.winner, **shown).with_inputs("case", "a", "b")


def _agreement(judge: Any, pairs: Sequence[JudgedPair], threads: int) -> float:
    outcomes = ask_judge(judge, pairs, threads=threads)
    read = [(one.verdict.winner, one.pair.winner) for one in outcomes if one.verdict is not None]
    unreadable = sum(one.verdict is None and not one.failed for one in outcomes)
    return fmean([half_for_ties(*pair) for pair in read] + [0.0] * unreadable)

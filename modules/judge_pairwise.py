"""Compares two answers in both orders; what is said in one order only is a tie that is not stable.

On a local LM the verdict of an order is the most probable one behind the quote and the reason that were said, and the
margin a difference of log probabilities; of any other LM the verdict is read, and there is no margin.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import dspy
from dspy.utils.exceptions import AdapterParseError

from modules.judge import Candidate, Case, Grade, Judge, JudgeError, Verdict, read_verdict
from modules.judge_pointwise import read_reason
from modules.judge_scoring import as_prediction, option_logps, read_quote, show_answer, show_candidate, show_passages
from modules.reviewer import is_absent
from modules.signatures import NO_REFERENCE, NOT_FOUND, CompareAnswers, JudgePair, list_candidates

_OTHER = {"A": "B", "B": "A", "tie": "tie"}
_VERDICT = re.compile(r"\W*(?:answer\s+)?(A|B|tie)\W*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge says in one order: `winner` "A", "B" or "tie", `margin` in nats for A, None where not known."""

    winner: str
    margin: float | None
    reason: str
    quote: str


class PairJudge(dspy.Module):
    """A, B or a tie, in both orders, with a sentence and a verbatim quote, by any LM; one predictor, `predict`."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(JudgePair)

    def forward(self, case: Case, a: Candidate, b: Candidate) -> dspy.Prediction:
        """The verdict as a program call, for DSPy's optimizers."""
        return as_prediction(self.compare(case, a, b))

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict:
        """JudgeError where either order cannot be read, or prefers an answer to be found without quoting anything."""
        return in_both_orders(lambda first, second: self._ask(case, first, second), a, b)

    def grade(self, case: Case, candidate: Candidate) -> Grade:
        """See `against_baseline`."""
        return against_baseline(self, case, candidate)

    def _ask(self, case: Case, a: Candidate, b: Candidate) -> Said:
        inputs = {
            "passages": show_passages(case),
            "question": case.question,
            "reference": NO_REFERENCE if case.reference is None else show_answer(case.reference),
            "answer_a": show_candidate(a),
            "answer_b": show_candidate(b),
        }
        said = _asked(self.predict, inputs)
        quote, reason = read_quote(said.quote, case), read_reason(said.reason)
        options = ("A", "B", "tie")
        filled = [{"quote": said.quote, "reason": said.reason, "verdict": option} for option in options]
        logps = option_logps(self.predict, inputs, filled)
        if logps is None:
            match = _VERDICT.fullmatch(said.verdict or "")
            if not match:
                raise JudgeError(f"the verdict {said.verdict!r} is not A, B or tie; ask again or leave the pair out")
            winner, margin = {"a": "A", "b": "B", "tie": "tie"}[match[1].lower()], None
        else:
            winner, margin = options[logps.index(max(logps))], logps[0] - logps[1]
        return _backed(Said(winner, margin, reason, quote), a, b)


class CompareJudge(dspy.Module):
    """The verdict that the bundled base was trained for (`CompareAnswers`), in both orders; one predictor, `predict`.

    It sees answers only, not what they quote, knows no tie, and gives no reason but its quote.
    """

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(CompareAnswers)

    def forward(self, case: Case, a: Candidate, b: Candidate) -> dspy.Prediction:
        """The verdict as a program call, for DSPy's optimizers."""
        return as_prediction(self.compare(case, a, b))

    def compare(self, case: Case, a: Candidate, b: Candidate) -> Verdict:
        """As `PairJudge.compare`; two equal answers tie unasked."""
        if show_answer(a.answer) == show_answer(b.answer):
            return Verdict("tie", 0.0, True, "the two answers are the same", "")
        return in_both_orders(lambda first, second: self._ask(case, first, second), a, b)

    def grade(self, case: Case, candidate: Candidate) -> Grade:
        """See `against_baseline`."""
        return against_baseline(self, case, candidate)

    def _ask(self, case: Case, a: Candidate, b: Candidate) -> Said:
        shown = show_answer(a.answer), show_answer(b.answer)
        inputs = {
            "passages": show_passages(case), "question": case.question, "candidates": list_candidates(*shown),
        }  # fmt: skip
        said = _asked(self.predict, inputs)
        quote = read_quote(said.quotes, case)
        filled = [
            {"quotes": said.quotes, "better": f"{text} [{letter}]"} for text, letter in zip(shown, "AB", strict=True)
        ]
        logps = option_logps(self.predict, inputs, filled)
        margin = None if logps is None else logps[0] - logps[1]
        winner = read_verdict(said.better) if margin is None else "A" if margin > 0 else "B"
        why = f'the passages say "{show_answer(quote)}"' if quote else "the passages say nothing of it"
        return _backed(Said(winner, margin, why, quote), a, b)


def in_both_orders(ask: Callable[[Candidate, Candidate], Said], a: Candidate, b: Candidate) -> Verdict:
    """The verdict on which `ask(a, b)` and `ask(b, a)` agree, else a tie that is not stable; the margin is their mean.

    Source: Zheng et al. 2023 (arXiv 2306.05685), section 3.4.
    """
    first, second = ask(a, b), ask(b, a)
    known = first.margin is not None and second.margin is not None
    margin = (first.margin - second.margin) / 2 if known else None
    if first.winner != _OTHER[second.winner]:
        why = f"not stable: {first.winner} in this order, {_OTHER[second.winner]} in the other; {first.reason}"
        return Verdict("tie", margin, False, why, first.quote)
    return Verdict(first.winner, margin, True, first.reason, first.quote)


def against_baseline(judge: Judge, case: Case, candidate: Candidate) -> Grade:
    """A grade by a judge that only compares: against the reference, or "not in this contract" where there is none.

    1 for a win, 0 for a loss. A tie is 1 with the reference and 0.5 without; where the margin is known, a verdict
    without reference is its logistic function, the probability that the candidate is the better one.
    """
    baseline = Candidate(NOT_FOUND if case.reference is None else case.reference)
    if show_answer(candidate.answer) == show_answer(baseline.answer):
        reason = "it is the reference" if case.reference is not None else "there is nothing to hold absence against"
        return Grade(1.0 if case.reference is not None else 0.5, reason, "")
    verdict = judge.compare(case, candidate, baseline)
    score = {"A": 1.0, "B": 0.0, "tie": 0.5 if case.reference is None else 1.0}[verdict.winner]
    if case.reference is None and verdict.margin is not None:
        score = 1 / (1 + math.exp(-max(-50.0, min(50.0, verdict.margin))))
    return Grade(score, verdict.reason, verdict.quote)


def _asked(predictor: dspy.Predict, inputs: dict[str, str]) -> dspy.Prediction:
    try:
        return predictor(**inputs)
    except AdapterParseError as error:
        raise JudgeError(f"the verdict cannot be read: {str(error)[:200]}") from error


def _backed(said: Said, a: Candidate, b: Candidate) -> Said:
    """What is preferred has to be shown, unless it is that the contract says nothing."""
    better = {"A": a, "B": b}.get(said.winner)
    if better is not None and not said.quote and not is_absent(better.answer):
        raise JudgeError(f"{better.answer[:80]!r} is preferred without a quote; ask again or leave the pair out")
    return said

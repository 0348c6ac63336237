"""What judges share: how passages and candidates are shown, and the probability of each verdict on a local LM."""

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from corpora.types import Passage
from modules.grounding import locate
from modules.judge import Candidate, Case, JudgeError, Score, Verdict
from modules.signatures import NO_QUOTE, number_passages


def show_passages(case: Case) -> str:
    """The `passages` field, in the contract's order, as the reviewer reads them."""
    return number_passages([p.text for p in in_order(case.passages)])


def in_order(passages: Sequence[Passage]) -> list[Passage]:
    """Passages as they follow each other in their contracts."""
    return sorted(passages, key=lambda p: (p.contract_id, p.start))


def show_answer(answer: str) -> str:
    """An answer as one line in which no field marker of the chat format can stand: it is data."""
    return " ".join(answer.replace("[[ ##", "[ ##").split())


def show_candidate(candidate: Candidate) -> str:
    """Answer and quotes of a candidate as one line."""
    quotes = [show_answer(quote) for quote in candidate.quotes if quote.strip() != NO_QUOTE]
    return show_answer(candidate.answer) + "".join(f' (quoting: "{quote}")' for quote in quotes)


def read_quote(said: str, case: Case) -> str:
    """The first line of a judge's quotes, "" for "none"; JudgeError where it does not stand in the passages."""
    lines = [line.strip().strip('"“”').strip() for line in (said or "").splitlines()]
    lines = [line for line in lines if line and line.rstrip(".").casefold() != NO_QUOTE]
    if not lines:
        return ""
    places = [place for place in (locate(line, case.passages) for line in lines) if place]
    if not places:
        raise JudgeError(
            f"the verdict rests on {lines[0][:80]!r}, which stands in none of the passages; ask again or leave it out"
        )
    return places[0].text


def as_prediction(verdict: Verdict) -> dspy.Prediction:
    """A verdict as what a DSPy program gives."""
    return dspy.Prediction(
        winner=verdict.winner, margin=verdict.margin, stable=verdict.stable, reason=verdict.reason, quote=verdict.quote
    )


def lm_of(predictor: dspy.Predict) -> Any:
    """The LM that a predictor is asked with, its own or DSPy's current one."""
    lm = predictor.lm or dspy.settings.lm
    if lm is None:
        raise ValueError("the judge has no LM; give it one by judge.set_lm(lm) or dspy.context(lm=...)")
    return lm


def scorer_of(lm: Any) -> Score | None:
    """`score(messages, completions)` of a local LM, under the weights that it answers with; None for any other."""
    score = getattr(getattr(lm, "engine", None), "score", None)
    return None if score is None else lambda messages, completions: score(messages, completions, model=lm.model)


def option_logps(
    predictor: dspy.Predict, inputs: Mapping[str, Any], options: Sequence[Mapping[str, Any]]
) -> list[float] | None:
    """The log probability (nats) of each of `options`, all output fields filled in, in the predictor's own prompt.

    None where the LM is not a local one, which alone can tell.
    """
    score = scorer_of(lm_of(predictor))
    if score is None:
        return None
    adapter, signature = dspy.settings.adapter or dspy.ChatAdapter(), predictor.signature
    messages = adapter.format(signature, demos=predictor.demos, inputs=dict(inputs))
    return score(messages, [adapter.format_assistant_message_content(signature, dict(option)) for option in options])

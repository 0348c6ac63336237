"""Preferences from what people said: corrections, blind choices, stars and thumbs, under the prompts they were about.

A comment is never read here: what people write freely goes into no prompt and no training row. What they write as the
answer does, so it has to be one: what says nothing, or speaks to a judge, is not taken.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from modules.degenerate import degenerate
from modules.judge import Candidate
from modules.signatures import NOT_FOUND
from optimizers.preference_types import Preference
from program.feedback.store import FeedbackStore
from program.feedback.types import Answered, Choice, Correction, Event, Rating
from program.pairs.texts import read_review, review_text, shown_case

ANONYMOUS = "anonymous"


@dataclass
class FeedbackPreferences:
    """`Preferences` of a feedback store: all that stands in it and was not withdrawn.

    `min_stars`: by how much the same person has to rate one answer above another. `dropped` counts, after a round,
    what became no preference and why.
    """

    store: FeedbackStore
    adapter: dspy.Adapter
    min_stars: int = 2
    dropped: dict[str, int] = field(default_factory=dict)

    def make(
        self, program: dspy.Module, trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example], round: int
    ) -> list[Preference]:
        """As `Preferences.make`; the same in every round."""
        answers = {answer.id: answer for answer in self.store.answers()}
        made, self.dropped = feedback_preferences(
            program, answers, self.store.events(), self.adapter, min_stars=self.min_stars
        )
        return made


def feedback_preferences(
    program: dspy.Module,
    answers: Mapping[str, Answered],
    events: Iterable[Event],
    adapter: dspy.Adapter,
    *,
    min_stars: int = 2,
) -> tuple[list[Preference], dict[str, int]]:
    """The preferences of these events, in order, and how many events gave none for which reason.

    A correction is chosen over what was said, a choice's winner over the other, the best rated of one person's answers
    to one prompt over the worst where `min_stars` lie between. A thumb is unpaired. `program` is the one that answered,
    or has its predictors. TrainingError for a correction to a predictor that says other fields than a review's.
    """
    maker = _Maker(program, answers, adapter)
    stars: dict[tuple, list[tuple[Rating, Answered]]] = defaultdict(list)
    made: list[Preference | None] = []
    for event in events:
        if isinstance(event, Correction):
            made.append(maker.edit(event))
        elif isinstance(event, Choice):
            made.append(maker.choice(event))
        elif isinstance(event, Rating):
            if event.thumbs is not None:
                made.append(maker.thumb(event))
            if event.stars is not None and (answer := maker.answer(event.answer_id)):
                stars[(event.by, answer.predictor, answer.inputs)].append((event, answer))
    for rated in stars.values():
        made.append(maker.stars(rated, min_stars))
    return [one for one in made if one is not None], dict(sorted(maker.dropped.items()))


class _Maker:
    """Makes preferences of events; None, with the reason counted, where an event gives none."""

    def __init__(self, program: dspy.Module, answers: Mapping[str, Answered], adapter: dspy.Adapter) -> None:
        self.signatures = [predictor.signature for predictor in program.predictors()]
        self.answers, self.adapter, self.dropped = answers, adapter, Counter[str]()

    def answer(self, answer_id: str) -> Answered | None:
        """The answer, if its prompt can be made again."""
        answer = self.answers.get(answer_id)
        if answer is None:
            return self._drop("answer is not in the store")
        names = set(dict(answer.inputs))
        known = answer.predictor < len(self.signatures)
        if not known or names != set(self.signatures[answer.predictor].input_fields):
            return self._drop("its prompt was not recorded, or is another program's")
        return answer

    def edit(self, event: Correction) -> Preference | None:
        """The correction before what was said."""
        if (answer := self.answer(event.answer_id)) is None:
            return None
        quotes = [span.text for span in event.spans]
        shown = " ".join(str(dict(answer.inputs).get("passages", "")).split())
        if any(" ".join(quote.split()) not in shown for quote in quotes):
            return self._drop("corrected by words that the program was not shown")
        corrected = (event.answer or ", ".join(quotes)) if event.found else NOT_FOUND
        signature = self.signatures[answer.predictor]
        chosen = review_text(self.adapter, signature, quotes if event.found else (), corrected)
        return self._pair(answer, chosen, self._text(answer), "edit", event.by)

    def choice(self, event: Choice) -> Preference | None:
        """The winner before the other."""
        if event.chosen == "tie":
            return self._drop("tie")
        ids = (event.left_id, event.right_id)
        better, worse = (self.answer(each) for each in (ids if event.chosen == "left" else ids[::-1]))
        if better is None or worse is None:
            return None
        if (better.predictor, better.inputs) != (worse.predictor, worse.inputs):
            return self._drop("candidates answered different prompts")
        return self._pair(better, self._text(better), self._text(worse), "choice", event.by)

    def thumb(self, event: Rating) -> Preference | None:
        """Good, or bad, by itself."""
        if (answer := self.answer(event.answer_id)) is None:
            return None
        text = self._text(answer)
        if event.thumbs == "up":
            return self._pair(answer, text, None, "thumb", event.by)
        return self._pair(answer, None, text, "thumb", event.by)

    def stars(self, rated: Sequence[tuple[Rating, Answered]], min_stars: int) -> Preference | None:
        """The best before the worst of one person's answers to one prompt, by the last rating of each."""
        last = {answer.id: (rating, answer) for rating, answer in rated}
        texts = {self._text(answer): (rating.stars, answer) for rating, answer in last.values()}
        if len(texts) < 2:
            return self._drop("stars for one answer alone")
        (high, (most, best)), (low, (least, _)) = _ends(texts)
        if most - least < min_stars:
            return self._drop(f"fewer than {min_stars} stars between best and worst")
        return self._pair(best, high, low, "rating", rated[0][0].by, float(most - least))

    def _pair(
        self, answer: Answered, chosen: str | None, rejected: str | None, source: str, by: str,
        margin: float | None = None,
    ) -> Preference | None:  # fmt: skip
        inputs: dict[str, Any] = dict(answer.inputs)
        if "" in (chosen, rejected):
            return self._drop("nothing was said")
        if None not in (chosen, rejected) and self._read(answer, chosen) == self._read(answer, rejected):
            return self._drop("tie")
        if chosen is not None:
            said = self._read(answer, chosen)
            if said is None or degenerate(shown_case(inputs), said):
                return self._drop("the chosen answer is none (empty, words to a judge, a quote that stands nowhere)")
        return Preference(
            answer.predictor, inputs, chosen, rejected, answer.contract_id, answer.question, source, by or ANONYMOUS,
            margin,
        )  # fmt: skip

    def _text(self, answer: Answered) -> str:
        """What the LM wrote, or would have written where that was not recorded."""
        if answer.completion or not answer.readable:
            return answer.completion
        quotes = [quote.text for quote in answer.quotes]
        return review_text(self.adapter, self.signatures[answer.predictor], quotes, answer.answer)

    def _read(self, answer: Answered, text: str) -> Candidate | None:
        return read_review(self.adapter, self.signatures[answer.predictor], text)

    def _drop(self, why: str) -> None:
        self.dropped[why] += 1


def _ends(texts: Mapping[str, tuple[int, Answered]]) -> tuple[Any, Any]:
    ordered = sorted(texts.items(), key=lambda item: -item[1][0])
    return ordered[0], ordered[-1]

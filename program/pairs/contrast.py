"""Pairs out of answers that were called good: each against what the program would also say, and is then wrong.

Corrections are about what went wrong, so that pairs of corrections alone pull one way: a program that misses clauses
learns to find them where there are none. What was right has to stand in pairs too.

Not handled: answers of other fields than a review's.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import dspy
from dspy.utils.exceptions import AdapterParseError

from modules.reviewer import is_absent
from optimizers.errors import TrainingError
from optimizers.parallel import in_parallel
from optimizers.preference import Preferences
from optimizers.preference_types import Preference
from program.asking import resampled
from program.metrics import review_correct
from program.pairs.texts import read_review, review_text

logger = logging.getLogger(__name__)
MAX_FAILED_SHARE = 0.3


@dataclass
class Contrasted:
    """`Preferences` of `source`, each good answer of which is chosen over a sample of the program that contradicts it.

    Asked is the program of the round, under the very prompt, up to `samples` times at `temperature`; a sample
    contradicts where it would be wrong if the good answer is right (`review_correct`). Good answers that no sample
    contradicts stay unpaired, and pairs are passed on as they are. `counts` has one Counter a round: "pair", "said no
    other", "failed". TrainingError where more than 30% of the calls fail.
    """

    source: Preferences
    adapter: dspy.Adapter
    samples: int = 4
    temperature: float = 1.0
    threads: int = 16
    counts: list[Counter[str]] = field(default_factory=list)

    def make(
        self, program: dspy.Module, trainset: Sequence[dspy.Example], valset: Sequence[dspy.Example], round: int
    ) -> list[Preference]:
        """As `Preferences.make`."""
        made = self.source.make(program, trainset, valset, round)
        good = {i: one for i, one in enumerate(made) if one.chosen is not None and one.rejected is None}
        found: dict[int, str] = {}
        counts: Counter[str] = Counter()
        for sample in range(1, self.samples + 1):
            waiting = {i: one for i, one in good.items() if i not in found}
            said = self._sampled(program, list(waiting.values()), sample + (round - 1) * self.samples, counts)
            found |= {i: text for i, text in zip(waiting, said, strict=True) if text is not None}
        counts.update({"pair": len(found), "said no other": len(good) - len(found)})
        self.counts.append(counts)
        logger.info("round %d: of %d good answers %s", round, len(good), dict(counts))
        return [replace(one, rejected=found[i]) if i in found else one for i, one in enumerate(made)]

    def _sampled(
        self, program: dspy.Module, good: Sequence[Preference], sample: int, counts: Counter[str]
    ) -> list[str | None]:
        """For each good answer what a sample says instead; None where it says no other, or nothing that can be read."""
        predictors = resampled(program, sample, self.temperature).predictors()

        def ask(one: Preference) -> tuple[str | None, Exception | None]:
            try:
                with dspy.context(adapter=self.adapter):
                    said = predictors[one.predictor](**one.inputs)
            except AdapterParseError:
                return None, None
            except Exception as error:  # whatever it was: counted below, and no answer
                return None, error
            quotes = [line for line in str(said.quotes).splitlines() if line.strip()]
            text = review_text(self.adapter, predictors[one.predictor].signature, quotes, str(said.answer))
            return (text if self._contradicts(predictors[one.predictor], one.chosen, text) else None), None

        outcomes = in_parallel(ask, good, threads=self.threads, progress=False) if good else []
        errors = [error for _, error in outcomes if error is not None]
        counts["failed"] += len(errors)
        if len(errors) > max(3, MAX_FAILED_SHARE * len(good)):
            raise TrainingError(
                f"{len(errors)} of {len(good)} calls for another answer failed (limit {MAX_FAILED_SHARE:.0%}); the "
                f"first: {type(errors[0]).__name__}: {errors[0]}"
            ) from errors[0]
        return [text for text, _ in outcomes]

    def _contradicts(self, predictor: dspy.Predict, good: str | None, text: str) -> bool:
        right, said = (read_review(self.adapter, predictor.signature, each) for each in (good or "", text))
        if right is None or said is None or not said.answer:
            return False
        return not review_correct(said.answer, not is_absent(said.answer), right.answer)

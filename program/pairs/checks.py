"""What labels say of a preference: whether the better answer was preferred, as far as they know."""

from collections.abc import Callable, Iterable

import dspy

from modules.reviewer import is_absent
from optimizers.preference_types import Preference
from program.metrics import review_correct
from program.pairs.texts import read_review


def gold_check(
    program: dspy.Module, examples: Iterable[dspy.Example], adapter: dspy.Adapter
) -> Callable[[Preference], bool | None]:
    """A check by labelled examples (training questions, never validation ones), for `PreferenceTune(check=…)`.

    True where the chosen answer is right and the rejected wrong, False where it is the other way round, None where both
    are as good, or the question has no label. Of an unpaired preference: whether it calls right right. An unreadable
    text is wrong.
    """
    gold = {(example.contract_id, example.question): example.answer for example in examples}
    signatures = [predictor.signature for predictor in program.predictors()]

    def right(one: Preference, text: str) -> bool:
        said = read_review(adapter, signatures[one.predictor], text)
        return said is not None and review_correct(
            said.answer, not is_absent(said.answer), gold[one.group, one.question]
        )

    def check(one: Preference) -> bool | None:
        if (one.group, one.question) not in gold:
            return None
        if one.chosen is None or one.rejected is None:
            return right(one, one.chosen or one.rejected or "") == (one.chosen is not None)
        chosen, rejected = right(one, one.chosen), right(one, one.rejected)
        return None if chosen == rejected else chosen

    return check

"""Prompts for replay that nobody has to keep: reviews of questions that the incumbent itself writes about passages.

guard = guard_from("replay_self", prompts=own_prompts(passages, adapter), n=100)
"""

from collections.abc import Callable, Sequence

import dspy

from corpora.types import Passage
from modules.signatures import ReviewPassages, WriteQuestion, number_passages
from optimizers.errors import TrainingError
from program.asking import Tally, ask_all


def own_prompts(
    passages: Sequence[Passage], adapter: dspy.Adapter, *, threads: int = 16
) -> Callable[[dspy.LM], list[list[dict[str, str]]]]:
    """A function of the incumbent to review prompts: each a passage, and a question that the incumbent wrote about it.

    What cannot be read is left out. Raises TrainingError where nothing can be, LabelingError where many calls fail.
    """

    def prompts(incumbent: dspy.LM) -> list[list[dict[str, str]]]:
        writer = dspy.Predict(WriteQuestion)
        writer.set_lm(incumbent)
        texts = [" ".join(passage.text.split()) for passage in passages]
        with dspy.context(adapter=adapter):
            said = ask_all(writer, [{"passage": text} for text in texts], Tally(), threads=threads, retries=0)
        asked = [
            (text, " ".join(one.question.split())) for text, one in zip(texts, said, strict=True)
            if not isinstance(one, Exception) and (one.question or "").strip()
        ]  # fmt: skip
        if not asked:
            raise TrainingError(f"{incumbent.model!r} wrote no readable question about {len(texts)} passages")
        return [
            adapter.format(ReviewPassages, [], {"passages": number_passages([text]), "question": question})
            for text, question in asked
        ]

    return prompts

"""Labels as a teacher: the program with an LM that says what people said.

Stock BootstrapFinetune trains on a teacher's traces. With this teacher the traces are the human labels, laid into
exactly the prompts that the student is served with.
"""

from collections.abc import Iterable, Sequence
from random import Random

import dspy
from dspy.utils import DummyLM

from modules.grounding import locate
from modules.retriever import PassageIndex
from modules.signatures import NOT_FOUND, join_quotes
from program.contract_review import ContractReview


class LabelTeacher(ContractReview):
    """Answers each labelled question with its label, as far as the retrieved passages hold it.

    A gold quote that was not retrieved is not taught (the student could not have seen it); where none was, the
    teacher says "not in this contract", and `teaches` refuses the trace.
    """

    def __init__(self, index: PassageIndex, examples: Iterable[dspy.Example], k_passages: int = 4) -> None:
        super().__init__(index, k_passages)
        self.gold = {(e.contract_id, e.question, tuple(e.get("without") or ())): e for e in examples}

    def follow(self, student: dspy.Module) -> None:
        """Retrieve as the student does: a tuned retriever shows other passages."""
        self.retrieve = student.retrieve

    def forward(
        self, question: str, contract_id: str | None = None, without: Sequence[tuple[int, int]] = ()
    ) -> dspy.Prediction:
        """As the student's, which does not know `without` (see `Retrieve`); KeyError for a question without a label."""
        gold = self.gold[contract_id, question, tuple(without)]
        left_out = {"without": without} if without else {}  # a retriever need not know it where there is nothing to
        passages = self.retrieve(question=question, contract_id=contract_id, **left_out).passages
        quotes = [quote for quote in gold.quotes if locate(quote, passages)]
        said = self.reviewer(question=question, passages=passages, lm=DummyLM([_said(gold, quotes)]))
        said.passages = passages
        return said

    def follow_ups(
        self, example: dspy.Example, prediction: dspy.Prediction
    ) -> list[tuple[dict[str, str], dict[str, str]]]:
        """Other labelled questions that the passages shown for `example` settle: what to ask, and what to say.

        Those whose quotes all stand there, and as many (one at least) that the contract does not answer.
        """
        others = [e for e in self.gold.values() if e.contract_id == example.contract_id and not e.get("without")]
        others = [e for e in others if e.question != example.question]
        found = [e for e in others if e.found and all(locate(quote, prediction.passages) for quote in e.quotes)]
        absent = [e for e in others if not e.found]
        Random(example.question).shuffle(absent)
        return [({"question": e.question}, _said(e, e.quotes)) for e in found + absent[: max(1, len(found))]]


def _said(gold: dspy.Example, quotes: Sequence[str]) -> dict[str, str]:
    """The fields of the label's answer, as far as these of its quotes go."""
    answer = gold.answer if len(quotes) == len(gold.quotes) else ", ".join(quotes) or NOT_FOUND
    return {"quotes": join_quotes(list(quotes)), "answer": " ".join(answer.split())}


def teaches(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    """Whether a trace says what its label says: found where it is found, absent where it is absent."""
    return prediction.found == example.found and prediction.readable

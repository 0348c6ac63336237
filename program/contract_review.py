"""The compound program: a question, and the contract it is put to, in; an answer with quotes out."""

import dspy

from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import Retrieve
from modules.retriever import PassageIndex
from modules.reviewer import Reviewer


class ContractReview(dspy.Module):
    """Retrieve passages from an index, review them; what optimizers compile and releases hold."""

    def __init__(
        self, index: PassageIndex, k_passages: int | None = 4, *, settings: RetrievalSettings | None = None
    ) -> None:
        """`settings` are those of `Retrieve`; `k_passages` is put in the place of their k, unless it is None."""
        super().__init__()
        self.retrieve = Retrieve(index, k=k_passages, settings=settings)
        self.reviewer = Reviewer()

    def forward(self, question: str, contract_id: str | None = None) -> dspy.Prediction:
        """`Prediction(answer, quotes, found, confidence, readable, n_dropped_quotes, passages, p_answered)`.

        See `Reviewer`, and `Retrieve` for the last two. Without `contract_id` all contracts of the index are searched.
        Raises StoreError for a contract that is not in the index and ValueError for an empty question.
        """
        if not question.strip():
            raise ValueError("the question is empty; ask something about the contract")
        found = self.retrieve(question=question, contract_id=contract_id)
        prediction = self.reviewer(question=question, passages=found.passages)
        prediction.passages, prediction.p_answered = found.passages, found.get("p_answered")
        return prediction

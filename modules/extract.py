"""The DSPy module that extracts spans with confidences and asks no language model."""

import threading

import dspy

from corpora.cuad import bare_question
from modules.retrieve import Retrieve
from modules.spans import ScoredSpan, SpanFinder, confidences


class Extract(dspy.Module):
    """The sentences, or phrases, of a contract that answer a question, by `retrieve` and its index's embedder alone.

    Confidences are those of the settings' SpanModel; without one they are None. Thread-safe: one question at a time is
    embedded.
    """

    def __init__(self, retrieve: Retrieve, n_best: int = 20) -> None:
        super().__init__()
        self.retrieve, self.n_best = retrieve, n_best
        self._finders = _Finders()

    def forward(self, question: str, contract_id: str | None = None) -> dspy.Prediction:
        """`Prediction(spans, confidences, p_answered, passages)`, best span first; errors as `Retrieve` raises them."""
        found = self.retrieve(question=question, contract_id=contract_id)
        query = bare_question(question)
        model = self.retrieve.settings.spans
        in_phrases = model is not None and query in model.in_phrases
        spans = self._finders.find(self.retrieve, query, found.passages, self.n_best, in_phrases)
        likely = 0.5 if found.p_answered is None else found.p_answered
        return dspy.Prediction(
            spans=spans,
            confidences=None if model is None else confidences(model, query, spans, likely),
            p_answered=found.p_answered,
            passages=found.passages,
        )


class _Finders:
    """One SpanFinder for the index in use; a deep copy is the same object, for a finder is a cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: tuple[object, bool] | None = None
        self._finder: SpanFinder | None = None

    def find(
        self, retrieve: Retrieve, query: str, passages: list, n_best: int, in_phrases: bool
    ) -> tuple[ScoredSpan, ...]:
        with self._lock:
            index, in_context = retrieve.index, retrieve.settings.sentences_in_context
            if self._finder is None or self._of != (index, in_context):
                self._of = index, in_context
                self._finder = SpanFinder(index.embedder, index.embedded_text if in_context else None)
            return self._finder.find(query, passages, n_best, in_phrases=in_phrases)

    def __deepcopy__(self, memo: dict) -> "_Finders":
        return self

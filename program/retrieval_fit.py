"""The numbers of retrieval fitted on labelled questions: fusion, k, absence, the confidence of spans.

Rankings are compared by how many of the gold characters stand in the first so many characters retrieved, so that the
size of a passage neither helps nor harms.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import dspy
import numpy as np

from corpora.cuad import bare_question
from corpora.types import Passage, Span
from modules.absence import AnswerModel, fit_answer_model
from modules.extract import Extract
from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import Retrieve, evidence_in, fuse, rank, search_both
from modules.retriever import PassageIndex
from modules.spans import ScoredSpan, SpanModel, confidences, fit_span_model
from program.cuad_metric import Extraction, aupr, threshold_counts
from program.metrics import cuad_matches
from program.retrieval_metric import Place, character_scores, recall_in_chars

BUDGETS_CHARS = (600, 1200, 2400, 4800)
LEXICAL_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
RRF_CONSTANTS = (5.0, 10.0, 20.0, 60.0)
# Of the share of gold characters that k passages hold, fewer passages may lose so much.
_K_LOSS = 0.01
# So much higher, by one over their places, right spans have to stand among phrases.
_PHRASE_GAIN = 0.02
# Spans of one question, and how likely it is answered.
Found = tuple[Sequence[ScoredSpan], float]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with an answer, as it is put to one contract: the query, and where the gold text stands."""

    query: str
    contract_id: str
    gold: tuple[Span, ...]


def recalls(program: dspy.Module, examples: Sequence[dspy.Example], ks: Sequence[int]) -> list[tuple[str, list[float]]]:
    """(topic, share of the gold characters among the best k passages for each k) of each question with an answer."""
    index, settings = program.retrieve.index, program.retrieve.settings
    rows = []
    for asked in answered(examples):
        ranked = _ranked(index, asked, settings)
        rows.append((asked.query.partition(":")[0], [_recall_at(asked, ranked, k) for k in ks]))
    return rows


def answered(examples: Sequence[dspy.Example]) -> list[Asked]:
    """The examples that have an answer, with their spans (`program.examples.to_examples`)."""
    return [
        Asked(bare_question(e.question), e.contract_id, tuple(Span(start, end) for start, end in e.spans))
        for e in examples
        if e.spans
    ]


def fit_fusion(
    index: PassageIndex, asked: Sequence[Asked], start: RetrievalSettings
) -> tuple[RetrievalSettings, float]:
    """The fusion with the highest mean recall at BUDGETS_CHARS on these questions, and that recall."""
    grid = [start]
    grid += [replace(start, fusion="sum", dense_weight=1.0, lexical_weight=w) for w in LEXICAL_WEIGHTS]
    grid += [
        replace(start, fusion="rrf", dense_weight=1.0, rrf_constant=c, lexical_weight=w)
        for c, w in product(RRF_CONSTANTS, LEXICAL_WEIGHTS[3:])
    ]
    # Searched once: the settings differ only in how the two rankings are joined.
    found = [(one, *search_both(index, one.query, one.contract_id)) for one in asked]
    scores = [
        float(
            np.mean([recall_of(one, [hit.passage for hit in fuse(dense, words, how)]) for one, dense, words in found])
        )
        for how in grid
    ]
    at = int(np.argmax(scores))
    return grid[at], scores[at]


def fit_k(index: PassageIndex, asked: Sequence[Asked], settings: RetrievalSettings) -> int:
    """The fewest passages that hold as much gold text as `settings.k` do, but for a hundredth of all."""
    ranked = [_ranked(index, one, settings) for one in asked]

    def recall(k: int) -> float:
        return float(np.mean([_recall_at(one, found, k) for one, found in zip(asked, ranked, strict=True)]))

    enough = recall(settings.k) - _K_LOSS
    return next(k for k in range(1, settings.k + 1) if recall(k) >= enough)


def fit_answers(index: PassageIndex, examples: Sequence[dspy.Example]) -> AnswerModel | None:
    """How likely a contract of the index answers a question; None where all of these are answered, or none is."""
    has_answer = [bool(example.spans) for example in examples]
    if len(set(has_answer)) < 2:
        return None
    queries = [bare_question(example.question) for example in examples]
    found = [evidence_in(index, query, e.contract_id) for query, e in zip(queries, examples, strict=True)]
    return fit_answer_model(queries, found, has_answer)


def fit_extraction(
    retrieve: Retrieve, examples: Sequence[dspy.Example], in_context: Sequence[bool] = (False, True)
) -> tuple[RetrievalSettings, float]:
    """The settings of `retrieve` with the spans' confidences fitted, and CUAD's AUPR on these questions, 0 to 1.

    A span is right where it matches a gold one as CUAD counts it. Sentences are read alone or in their passages,
    whichever of `in_context` scores higher; of each question's spans, sentences or phrases, those are taken among which
    the right ones stand higher. ValueError where no span is right, or all are.
    """
    tried = []
    queries = [bare_question(example.question) for example in examples]
    # Confidences play no part in what is found.
    phrased = SpanModel(1.0, 0.0, 0.0, 0.0, 0.0, in_phrases=tuple(dict.fromkeys(queries)))
    for one in in_context:
        settings = replace(retrieve.settings, sentences_in_context=one, spans=None)
        whole, phrases = (
            _extracted(Extract(Retrieve(retrieve.index, settings=replace(settings, spans=way))), examples)
            for way in (None, phrased)
        )
        chosen = _better_in_phrases(queries, whole, phrases, examples)
        found = [
            one_phrased if query in chosen else one_whole
            for query, one_whole, one_phrased in zip(queries, whole, phrases, strict=True)
        ]
        model = _span_model(found, examples, chosen)
        extractions = [
            extraction(example, spans, confidences(model, query, spans, likely))
            for query, example, (spans, likely) in zip(queries, examples, found, strict=True)
        ]
        score = float(aupr(threshold_counts(extractions).sum(axis=0)))
        tried.append((replace(settings, spans=model), score))
    return max(tried, key=lambda pair: pair[1])


def extraction(example: dspy.Example, spans: Sequence[ScoredSpan], stated: Sequence[float]) -> Extraction:
    """What CUAD's metric looks at of one question: gold texts, and spans' texts with confidences."""
    texts = (span.quote.text for span in spans)
    return Extraction(tuple(example.quotes), tuple(zip(texts, stated, strict=True)), example.category == "Parties")


def _extracted(extract: Extract, examples: Sequence[dspy.Example]) -> list[Found]:
    """Each question's spans, and how likely it is answered."""
    found = [extract(question=example.question, contract_id=example.contract_id) for example in examples]
    return [(one.spans, 0.5 if one.p_answered is None else one.p_answered) for one in found]


def _better_in_phrases(
    queries: Sequence[str], whole: Sequence[Found], phrases: Sequence[Found], examples: Sequence[dspy.Example]
) -> list[str]:
    """The queries whose gold spans stand clearly higher among phrases, by the mean of one over their places.

    The mean is over one question more than there are, of no difference, so that a single one weighs half.
    """
    gains: dict[str, list[float]] = {}
    for query, *both, example in zip(queries, whole, phrases, examples, strict=True):
        if example.quotes:
            sentence, phrase = (float(np.mean(_one_over_place(spans, example))) for spans, _ in both)
            gains.setdefault(query, []).append(phrase - sentence)
    return sorted(query for query, own in gains.items() if sum(own) / (len(own) + 1) > _PHRASE_GAIN)


def _one_over_place(spans: Sequence[ScoredSpan], example: dspy.Example) -> list[float]:
    """Of each gold span one over the place, from 1, of the first span that matches it; 0 where none does."""
    matches_P_G = _matches(spans, example)
    return [float(1 / (1 + column.argmax())) if column.any() else 0.0 for column in matches_P_G.T]


def _matches(spans: Sequence[ScoredSpan], example: dspy.Example) -> np.ndarray:
    return cuad_matches([span.quote.text for span in spans], example.quotes, parties=example.category == "Parties")


def _span_model(found: Sequence[Found], examples: Sequence[dspy.Example], in_phrases: Sequence[str]) -> SpanModel:
    questions = []
    for (spans, likely), example in zip(found, examples, strict=True):
        right = _matches(spans, example).any(axis=1)
        questions.append((bare_question(example.question), spans, likely, right.tolist()))
    return fit_span_model(questions, in_phrases=in_phrases)


def _ranked(index: PassageIndex, asked: Asked, settings: RetrievalSettings) -> list[Passage]:
    return [hit.passage for hit in rank(index, asked.query, (asked.contract_id,), settings)]


def recall_of(asked: Asked, ranked: Sequence[Passage]) -> float:
    """Share of the gold characters in the first BUDGETS_CHARS characters of a ranking, the mean over these."""
    places = [_place(passage) for passage in ranked]
    return float(np.mean([recall_in_chars(_gold(asked), places, budget) for budget in BUDGETS_CHARS]))


def _recall_at(asked: Asked, ranked: Sequence[Passage], k: int) -> float:
    return character_scores(_gold(asked), [_place(passage) for passage in ranked[:k]])[1]


def _gold(asked: Asked) -> list[Place]:
    return [(asked.contract_id, span) for span in asked.gold]


def _place(passage: Passage) -> Place:
    return passage.contract_id, Span(passage.start, passage.end)

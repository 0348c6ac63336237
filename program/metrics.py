"""Scores as plain functions of strings, lists and counts, and their one-line DSPy wrappers.

Two conventions hold throughout. Nothing to measure (0/0) is `nan`, never 0 or 1: a mean over it must not
move. Texts are compared as SQuAD does, so ASCII punctuation, case and articles do not count; curly quotes
and other non-ASCII signs do.
"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from modules.signatures import NOT_FOUND

CUAD_JACCARD = 0.5
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CUAD_DELETED = str.maketrans({".": None, ",": None, ";": None, ":": None, "/": " "})

Counts = tuple[int, int, int]


def normalize(text: str) -> str:
    """The text in lower case without ASCII punctuation, articles and runs of white space (SQuAD, Rajpurkar 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(pred: str, gold: str) -> bool:
    """Whether two answers are the same after `normalize`.

    A gold answer of which `normalize` leaves nothing ("The", "%") is compared as it stands, so that an
    empty or ":"-like prediction never matches it; "" matches only "".
    """
    wanted = normalize(gold)
    return normalize(pred) == wanted if wanted else pred.strip() == gold.strip()


def token_f1(pred: str, gold: str) -> float:
    """F1 over the bags of normalized words, 0–1 (SQuAD); where either side has no words it is `exact_match`."""
    pred_words, gold_words = normalize(pred).split(), normalize(gold).split()
    if not pred_words or not gold_words:
        return float(exact_match(pred, gold))
    shared = sum((Counter(pred_words) & Counter(gold_words)).values())
    return 2 * shared / (len(pred_words) + len(gold_words))


def cuad_jaccard(first: str, second: str) -> float:
    """Jaccard overlap of the two texts' word sets, 0–1, words as CUAD's evaluate.py makes them.

    Lower case, `. , ; :` deleted, `/` turned into a space, split at single spaces: line ends do not split and
    two spaces make an empty word, as there.
    """
    words = [set(text.lower().translate(_CUAD_DELETED).split(" ")) for text in (first, second)]
    return len(words[0] & words[1]) / len(words[0] | words[1])


def cuad_match(predicted: Sequence[str], gold: Sequence[str], parties: bool = False) -> Counts:
    """(tp, fp, fn) of one question: predicted against gold span texts, matching at Jaccard ≥ 0.5.

    TP and FN count gold spans, FP predictions that match no gold span, so one prediction may serve two gold spans.
    With `parties` (CUAD's category "Parties") a gold text contained in a prediction matches too. Both
    empty gives (0, 0, 0). Source: CUAD's evaluate.py (Hendrycks 2021). An empty gold text raises ValueError.
    """
    matches = cuad_matches(predicted, gold, parties)
    tp = int(matches.any(axis=0).sum())
    return tp, int((~matches.any(axis=1)).sum()), len(gold) - tp


def cuad_matches(predicted: Sequence[str], gold: Sequence[str], parties: bool = False) -> np.ndarray:
    """Which predicted text matches which gold span, bool (P, G); as in `cuad_match`."""
    if "" in gold:
        raise ValueError(f"cuad_match: gold spans {list(gold)!r} hold an empty text; a span has at least one character")
    return np.array(
        [[cuad_jaccard(p, g) >= CUAD_JACCARD or (parties and g in p) for g in gold] for p in predicted], dtype=bool
    ).reshape(len(predicted), len(gold))


def cuad_scores(counts: Iterable[Counts]) -> dict[str, float]:
    """Precision, recall and F1 pooled over the questions' (tp, fp, fn); 0/0 is nan (as in CUAD's evaluate.py)."""
    return _precision_recall_f1(list(counts))


def absence_match(found_pred: bool, found_gold: bool) -> Counts:
    """(tp, fp, fn) of one question where the positive is "not in this contract"."""
    return (
        int(not found_pred and not found_gold),
        int(not found_pred and found_gold),
        int(found_pred and not found_gold),
    )


def absence_scores(found_pred: Sequence[bool], found_gold: Sequence[bool]) -> dict[str, float]:
    """Precision, recall and F1 of the answer "not in this contract", and how often it is wrongly given.

    `false_absence_rate` is the share of the questions with an answer that were called absent. 0/0 is nan: precision
    where nothing was called absent, recall where nothing is absent, the rate where everything is. Unequal lengths raise
    ValueError.
    """
    counts = [absence_match(pred, gold) for pred, gold in zip(found_pred, found_gold, strict=True)]
    rate = ratio((sum(fp for _, fp, _ in counts), sum(found_gold)))
    return _precision_recall_f1(counts) | {"false_absence_rate": float(rate)}


def ratio(sums: ArrayLike) -> np.ndarray:
    """Column 0 over column 1 of sums of shape (..., 2); 0/0 is nan."""
    sums = np.asarray(sums, dtype=float)
    return _divide(sums[..., 0], sums[..., 1])


def precision(sums: ArrayLike) -> np.ndarray:
    """tp / (tp + fp) of (tp, fp, fn) sums of shape (..., 3); nan where nothing was predicted."""
    sums = np.asarray(sums, dtype=float)
    return _divide(sums[..., 0], sums[..., 0] + sums[..., 1])


def recall(sums: ArrayLike) -> np.ndarray:
    """tp / (tp + fn) of (tp, fp, fn) sums of shape (..., 3); nan where nothing was there to find."""
    sums = np.asarray(sums, dtype=float)
    return _divide(sums[..., 0], sums[..., 0] + sums[..., 2])


def f1(sums: ArrayLike) -> np.ndarray:
    """2 tp / (2 tp + fp + fn) of (tp, fp, fn) sums of shape (..., 3); nan where all three are 0."""
    sums = np.asarray(sums, dtype=float)
    return _divide(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def exact_match_metric(example: Any, prediction: Any, trace: Any = None) -> float:
    """DSPy wrapper of `exact_match` on the field `answer`: 0.0 or 1.0."""
    return float(exact_match(prediction.answer, example.answer))


def token_f1_metric(example: Any, prediction: Any, trace: Any = None) -> float:
    """DSPy wrapper of `token_f1` on the field `answer`; give a bootstrapping optimizer a `metric_threshold` with it."""
    return token_f1(prediction.answer, example.answer)


def review_metric(example: Any, prediction: Any, trace: Any = None) -> float:
    """DSPy wrapper of `review_correct`: 0.0 or 1.0."""
    return float(review_correct(prediction.answer, prediction.found, example.answer))


def review_correct(answer: str, found: bool, gold_answer: str) -> bool:
    """Whether a review is right, which is what `exact_match` of a score row holds.

    Where there is an answer it must be found and match exactly; where there is none, nothing may be found.
    """
    return not found if gold_answer == NOT_FOUND else found and exact_match(answer, gold_answer)


def _precision_recall_f1(counts: list[Counts]) -> dict[str, float]:
    sums = np.asarray(counts, dtype=float).reshape(-1, 3).sum(axis=0)
    return {"precision": float(precision(sums)), "recall": float(recall(sums)), "f1": float(f1(sums))}


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) != 0)

"""CUAD's own metric for extracted spans: area under precision-recall, and precision at a recall.

As CUAD's evaluate.py has it (Hendrycks, Burns, Chen, Ball 2021, arXiv 2103.06268): each question has an n-best list of
texts with confidences; at each of 101 thresholds what is above it counts as predicted, and matches are pooled over all
pairs of contract and question (`program.metrics.cuad_match`). One real row:

    Extraction(gold=("This Agreement is governed by the laws of Ohio.",),
               predicted=(("This Agreement is governed by the laws of Ohio.", 0.93), ("Ohio courts decide.", 0.11)))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from program.metrics import cuad_matches

THRESHOLDS = np.array([*np.arange(0.99, 0, -0.01), 0.001, 0.0])


@dataclass(frozen=True, slots=True)
class Extraction:
    """What one question should give and what it gave: gold texts, and predicted texts with confidences in [0, 1].

    `parties`: whether a gold text contained in a prediction matches too, as it does in CUAD's category "Parties".
    """

    gold: tuple[str, ...]
    predicted: tuple[tuple[str, float], ...]
    parties: bool = False


def threshold_counts(extractions: Sequence[Extraction]) -> np.ndarray:
    """(tp, fp, fn) of each question at each of `THRESHOLDS`: floats of shape (N, 101, 3).

    A prediction counts where its confidence is above the threshold. TP and FN count gold spans, FP predictions that
    match none. Empty predictions are no predictions, and of equal texts the last confidence holds. ValueError for an
    empty gold text and for a confidence outside [0, 1].
    """
    counts = [_counts(extraction) for extraction in extractions]
    return np.array(counts, dtype=float).reshape(len(extractions), len(THRESHOLDS), 3)


def aupr(sums: ArrayLike) -> np.ndarray:
    """Area under precision-recall of counts summed over questions, (..., 101, 3) to (...), 0 to 1.

    By trapezoids over recall, from precision 1 at recall 0, each precision raised to the best at its recall or above.
    Without any prediction above 0 it is 0; without any gold span it is nan, since there is nothing to find.
    """
    precisions, recalls = _curve(sums)
    area = np.trapezoid(precisions, recalls, axis=-1)
    return np.where(np.isnan(recalls[..., -1]), np.nan, np.nan_to_num(area))


def precision_at_recall(sums: ArrayLike, recall: float = 0.8) -> np.ndarray:
    """Precision at the highest threshold with at least this recall, (..., 101, 3) to (...); 0 where none has it.

    As in evaluate.py the last threshold, 0, is not looked at; nan without any gold span.
    """
    precisions, recalls = _curve(sums)
    precisions, recalls = precisions[..., :-1], recalls[..., :-1]
    enough = recalls >= recall
    first = np.argmax(enough, axis=-1)[..., None]
    at = np.nan_to_num(np.take_along_axis(precisions, first, axis=-1)[..., 0])
    return np.where(np.isnan(recalls[..., -1]), np.nan, np.where(enough.any(axis=-1), at, 0.0))


def _counts(extraction: Extraction) -> np.ndarray:
    gold, predicted = extraction.gold, {text: c for text, c in extraction.predicted if text}
    if wrong := [confidence for confidence in predicted.values() if not 0 <= confidence <= 1]:
        raise ValueError(f"the confidence {wrong[0]} is not in [0, 1]")
    confidences_P = np.array(list(predicted.values()))
    matches_P_G = cuad_matches(list(predicted), gold, extraction.parties)
    # A gold span is found as long as the surest prediction that matches it is above the threshold.
    found_G = np.where(matches_P_G, confidences_P[:, None], -1.0).max(axis=0, initial=-1.0)
    tp_T = (found_G > THRESHOLDS[:, None]).sum(axis=1)
    fp_T = (confidences_P[~matches_P_G.any(axis=1)] > THRESHOLDS[:, None]).sum(axis=1)
    return np.stack([tp_T, fp_T, len(gold) - tp_T], axis=1)


def _curve(sums: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Precisions made monotone from the right, and recalls, both (..., 102) with the point (1, 0) in front."""
    tp, fp, fn = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    with np.errstate(invalid="ignore"):
        precisions, recalls = tp / (tp + fp), tp / (tp + fn)
    front = np.ones((*tp.shape[:-1], 1))
    precisions = np.concatenate([front, precisions], axis=-1)
    # fmax, as Python's max in evaluate.py: where nothing is predicted yet, the precision is that of what comes next.
    best = np.fmax.accumulate(precisions[..., ::-1], axis=-1)[..., ::-1]
    return best, np.concatenate([0 * front, recalls], axis=-1)

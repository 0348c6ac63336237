import math

import numpy as np
import pytest

from program.cuad_metric import THRESHOLDS, Extraction, aupr, precision_at_recall, threshold_counts

LAW, FEES, TERM = "Ohio law governs this contract", "The Buyer pays all fees at once", "It ends after ten long years"


def scored(*extractions):
    sums = threshold_counts(extractions).sum(axis=0)
    return float(aupr(sums)), float(precision_at_recall(sums))


def at(extraction, threshold):
    counts = threshold_counts([extraction])[0]
    return tuple(counts[np.flatnonzero(np.isclose(THRESHOLDS, threshold, atol=1e-4))[0]].astype(int))


def test_counts_at_a_threshold():
    extraction = Extraction((LAW, FEES), ((LAW, 0.9), (TERM, 0.6), (FEES, 0.305)))
    assert at(extraction, 0.95) == (0, 0, 2)
    assert at(extraction, 0.7) == (1, 0, 1)
    assert at(extraction, 0.5) == (1, 1, 1)
    assert at(extraction, 0.3) == (2, 1, 0)
    assert THRESHOLDS[0] == 0.99 and THRESHOLDS[-2:].tolist() == [0.001, 0.0] and len(THRESHOLDS) == 101


def test_a_confidence_on_the_threshold_is_not_above_it():
    assert at(Extraction((LAW,), ((LAW, 0.0),)), 0.0) == (0, 0, 1)
    assert at(Extraction((), ((LAW, 0.001),)), 0.001) == (0, 0, 0)


def test_several_predictions_of_one_span_count_once_and_one_may_serve_two():
    twice = Extraction((LAW,), ((LAW, 0.9), (LAW + " wholly", 0.8)))
    assert at(twice, 0.5) == (1, 0, 0)
    assert at(Extraction((LAW, LAW + " now"), ((LAW, 0.9),)), 0.5) == (2, 0, 0)
    assert at(Extraction((LAW,), ((LAW, 0.9), (LAW, 0.2))), 0.5) == (0, 0, 1)  # of equal texts the last holds


def test_parties_match_by_containment_and_nothing_else_does():
    predicted = (("between Acme Corp. of Ohio and Beta LLC of Utah as of today", 0.9),)
    assert at(Extraction(("Acme Corp.",), predicted, parties=True), 0.5) == (1, 0, 0)
    assert at(Extraction(("Acme Corp.",), predicted), 0.5) == (0, 1, 1)


def test_perfect_and_useless_extractions():
    assert scored(Extraction((LAW,), ((LAW, 1.0),)), Extraction((), ())) == (1.0, 1.0)
    assert scored(Extraction((LAW,), ((TERM, 1.0),))) == (0.0, 0.0)


def test_the_area_by_hand():
    # Points (recall, precision): (0, 1), then (.5, 1), (.5, 1/2), (1, 2/3); made monotone: 1, 1, 2/3, 2/3.
    sums = threshold_counts([Extraction((LAW, FEES), ((LAW, 0.9), (TERM, 0.6), (FEES, 0.3)))]).sum(axis=0)
    assert float(aupr(sums)) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert float(precision_at_recall(sums)) == pytest.approx(2 / 3)
    assert float(precision_at_recall(sums, 0.5)) == pytest.approx(1.0)


def test_the_last_threshold_is_not_looked_at_for_the_precision_at_a_recall():
    assert scored(Extraction((LAW,), ((LAW, 0.0005),))) == (1.0, 0.0)
    assert scored(Extraction((LAW,), ((LAW, 0.005),))) == (1.0, 1.0)


def test_empty_predictions_empty_gold_and_nothing_at_all():
    assert scored(Extraction((LAW,), ())) == (0.0, 0.0)
    assert scored(Extraction((LAW,), (("", 0.9),))) == (0.0, 0.0)
    for nothing_to_find in ([Extraction((), ())], [Extraction((), ((LAW, 0.9),))]):
        assert all(map(math.isnan, scored(*nothing_to_find)))
    assert threshold_counts([]).shape == (0, 101, 3) and all(map(math.isnan, scored()))


def test_sums_of_resamples_are_scored_together():
    counts = threshold_counts([Extraction((LAW,), ((LAW, 0.9),)), Extraction((LAW,), ((TERM, 0.9),))])
    assert aupr(counts).tolist() == [1.0, 0.0] and precision_at_recall(counts).tolist() == [1.0, 0.0]
    # Precision and recall are both a half below 0.9; from recall 0 on the curve is flat.
    assert float(aupr(counts.sum(axis=0))) == pytest.approx(0.25) and aupr(counts[None]).shape == (1, 2)


def test_refuses_an_empty_gold_text_and_a_confidence_that_is_none():
    with pytest.raises(ValueError, match="empty text"):
        threshold_counts([Extraction(("",), ())])
    for confidence in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="confidence"):
            threshold_counts([Extraction((LAW,), ((LAW, confidence),))])


def reference(extractions):
    """CUAD's evaluate.py in its own steps: (AUPR, precision at 80% recall)."""
    from program.metrics import cuad_match

    precisions, recalls = [1.0], [0.0]
    for threshold in THRESHOLDS:
        kept = [[text for text, c in dict(e.predicted).items() if text and c > threshold] for e in extractions]
        tp, fp, fn = np.sum([cuad_match(k, e.gold, e.parties) for k, e in zip(kept, extractions, strict=True)], axis=0)
        precisions.append(tp / (tp + fp) if tp + fp else math.nan)
        recalls.append(tp / (tp + fn))
    best = precisions[::-1]
    for i in range(1, len(best)):
        best[i] = max(best[i - 1], best[i])
    best = best[::-1]
    area = sum((recalls[i] - recalls[i - 1]) * (best[i] + best[i - 1]) / 2 for i in range(1, len(best)))
    at_recall = next((p for p, r in zip(best[:-1], recalls, strict=False) if r >= 0.8), 0.0)
    return area, at_recall


def test_agrees_with_the_plain_steps_on_random_lists():
    random = np.random.default_rng(0)
    texts = [f"{a} {b} governs all of {c}" for a in "xyz" for b in "uvw" for c in "rst"]
    for _ in range(20):
        extractions = [
            Extraction(
                tuple(random.choice(texts, random.integers(0, 3), replace=False)),
                tuple((str(t), float(c)) for t, c in zip(random.choice(texts, 8), random.random(8), strict=True)),
                parties=bool(random.integers(2)),
            )
            for _ in range(12)
        ]
        assert scored(*extractions) == pytest.approx(reference(extractions))

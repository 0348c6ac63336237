import math

import numpy as np
import pytest

from program.intervals import mcnemar, mean_interval, paired_interval, paired_ratio_interval, ratio_interval
from program.metrics import f1, precision, ratio


def _clustered(rng, n_clusters, size=8, mean=0.6):
    """0/1 marks of `size` questions a contract, whose share of right ones varies from contract to contract."""
    shares = rng.beta(6 * mean, 6 * (1 - mean), n_clusters)
    marks = rng.random((n_clusters, size)) < shares[:, None]
    return marks.astype(float).ravel(), np.repeat([f"c{i}" for i in range(n_clusters)], size)


@pytest.mark.parametrize("n_clusters", [8, 30])
def test_intervals_hold_the_truth_about_as_often_as_they_say(n_clusters):
    rng, held, trials = np.random.default_rng(1), 0, 300
    for trial in range(trials):
        found = mean_interval(*_clustered(rng, n_clusters), resamples=400, seed=trial)
        held += found.low <= 0.6 <= found.high
    assert 0.91 <= held / trials <= 0.985  # plain percentiles: 0.885 at 8 clusters; clusters ignored: 0.80


def test_clusters_count_not_rows():
    values, clusters = np.repeat([1.0, 0.0, 1.0, 0.0, 1.0, 0.0], 20), np.repeat(list("abcdef"), 20)
    by_contract = mean_interval(values, clusters)
    by_question = mean_interval(values, [str(i) for i in range(120)])
    assert by_contract.mean == by_question.mean == 0.5
    assert by_contract.high - by_contract.low > 3 * (by_question.high - by_question.low)
    assert (by_contract.n, by_contract.n_clusters) == (120, 6)


def test_pairing_is_narrower_than_two_intervals():
    rng = np.random.default_rng(2)
    before, clusters = _clustered(rng, 20)
    after = np.where(rng.random(len(before)) < 0.1, 1.0, before)
    paired = paired_interval(before, after, clusters)
    alone = mean_interval(before, clusters)
    assert paired.difference == pytest.approx(after.mean() - before.mean())
    assert paired.high - paired.low < alone.high - alone.low
    assert paired.low > 0 and paired.p_value < 0.05


def test_no_change_is_no_finding():
    rng = np.random.default_rng(3)
    before, clusters = _clustered(rng, 20)
    same = paired_interval(before, before, clusters)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert paired_interval(before, rng.permutation(before), clusters).p_value > 0.05


def test_pooled_ratios_pair_and_match_the_mean():
    values, clusters = [1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "c"]
    counts = np.stack([values, np.ones(4)], axis=1)
    assert ratio_interval(counts, clusters, ratio) == mean_interval(values, clusters)
    found = ratio_interval([(2, 1, 0), (0, 3, 1), (4, 0, 0)], list("abc"), f1)
    assert found.mean == pytest.approx(12 / 17) and found.low < found.mean < found.high
    changed = paired_ratio_interval([(1, 1, 0), (1, 1, 0)], [(2, 0, 0), (2, 0, 0)], list("ab"), precision)
    assert changed.difference == changed.low == 0.5


def test_order_of_rows_does_not_matter_and_the_seed_does():
    values, clusters = _clustered(np.random.default_rng(4), 12)
    order = np.random.default_rng(5).permutation(len(values))
    first, shuffled = mean_interval(values, clusters), mean_interval(values[order], clusters[order])
    assert (first.low, first.high) == pytest.approx((shuffled.low, shuffled.high))
    values = np.random.default_rng(6).random(len(values))
    assert mean_interval(values, clusters, seed=1) != mean_interval(values, clusters, seed=2)


def test_one_cluster_gives_no_interval():
    found = mean_interval([1.0, 0.0], ["a", "a"])
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    paired = paired_interval([0.0, 0.0], [1.0, 0.0], ["a", "a"])
    assert paired.difference == 0.5 and math.isnan(paired.low) and math.isnan(paired.p_value)


def test_nothing_to_measure_is_nan():
    found = ratio_interval([(0, 0, 2), (0, 0, 1)], ["a", "b"], precision)
    assert math.isnan(found.mean) and math.isnan(found.low)


@pytest.mark.parametrize(
    ("values", "clusters", "level", "message"),
    [
        ([], [], 0.95, "no rows"),
        ([1.0, float("nan")], ["a", "b"], 0.95, "nan"),
        ([1.0], ["a", "b"], 0.95, "cluster names"),
        ([1.0, 0.0], ["a", "b"], 95, "level"),
        ([[1.0], [0.0]], ["a", "b"], 0.95, "shape"),
    ],
)
def test_bad_input_is_refused(values, clusters, level, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, clusters, level=level)


def test_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match="same questions"):
        paired_interval([1.0], [1.0, 0.0], ["a", "b"])


def test_mcnemar_by_hand():
    before, after = [False] * 5 + [True] + [True, False], [True] * 5 + [False] + [True, False]
    found = mcnemar(before, after)
    assert (found.gains, found.losses) == (5, 1)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar([True], [True]).p_value == 1

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.stats import ks_2samp, kstest

from program.drift.betting import log_capital, lower_limit, step
from program.drift.mmd import mmd2
from program.drift.permutation import cluster_permutation, holm
from program.drift.pooling import Limits, pool, sampled
from program.drift.signals import SIGNALS
from program.drift.types import DriftError, Observation, TooFewError
from program.drift.windows import window_of

QUICK = Limits(permutations=499, max_points=60, min_contracts=5)
NAMES = tuple(SIGNALS)


def _window(rng, n_contracts=12, size=5, *, shift=0.0, alike=1.0):
    """Questions of contracts that are alike in all that is measured; `shift` moves all of it."""
    rows = []
    for number in range(n_contracts):
        own = alike * rng.normal(size=4)
        for _ in range(size):
            point = np.concatenate([own[:2] + shift, rng.normal(size=2)])
            score = 0.5 + 0.1 * own[2] - 0.1 * shift + 0.1 * rng.normal()
            rows.append(
                Observation(
                    at=float(len(rows)),
                    contract_id=f"c{number}",
                    question_embedding=tuple(point),
                    passage_embedding=tuple(point[::-1]),
                    retrieval_score=score,
                    confidence=float(np.clip(score, 0, 1)),
                    p_answered=float(np.clip(1 - score, 0, 1)),
                    abstained=bool(rng.random() < np.clip(0.4 + 0.2 * own[3] + 0.2 * shift, 0, 1)),
                    category=f"k{int(np.clip(own[3] + rng.normal() + shift, -2, 2))}",
                    words=tuple(f"w{int(i)}" for i in 200 * shift + 20 * own[3] + 20 * rng.normal(size=6)),
                    judge_score=score,
                )
            )
    return window_of(rows)


@cache
def _pairs(n, before, after, **like):
    rng = np.random.default_rng(7)
    return [(_window(rng, *before, **like), _window(rng, *after, **like)) for _ in range(n)]


@pytest.mark.parametrize("name", NAMES)
def test_p_values_are_uniform_where_nothing_changed(name):
    rng = np.random.default_rng(5)
    found = [SIGNALS[name](*pair, rng, QUICK).p_value for pair in _pairs(200, (12, 3), (8, 3))]
    # p-values above a half are coarse, since drawing ends early there: it is small ones that must not be too many.
    assert kstest(found, "uniform", alternative="greater").pvalue > 0.01
    assert 0.03 <= np.mean(np.array(found) <= 0.1) <= 0.17


@pytest.mark.parametrize("name", NAMES)
def test_a_change_is_seen(name):
    rng = np.random.default_rng(6)
    found = [SIGNALS[name](_window(rng, 20), _window(rng, 15, shift=1.7), rng, QUICK).p_value for _ in range(5)]
    assert np.median(found) <= 0.01


@pytest.mark.parametrize("name", ["confidence", "abstention", "category_mix", "question_embedding", "oov_share"])
def test_contracts_are_what_is_exchanged_not_questions(name):
    def rate(pairs):
        rng = np.random.default_rng(8)
        return np.mean([SIGNALS[name](*pair, rng, QUICK).p_value <= 0.05 for pair in pairs])

    pairs = _pairs(60, (12, 8), (12, 8), alike=2.0)
    assert rate(pairs) <= 0.1
    alone = [[replace(side, contract=np.arange(side.n), contracts=("",) * side.n) for side in pair] for pair in pairs]
    assert rate(alone) >= 0.2  # questions taken as independent: a false alarm in five, and more


def test_a_contract_on_both_sides_is_two_units():
    rng = np.random.default_rng(8)
    pooled = pool("confidence", *[(side, np.ones(side.n, bool)) for side in (_window(rng), _window(rng))], QUICK)
    assert len(pooled.is_current) == 24 and pooled.is_current.sum() == 12


def test_large_contracts_are_thinned_alike_on_both_sides():
    rng = np.random.default_rng(9)
    sides = _window(rng, 40, 20), _window(rng, 10, 20)
    pooled = pool("confidence", *[(side, np.ones(side.n, bool)) for side in sides], QUICK)
    kept = sampled(pooled, rng, 60)
    sizes = np.bincount(kept.unit)
    assert set(sizes) == {4} and kept.is_current.sum() == 10 and (~kept.is_current).sum() == 15
    assert len(kept.rows[0]) == 60 and len(kept.rows[1]) == 40
    # The rows are still those of their contracts.
    current = sides[1].contract[kept.rows[1]]
    assert len(set(zip(current, kept.unit[60:], strict=True))) == 10


def test_mmd_by_hand():
    # k(0, 1) = e^-1/2: both sides' means of k are (2 + 2k)/4 and 1, between them (1 + k)/2.
    assert mmd2(np.array([[0.0], [1.0]]), np.array([[0.0]]), bandwidth=1.0) == pytest.approx(
        (2 + 2 * np.exp(-0.5)) / 4 + 1 - (1 + np.exp(-0.5))
    )
    assert mmd2(np.zeros((3, 2)), np.zeros((4, 2)), 1.0) == pytest.approx(0, abs=1e-12)


def _pair(before, after, **fields):
    return tuple(
        window_of([Observation(at=float(i), contract_id=f"{i}", **{k: f(v) for k, f in fields.items()})
                   for i, v in enumerate(side)])
        for side in (before, after)
    )  # fmt: skip


def test_js_by_hand():
    sides = _pair("aaaaaa", "aaabbb", category=str)
    found = SIGNALS["category_mix"](*sides, np.random.default_rng(0), QUICK)
    # p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4), in bits.
    by_hand = 0.5 * np.log2(4 / 3) + 0.5 * (0.5 * np.log2(2 / 3) + 0.5 * np.log2(2))
    assert found.statistic == pytest.approx(by_hand) and "'a' changed most, by -50.0 points" in found.about


def test_free_questions_are_a_category():
    sides = _pair("ababab", "......", category=lambda name: None if name == "." else name)
    found = SIGNALS["category_mix"](*sides, np.random.default_rng(0), QUICK)
    assert found.statistic == pytest.approx(1) and "'free questions' changed most, by +100.0" in found.about


def test_ks_is_scipys():
    rng = np.random.default_rng(1)
    before, after = rng.normal(size=30).round(1), rng.normal(0.5, size=20).round(1)
    found = SIGNALS["retrieval_score"](*_pair(before, after, retrieval_score=float), rng, QUICK)
    assert found.statistic == pytest.approx(ks_2samp(before, after).statistic)
    assert found.effect == pytest.approx(after.mean() - before.mean())


def test_shares_by_hand():
    sides = _pair([0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0], abstained=bool)
    found = SIGNALS["abstention"](*sides, np.random.default_rng(0), QUICK)
    assert found.statistic == pytest.approx(1 / 3) and found.effect == pytest.approx(1 / 3)
    fewer = SIGNALS["abstention"](sides[1], sides[0], np.random.default_rng(0), QUICK)
    assert fewer.effect == pytest.approx(-1 / 3) and fewer.statistic == pytest.approx(1 / 3)


def test_new_words_are_counted_against_half_of_the_reference():
    sides = _pair(["old"] * 12, ["old"] * 3 + ["new"] * 9, words=lambda word: (word, word))
    found = SIGNALS["oov_share"](*sides, np.random.default_rng(0), QUICK)
    assert found.effect == pytest.approx(0.75) and found.n_reference == 6 and found.n_current == 12


def test_nothing_to_tell_apart_is_no_change():
    sides = _pair([0.5] * 8, [0.5] * 8, confidence=float, question_embedding=lambda v: (v, v), words=lambda v: ("w",))
    for name in ("confidence", "question_embedding", "abstention", "category_mix", "oov_share"):
        assert SIGNALS[name](*sides, np.random.default_rng(0), Limits(99, 100, 4)).p_value == 1.0


@pytest.mark.parametrize("name", ["confidence", "judge_score", "question_embedding"])
def test_infinity_in_a_window_made_by_hand_is_refused(name):
    rng = np.random.default_rng(2)
    before, after = _window(rng), _window(rng)
    values = getattr(after, name)
    values.reshape(len(values), -1)[3, 0] = np.inf
    with pytest.raises(DriftError, match="nan or infinity"):
        SIGNALS[name](before, after, rng, Limits(99, 10**6, 5))


def test_embeddings_of_two_models_are_refused():
    rng = np.random.default_rng(2)
    other = window_of([Observation(at=float(i), question_embedding=(0.0, 1.0)) for i in range(20)])
    with pytest.raises(DriftError, match="one model"):
        SIGNALS["question_embedding"](_window(rng), other, rng, QUICK)


def test_too_few_contracts_say_how_many_more():
    rng = np.random.default_rng(3)
    with pytest.raises(TooFewError, match="4 contracts of the window; 1 more"):
        SIGNALS["confidence"](_window(rng), _window(rng, 4), rng, QUICK)
    unmeasured = window_of([Observation(at=float(i), contract_id=f"{i}") for i in range(9)])
    with pytest.raises(TooFewError, match="0 contracts of the reference; 5 more"):
        SIGNALS["judge_score"](unmeasured, _window(rng), rng, QUICK)


def test_the_same_seed_gives_the_same_result():
    sides = _window(np.random.default_rng(4)), _window(np.random.default_rng(5))
    for name in NAMES:
        first, second = (SIGNALS[name](*sides, np.random.default_rng(1), QUICK) for _ in range(2))
        assert first == second


def test_permutations_by_hand():
    # Of the 3 choices of one unit among (0, 0, 9), one is as extreme as what was observed.
    values = np.array([0.0, 0.0, 9.0])
    found = cluster_permutation(
        lambda marks: marks @ values, values > 5, np.random.default_rng(0), permutations=3000, exceedances=10**6
    )
    assert found.statistic == 9 and found.n_permutations == 3000
    assert found.p_value == pytest.approx(1 / 3, abs=0.03) and found.null_mean == pytest.approx(3, abs=0.3)
    early = cluster_permutation(lambda marks: marks @ values, values > 5, np.random.default_rng(0))
    assert early.n_permutations < 100 and early.p_value == pytest.approx(10 / early.n_permutations)


def test_permutations_keep_how_many_are_current():
    seen = []
    is_current = np.repeat([False, True], [7, 3])
    cluster_permutation(lambda marks: seen.append(marks) or marks[:, 0], is_current, np.random.default_rng(0))
    marks = np.concatenate(seen[1:])
    assert set(marks.sum(axis=1)) == {3.0}
    assert np.abs(marks.mean(axis=0) - 0.3).max() < 0.15


def test_a_p_value_is_never_0():
    values = np.arange(40.0)
    found = cluster_permutation(lambda marks: marks @ values, values > 19, np.random.default_rng(0), permutations=199)
    assert found.p_value == 1 / 200


def test_holm():
    p_values = {"a": 0.01, "b": 0.02, "c": 0.03, "d": 0.2}
    assert holm(p_values, 0.05) == ("a",)  # .02 > .05/3
    assert holm({**p_values, "b": 0.016}, 0.05) == ("a", "b")  # .03 > .05/2
    assert holm({"a": 0.0126}, 0.05) == ("a",) and holm({"a": 0.0126, **dict.fromkeys("bcd", 1.0)}, 0.05) == ()
    assert holm({}, 0.05) == ()


def test_capital_stays_under_one_over_alpha_whenever_one_looks():
    rng, passed = np.random.default_rng(1), {0.1: 0, 0.02: 0}
    for _ in range(400):
        wealth = log_capital(rng.beta(1.4, 0.6, 300), 0.7)  # the mean is .7: nothing fell
        for alpha in passed:
            passed[alpha] += wealth.max() >= -np.log(alpha)
    assert passed[0.1] <= 400 * 0.1 and passed[0.02] <= 400 * 0.02 + 4
    assert log_capital(rng.beta(1.0, 1.0, 300), 0.7)[-1] > 7  # fell to .5


def test_capital_by_hand():
    # λ = fraction / (1 − ½); a value of 0 pays 1 + λ/2, one of 1 takes λ/2.
    grown = np.array([[1 + f, 1 - f] for f in (0.05, 0.12, 0.3, 0.7)])
    assert np.exp(log_capital([0.0, 1.0], 0.5)) == pytest.approx([grown[:, 0].mean(), grown.prod(axis=1).mean()])


def test_detector_alarms_at_most_as_often_as_it_says():
    rng, alarms, checks, threshold = np.random.default_rng(2), 0, 0, 50.0
    for _ in range(60):
        wealth = ()
        for _ in range(200):
            wealth = step(wealth, rng.random(int(rng.integers(0, 4))) < 0.8, 0.8)
            checks += 1
            if np.mean(wealth) >= threshold:
                alarms, wealth = alarms + 1, ()
    assert 0 < alarms <= checks / threshold


def test_detector_counts_one_for_a_check_without_values():
    assert np.mean(step(step((), [], 0.8), [], 0.8)) == 2
    assert all(np.isfinite(step((), np.zeros(5000), 0.8)))


def test_lower_limit_holds_as_often_as_it_says():
    rng = np.random.default_rng(3)
    limits = [lower_limit(rng.beta(4, 1, 60), 0.1) for _ in range(100)]
    assert np.mean(np.array(limits) > 0.8) <= 0.1
    assert 0.7 < np.mean(limits) < 0.8
    assert lower_limit([], 0.1) == lower_limit([0.0, 0.0], 0.1) == 0 and lower_limit([1.0] * 500, 0.1) > 0.97


def test_values_out_of_range_are_no_bets():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        step((), [0.5, float("nan")], 0.5)
    with pytest.raises(ValueError, match="nothing can be won"):
        step((), [0.5], 0.0)

"""What the gate promises, by simulation: seldom a promotion without a gain, nearly always one with a large gain."""

import numpy as np
import pytest

from program.gate.decide import decide
from program.gate.power import design_effect, questions_for_margin, questions_needed
from program.gate.types import Evidence, GateRules, Side
from program.intervals import mcnemar, paired_interval

PER_CONTRACT = 6
SIMULATIONS = 400
RULES = GateRules(
    detectable=0.2, discordance=0.4, max_decisions=1, max_length_ratio=None, max_abstention_change=None,
    max_latency_ratio=None, max_memory_ratio=None, resamples=400,
)  # fmt: skip


def rows(scores):
    """Score rows of (contracts, questions) marks, with no more than the gate reads."""
    fixed = {"gold_answer": "Ohio", "gold_quotes": [], "quotes": [], "error": None, "found": True, "seconds": 0.1}
    return [
        fixed | {"question_id": f"{c}/{q}", "contract_id": str(c), "answer": "", "exact_match": float(score)}
        for c, of_contract in enumerate(scores) for q, score in enumerate(of_contract)
    ]  # fmt: skip


def drawn(rng, gain, n_contracts=30, spread=0.0):
    """Marks of both sides: candidate right with 0.5 + `gain`, by contract more or less by up to `spread`."""
    shift = rng.uniform(-spread, spread, (n_contracts, 1))
    before = rng.random((n_contracts, PER_CONTRACT)) < 0.5 - shift
    after = rng.random((n_contracts, PER_CONTRACT)) < 0.5 + gain + shift
    return before, after


def verdicts(gain, spread, rules=RULES, simulations=SIMULATIONS, seed=0):
    rng, texts = np.random.default_rng(seed), {str(c): "" for c in range(100)}
    for _ in range(simulations):
        before, after = drawn(rng, gain, spread=spread)
        yield decide(Evidence(Side("live", rows(before)), Side("new", rows(after)), texts), rules).verdict


def at_most(rate, n):
    """Three standard errors above a rate that n simulations were drawn at."""
    return rate + 3 * (rate * (1 - rate) / n) ** 0.5


def test_without_a_gain_a_promotion_is_as_rare_as_the_level_says():
    """With answers that hang together by contract, and enough questions that the gain is looked at nearly always."""
    told = list(verdicts(0.0, spread=0.2))
    assert told.count("promote") / SIMULATIONS <= at_most((1 - RULES.level) / 2, SIMULATIONS)
    assert told.count("undecided") / SIMULATIONS < 0.05


def test_a_large_gain_is_promoted():
    assert np.mean([verdict == "promote" for verdict in verdicts(0.3, 0.0, simulations=100)]) > 0.97


def test_both_tests_are_needed():
    """McNemar's alone trusts questions of one contract too much; the bootstrap alone trusts a few changed answers."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(SIMULATIONS):
        before, after = drawn(rng, 0.0, n_contracts=30, spread=0.45)
        told = mcnemar(before.ravel(), after.ravel())
        wrong += told.gains > told.losses and told.p_value < 0.05
    assert wrong / SIMULATIONS > at_most(0.025, SIMULATIONS)
    before, after = np.zeros((30, PER_CONTRACT)), np.zeros((30, PER_CONTRACT))
    after[:5, 0] = 1  # five answers in five contracts turned right, none wrong: p = 0.0625
    contracts = np.repeat(np.arange(30).astype(str), PER_CONTRACT)
    assert paired_interval(before.ravel(), after.ravel(), contracts).low > 0
    rules = GateRules(**{name: getattr(RULES, name) for name in RULES.__slots__} | {"discordance": 0.2})
    told = decide(Evidence(Side("a", rows(before)), Side("b", rows(after)), {str(c): "" for c in range(30)}), rules)
    assert [(c.name, c.passed) for c in told.checks[2:4]] == [("gain", True), ("mcnemar", False)]


def test_twelve_decisions_on_one_test_set_are_together_as_rare_as_one():
    """Twelve candidates that are no better: at an unwidened level one of them would pass far too often."""
    rng, families = np.random.default_rng(2), 40
    fooled, fooled_unwidened = 0, 0
    contracts = np.repeat(np.arange(40).astype(str), PER_CONTRACT)
    for _ in range(families):
        before = (rng.random((40, PER_CONTRACT)) < 0.5).ravel()
        others = [(rng.random(before.shape) < 0.5) for _ in range(12)]
        lows = {
            level: [paired_interval(before, after, contracts, level=level, resamples=600).low for after in others]
            for level in (1 - 0.05 / 12, 0.95)
        }
        fooled += max(lows[1 - 0.05 / 12]) > 0
        fooled_unwidened += max(lows[0.95]) > 0
    assert fooled / families <= at_most(0.025, families)
    assert fooled_unwidened / families > 0.1


@pytest.mark.parametrize(
    ("discordance", "gain", "level"),
    [(0.25, 0.05, 0.95), (0.2, 0.1, 0.95), (0.1, 0.05, 1 - 0.05 / 12), (0.1, 0.1, 0.9)],
)
def test_the_questions_needed_give_the_power_that_was_asked_for(discordance, gain, level):
    def power(n):
        rng = np.random.default_rng(0)
        chances = [(discordance + gain) / 2, (discordance - gain) / 2, 1 - discordance]
        drawn = [(gains, losses) for gains, losses, _ in rng.multinomial(n, chances, 1000)]
        tests = {pair: mcnemar([False] * pair[0] + [True] * pair[1], [True] * pair[0] + [False] * pair[1]).p_value
                 for pair in set(drawn)}  # fmt: skip
        return np.mean([pair[0] > pair[1] and tests[pair] < 1 - level for pair in drawn])

    n = questions_needed(discordance, gain, level, 0.8)
    assert power(n) > 0.77 and power(int(0.7 * n)) < 0.75


def test_questions_needed_by_hand():
    # Connor's formula: (1.96 sqrt(.2) + .8416 sqrt(.2 - .01))^2 / .01 = 154.5; corrected 174.0.
    assert questions_needed(0.2, 0.1, 0.95, 0.8) == pytest.approx(174, abs=1)
    assert questions_needed(0.2, 0.1, 0.95, 0.8, 2.0) == pytest.approx(348, abs=1)
    assert questions_needed(0.2, 0.1, 0.95, 0.8, 0.5) == questions_needed(0.2, 0.1, 0.95, 0.8)
    with pytest.raises(ValueError, match="0 < detectable <= discordance"):
        questions_needed(0.1, 0.2, 0.95, 0.8)
    # Var of 5% +1, 5% -1: 0.1; (1.96 + .8416)^2 * 0.1 / 0.0004 = 1962.
    differences = [1] * 5 + [-1] * 5 + [0] * 90
    assert questions_for_margin(differences, 0.02, 0.95, 0.8) == pytest.approx(1962, abs=2)


def test_design_effect_of_known_correlations():
    contracts = np.repeat(np.arange(200), 10).astype(str)
    rng = np.random.default_rng(0)
    of_contract = np.repeat(rng.normal(size=200), 10)
    assert design_effect(of_contract, contracts) == pytest.approx(10)  # all alike: a contract is one question
    assert design_effect(of_contract + rng.normal(size=2000), contracts) == pytest.approx(1 + 9 * 0.5, abs=0.7)
    independent = rng.normal(size=2000)
    assert design_effect(independent, contracts) == pytest.approx(1, abs=0.3)
    assert design_effect(independent + 3, contracts) == pytest.approx(design_effect(independent, contracts))
    assert design_effect([0.0] * 4, list("aabb")) == 1.0
    assert design_effect([0.0, 1.0], list("ab")) == 1.0
    assert design_effect([0.0, 1.0], list("aa")) == 2.0
    with pytest.raises(ValueError, match="one name a difference"):
        design_effect([0.0], [])

import math
from random import Random

import numpy as np
import pytest

from modules.absence import MAX_FALSE_ABSENT, AnswerModel, Evidence, evidence, fit_answer_model, p_answered


def test_evidence_by_hand():
    found = evidence([0.1, 0.7, 0.4], [3.0, 1.0])
    assert found.best == 0.7 and found.second == 0.4
    assert found.above_mean == pytest.approx(0.3) and found.spreads == pytest.approx(0.3 / np.std([0.1, 0.7, 0.4]))
    assert found.words == pytest.approx(math.log(4))
    alone = evidence([0.5], [])
    assert (alone.best, alone.second, alone.above_mean, alone.spreads, alone.words) == (0.5, 0.5, 0.0, 0.0, 0.0)


def drawn(n=600, seed=0):
    """Questions that are answered where the best cosine is high; "rare" ones hardly ever."""
    rng = Random(seed)
    queries, found, answered = [], [], []
    for i in range(n):
        query = ("common", "rare")[i % 2]
        best = rng.random()
        logit = 8 * best - 4 - (3 if query == "rare" else 0)
        queries.append(query)
        found.append(Evidence(best, rng.random(), rng.random(), rng.random(), rng.random()))
        answered.append(rng.random() < 1 / (1 + math.exp(-logit)))
    return queries, found, answered


def test_probabilities_are_calibrated_on_what_was_not_fitted():
    model = fit_answer_model(*drawn(2000))
    queries, found, answered = drawn(4000, seed=1)
    stated = np.array([p_answered(model, query, one) for query, one in zip(queries, found, strict=True)])
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (stated >= low) & (stated < low + 0.25)
        assert stated[inside].mean() == pytest.approx(np.array(answered)[inside].mean(), abs=0.06)
    assert model.by_query["common"] - model.by_query["rare"] > 2
    assert (
        p_answered(model, "common", found[0]) > p_answered(model, "new", found[0]) > p_answered(model, "rare", found[0])
    )


def test_few_answered_questions_are_called_absent():
    queries, found, answered = drawn()
    model = fit_answer_model(queries, found, answered)
    absent = [p_answered(model, q, one) < model.threshold for q, one in zip(queries, found, strict=True)]
    wrongly = np.mean([called for called, yes in zip(absent, answered, strict=True) if yes])
    assert 0 < wrongly <= MAX_FALSE_ABSENT
    assert np.mean([called for called, yes in zip(absent, answered, strict=True) if not yes]) > 0.3


@pytest.mark.parametrize("answered", [[True] * 4, [False] * 4])
def test_one_kind_alone_is_refused(answered):
    with pytest.raises(ValueError, match="some of either kind|some that are, some that are not"):
        fit_answer_model(["q"] * 4, [Evidence(0.1, 0.1, 0.1, 1.0, 1.0)] * 4, answered)


def test_a_model_has_a_weight_for_each_kind_of_evidence():
    with pytest.raises(ValueError, match="2 weights"):
        AnswerModel((1.0, 2.0), 0.0, {}, 0.5)

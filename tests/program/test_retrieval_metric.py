import math

import pytest

from corpora.types import Span
from program.retrieval_metric import character_scores, recall_in_chars


def test_precision_and_recall_of_characters_by_hand():
    gold = [("a", Span(10, 20)), ("a", Span(30, 40))]
    assert character_scores(gold, [("a", Span(15, 35))]) == (10 / 20, 10 / 20)
    assert character_scores(gold, [("a", Span(0, 100))]) == (20 / 100, 1.0)
    assert character_scores(gold, [("b", Span(10, 40))]) == (0.0, 0.0)
    assert character_scores(gold, [("a", Span(10, 20)), ("b", Span(0, 10))]) == (0.5, 0.5)


def test_characters_count_once():
    gold = [("a", Span(10, 20)), ("a", Span(15, 20)), ("a", Span(20, 30))]
    got = [("a", Span(0, 20)), ("a", Span(10, 30)), ("a", Span(0, 5))]
    assert character_scores(gold, got) == (20 / 30, 1.0)


def test_nothing_retrieved_and_nothing_to_find():
    precision, recall = character_scores([("a", Span(0, 5))], [])
    assert math.isnan(precision) and recall == 0.0
    precision, recall = character_scores([], [("a", Span(0, 5))])
    assert precision == 0.0 and math.isnan(recall)
    assert character_scores([("a", Span(0, 5))], [("a", Span(2, 2)), ("a", Span(0, 5))]) == pytest.approx((1.0, 1.0))


def test_recall_counts_the_first_characters_retrieved():
    gold = [("a", Span(10, 20)), ("a", Span(40, 50))]
    ranked = [("a", Span(0, 15)), ("a", Span(40, 60)), ("a", Span(15, 20))]
    assert recall_in_chars(gold, ranked, 5) == 0.0
    assert recall_in_chars(gold, ranked, 12) == pytest.approx(0.1)
    assert recall_in_chars(gold, ranked, 20) == pytest.approx(0.5)
    assert recall_in_chars(gold, ranked, 39) == pytest.approx(0.95)
    assert recall_in_chars(gold, ranked, 1000) == 1.0
    assert math.isnan(recall_in_chars([], ranked, 100)) and recall_in_chars(gold, [], 100) == 0.0

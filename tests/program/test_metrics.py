import math
from types import SimpleNamespace

import pytest

from modules.signatures import NOT_FOUND
from program.metrics import (
    absence_scores,
    cuad_match,
    cuad_scores,
    exact_match,
    exact_match_metric,
    normalize,
    review_metric,
    token_f1,
    token_f1_metric,
)


def test_normalize_is_squads():
    assert normalize("The  State of\nOhio, U.S.A.") == "state of ohio usa"
    assert normalize("Theatre and another") == "theatre and another"  # articles as words only


@pytest.mark.parametrize("gold", ["the State of Ohio", "The", "%", "30 days", NOT_FOUND])
@pytest.mark.parametrize("grader", [exact_match, token_f1])
def test_graders_take_gold_and_refuse_garbage(grader, gold):
    assert grader(gold, gold) == 1
    for garbage in ("", ":", "a", "xyzzy"):
        assert grader(garbage, gold) == 0


def test_empty_answers():
    assert exact_match("", "") and token_f1("", "") == 1
    assert token_f1("Ohio", "") == 0


def test_token_f1_by_hand():
    assert token_f1("State of Ohio", "laws of State of Ohio") == pytest.approx(2 * 3 / (3 + 5))
    assert token_f1("Ohio Ohio", "Ohio") == pytest.approx(2 / 3)  # bags: the second Ohio is not shared


def test_cuad_match_counts_gold_for_recall_and_predictions_for_precision():
    assert cuad_match(["governed by laws of Ohio"], ["governed by the laws of Ohio"]) == (1, 0, 0)
    assert cuad_match(["a b c d", "x"], ["a b c d"]) == (1, 1, 0)
    assert cuad_match(["a b c d"], ["a b c d", "a b c d e", "y z"]) == (2, 0, 1)  # one prediction serves two
    assert cuad_match([], ["a"]) == (0, 0, 1)
    assert cuad_match(["a"], []) == (0, 1, 0)
    assert cuad_match([], []) == (0, 0, 0)


def test_cuad_words_are_those_of_its_own_script():
    assert cuad_match(["Licensor/Licensee"], ["licensor, licensee."]) == (1, 0, 0)
    assert cuad_match(["a b"], ["a b c d"]) == (1, 0, 0)  # 2 / 4: the threshold counts
    assert cuad_match(["a"], ["a b c"]) == (0, 1, 1)
    assert cuad_match(["a\nb"], ["a b"]) == (0, 1, 1)  # only spaces split


def test_parties_match_by_containment_only_for_parties():
    long = "by and between Acme Corp. a corporation of the State of Ohio and others"
    assert cuad_match([long], ["Acme Corp."], parties=True) == (1, 0, 0)
    assert cuad_match([long], ["Acme Corp."]) == (0, 1, 1)


def test_an_empty_gold_span_is_refused():
    with pytest.raises(ValueError, match="empty text"):
        cuad_match(["anything"], [""], parties=True)


def test_cuad_scores_pool_counts():
    assert cuad_scores([(1, 0, 1), (1, 2, 0)]) == pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7})
    assert all(math.isnan(value) for value in cuad_scores([]).values())
    nothing_predicted = cuad_scores([(0, 0, 2)])
    assert math.isnan(nothing_predicted["precision"]) and nothing_predicted["recall"] == nothing_predicted["f1"] == 0


def test_absence_scores_by_hand():
    scores = absence_scores([False, False, True, True, False], [False, True, True, False, False])
    assert scores == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "false_absence_rate": 1 / 2})


def test_absence_scores_with_nothing_to_measure():
    assert all(math.isnan(value) for value in absence_scores([], []).values())
    all_present = absence_scores([True], [True])
    assert math.isnan(all_present["precision"]) and all_present["false_absence_rate"] == 0
    with pytest.raises(ValueError):
        absence_scores([True], [])


def test_review_metric_needs_found_to_agree():
    asked, absent = SimpleNamespace(answer="Ohio"), SimpleNamespace(answer=NOT_FOUND)
    cases = [
        (asked, "ohio.", True, 1.0),
        (asked, "Ohio", False, 0.0),
        (asked, "Texas", True, 0.0),
        (absent, NOT_FOUND, False, 1.0),
        (absent, NOT_FOUND, True, 0.0),
        (absent, "Ohio", True, 0.0),
    ]
    for example, answer, found, wanted in cases:
        assert review_metric(example, SimpleNamespace(answer=answer, found=found)) == wanted


def test_wrappers_read_the_answer_field():
    example, prediction = SimpleNamespace(answer="State of Ohio"), SimpleNamespace(answer="Ohio")
    assert exact_match_metric(example, prediction) == 0.0
    assert token_f1_metric(example, prediction, trace=[]) == pytest.approx(0.5)

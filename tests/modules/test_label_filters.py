import math

import numpy as np
import pytest

from corpora.labels.types import Draft
from corpora.synthetic.house import house_names
from corpora.synthetic.writer import write_corpus
from corpora.types import Label, Question, Span
from modules.label_filters import (
    apply_filters,
    confident,
    count_reasons,
    difficulty_weights,
    fit_confidence,
    quota,
    verbatim,
)
from modules.signatures import NOT_FOUND

TEXT = "This Agreement is governed by the laws of the State of Ohio. The fee is $3,500,000.   \n"
TEXTS = {"c": TEXT}
OHIO = "the laws of the State of Ohio"


def draft(*quotes, answer=None, confidence=None, category="Governing Law", contract_id="c", spans=None):
    if spans is None:
        spans = tuple(Span(TEXT.index(quote), TEXT.index(quote) + len(quote)) for quote in quotes)
    question = Question(f"{contract_id}__{category}", contract_id, category, "Which law governs this Agreement?")
    return Draft(Label(question, spans, answer), "write", "a model", confidence=confidence)


def kinds(keep, *drafts):
    return [why and why.split(":")[0] for why in keep(drafts)]


def test_each_filter_sees_what_those_before_it_kept():
    drafts = [draft(OHIO), draft(spans=(Span(5, 5),)), draft(OHIO, confidence=0.1), draft(OHIO, confidence=0.9)]
    seen = []
    filters = {
        "verbatim": verbatim(TEXTS),
        "confident": confident(0.5, 0.5),
        "last": lambda batch: seen.extend(batch) or [None] * len(batch),
    }
    done = apply_filters(drafts, filters)
    trail = (("verbatim", ""), ("confident", ""), ("last", ""))
    assert done.kept == ((drafts[0], trail), (drafts[3], trail))
    assert [(one, name) for one, name, _ in done.dropped] == [(drafts[1], "verbatim"), (drafts[2], "confident")]
    assert done.funnel == (("verbatim", 4, 3), ("confident", 3, 2), ("last", 2, 2))
    assert all(n_in == before[2] for before, (_, n_in, _) in zip(done.funnel, done.funnel[1:], strict=False))
    assert seen == [drafts[0], drafts[3]]
    assert count_reasons(done) == {("verbatim", "empty span"): 1, ("confident", "low confidence"): 1}


def test_a_filter_is_not_called_for_nothing():
    def never(batch):
        raise AssertionError("called")

    done = apply_filters([draft(spans=(Span(5, 5),))], {"verbatim": verbatim(TEXTS), "never": never})
    assert done.kept == () and done.funnel == (("verbatim", 1, 0), ("never", 0, 0))


@pytest.mark.parametrize("outcomes", [[False], [ValueError("no")], [""], [" "], [], [None, None]])
def test_what_is_neither_none_nor_a_reason_stops_the_chain(outcomes):
    with pytest.raises(ValueError, match="outcomes for 1 drafts"):
        apply_filters([draft(OHIO)], {"bad": lambda batch: outcomes})


def test_verbatim_accepts_what_stands_in_the_contract():
    good = [
        draft(OHIO),
        draft(OHIO, answer="State of Ohio"),
        draft(OHIO, "$3,500,000", answer="Ohio, $3,500,000"),
        draft(spans=(Span(0, 20), Span(10, 30))),
        draft(),
        draft(answer=NOT_FOUND),
    ]
    assert verbatim(TEXTS)(good) == [None] * len(good)


@pytest.mark.parametrize(
    "bad, kind",
    [
        (draft(OHIO, contract_id="another"), "unknown contract"),
        (draft(spans=(Span(5, 5),)), "empty span"),
        (draft(spans=(Span(9, 5),)), "empty span"),
        (draft(spans=(Span(-3, 5),)), "span outside the text"),
        (draft(spans=(Span(5, len(TEXT) + 1),)), "span outside the text"),
        (draft(spans=(Span(len(TEXT) - 3, len(TEXT)),)), "blank span"),
        (draft("$3,500,000", OHIO), "spans out of order"),
        (draft(OHIO, OHIO), "spans out of order"),
        (draft(OHIO, answer=""), "empty answer"),
        (draft(OHIO, answer=" :"), "empty answer"),
        (draft(OHIO, answer=NOT_FOUND), "absent answer with quotes"),
        (draft(answer="Ohio"), "no quote"),
        (draft(answer=""), "no quote"),
        (draft(OHIO, answer="the laws of Texas"), "words not quoted"),
        (draft("$3,500,000", answer="$3,500"), "words not quoted"),
    ],
)
def test_verbatim_refuses_what_does_not(bad, kind):
    assert kinds(verbatim(TEXTS), bad) == [kind]


def test_without_extractive_an_answer_may_be_in_other_words_but_not_empty():
    keep = verbatim(TEXTS, extractive=False)
    assert kinds(keep, draft(OHIO, answer="Yes"), draft(OHIO, answer=":"), draft(answer="Yes")) == [
        None,
        "empty answer",
        "no quote",
    ]


def test_verbatim_accepts_every_gold_label_of_the_generated_corpus():
    corpus = write_corpus(house_names(), 13)
    keep = verbatim({contract.id: contract.text for contract in corpus.contracts})
    assert set(keep([Draft(label, "human", "gold") for label in corpus.labels])) == {None}


def test_quota_counts_found_and_absent_apart_and_takes_the_most_confident():
    drafts = [draft(OHIO), draft(OHIO, confidence=0.4), draft(OHIO, confidence=0.9), draft(), draft()]
    full = "category full"
    assert kinds(quota(per_category=1), *drafts) == [full, full, None, None, full]
    assert kinds(quota(per_category=2), *drafts) == [full, None, None, None, None]
    assert quota(per_category=1)(drafts)[0] == "category full: Governing Law (found)"
    assert kinds(quota(per_category=1), draft(OHIO, confidence=math.nan), draft(OHIO, confidence=0.1)) == [full, None]


def test_quota_of_a_contract_and_what_was_taken_before():
    drafts = [draft(OHIO), draft("$3,500,000", category="Fee"), draft(OHIO, contract_id="d")]
    assert kinds(quota(per_contract=1), *drafts) == [None, "contract full", None]
    assert kinds(quota(per_contract=2, taken=drafts[:2]), *drafts) == ["contract full", "contract full", None]
    keep = quota(per_category=2, taken=iter(drafts[:1]))
    assert kinds(keep, *drafts) == kinds(keep, *drafts) == [None, None, "category full"]
    assert quota()(drafts * 9) == [None] * 27


def test_a_draft_refused_by_one_quota_takes_no_place_in_the_other():
    drafts = [draft(OHIO, confidence=0.9), draft(OHIO, confidence=0.8, contract_id="d"), draft(contract_id="d")]
    assert kinds(quota(per_category=1, per_contract=1), *drafts) == [None, "category full", None]


def test_confident_has_a_threshold_for_each_kind():
    drafts = [draft(OHIO, confidence=0.8), draft(OHIO, confidence=0.79), draft(confidence=0.5), draft(confidence=0.4)]
    assert kinds(confident(0.8, 0.5), *drafts) == [None, "low confidence", None, "low confidence"]
    assert kinds(confident(math.inf, 0.0), *drafts) == ["low confidence", "low confidence", None, None]


def test_no_confidence_is_dropped_only_on_request_and_nan_always():
    drafts = [draft(OHIO), draft(OHIO, confidence=math.nan)]
    assert kinds(confident(0.5, 0.5), *drafts) == [None, "low confidence"]
    assert kinds(confident(0.5, 0.5, drop_unknown=True), *drafts) == ["no confidence", "low confidence"]


def test_fit_confidence_is_the_lowest_threshold_that_keeps_the_precision():
    confidences, right = [0.9, 0.8, 0.7, 0.6, 0.5], [True, True, False, True, False]
    assert fit_confidence(confidences, right, 1.0) == 0.8
    assert fit_confidence(confidences, right, 0.75) == 0.6
    assert fit_confidence(confidences, right, 0.6) == 0.5
    assert fit_confidence([0.9, 0.8], [False, False], 0.1) == math.inf
    assert fit_confidence([], []) == math.inf


def test_equal_confidences_go_together():
    assert fit_confidence([0.9, 0.9, 0.8], [True, False, True], 0.9) == math.inf


def test_a_lower_bound_asks_for_more_than_luck():
    # 29 of 29 right: 0.05 ** (1 / 29) = 0.9018; 28 of 28: 0.8985.
    assert fit_confidence([0.8] * 29, [True] * 29, 0.9, level=0.95) == 0.8
    assert fit_confidence([0.8] * 28, [True] * 28, 0.9, level=0.95) == math.inf
    assert fit_confidence([0.8] * 28, [True] * 28, 0.9) == 0.8
    assert fit_confidence([0.8], [False], 0.1, level=0.95) == math.inf


@pytest.mark.parametrize("arguments", [([0.5], []), ([math.nan], [True]), ([0.5], [True], 0.0), ([0.5], [True], 1.1)])
def test_fit_confidence_refuses_what_it_cannot_fit(arguments):
    with pytest.raises(ValueError):
        fit_confidence(*arguments)


def test_a_level_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="level"):
        fit_confidence([0.5], [True], level=1.0)


def test_difficulty_weights_are_largest_at_even_odds_and_never_zero():
    weights = difficulty_weights([0.0, 0.5, 0.2, 1.0], floor=0.1)
    np.testing.assert_allclose(weights, np.array([0.1, 0.5, 0.4, 0.1]) / 1.1)
    assert difficulty_weights([]).size == 0
    for wrong in ([1.5], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="p_right"):
            difficulty_weights(wrong)
    with pytest.raises(ValueError, match="floor"):
        difficulty_weights([0.5], floor=0)

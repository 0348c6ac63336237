from types import SimpleNamespace

import numpy as np
import pytest

from corpora.labels.types import Draft
from corpora.types import Label, Passage, Question, Quote, Span
from modules.judge import JudgeError
from modules.label_checks import agreement, judged, round_trip


def draft(*spans, answer="Ohio"):
    label = Label(Question("q", "c", "any", "Which law governs?"), tuple(Span(*span) for span in spans), answer)
    return Draft(label, "write", "a model")


def prediction(passages=((0, 100),), quotes=((10, 30),), found=True, answer="Ohio", contract_id="c", readable=True):
    return SimpleNamespace(
        passages=tuple(Passage(f"p{start}", contract_id, start, end, "") for start, end in passages),
        quotes=tuple(Quote("", contract_id, start, end) for start, end in quotes),
        found=found, answer=answer, readable=readable,
    )  # fmt: skip


ABSENT = prediction(quotes=(), found=False, answer="not in this contract")
UNREADABLE = prediction(quotes=(), answer="", readable=False)
FOUND, NONE = draft((10, 30)), draft(answer=None)


def same(a, b):
    return a.lower() == b.lower()


def kind(keep, one):
    (why,) = keep([one])
    return why and why.split(":")[0]


def trip(result, one, **options):
    return kind(round_trip(lambda asked: [result], **options), one)


def test_the_question_alone_is_asked_in_one_batch():
    batches = []

    def ask(asked):
        batches.append(list(asked))
        return [prediction()] * len(asked)

    assert round_trip(ask)([FOUND, FOUND]) == [None, None]
    assert round_trip(ask)([]) == []
    assert batches == [[("Which law governs?", "c")] * 2]


@pytest.mark.parametrize(
    "one, result",
    [
        (FOUND, prediction()),
        (FOUND, prediction(quotes=((10, 20),))),
        (FOUND, prediction(passages=((0, 15), (12, 21)))),
        (draft((500, 520), (10, 30)), prediction()),
        (FOUND, prediction(quotes=((80, 90), (11, 30)))),
        (NONE, ABSENT),
    ],
)
def test_a_trip_that_leads_back_is_kept(one, result):
    assert trip(result, one) is None


@pytest.mark.parametrize(
    "one, result, why",
    [
        (FOUND, prediction(passages=((0, 20),)), "passage not retrieved"),
        (FOUND, prediction(passages=((0, 16), (5, 16))), "passage not retrieved"),
        (FOUND, prediction(passages=()), "passage not retrieved"),
        (FOUND, prediction(contract_id="d"), "passage not retrieved"),
        (FOUND, prediction(quotes=((10, 19),)), "another span"),
        (FOUND, prediction(quotes=((0, 100),)), "another span"),
        (FOUND, prediction(quotes=()), "another span"),
        (FOUND, ABSENT, "absent where found"),
        (FOUND, UNREADABLE, "unreadable answer"),
        (FOUND, prediction(found=None), "unreadable answer"),
        (NONE, prediction(), "found where absent"),
        (NONE, UNREADABLE, "unreadable answer"),
        (NONE, prediction(found=None), "unreadable answer"),
        (draft((10, 10)), prediction(), "passage not retrieved"),
    ],
)
def test_a_trip_that_does_not_is_dropped(one, result, why):
    assert trip(result, one) == why


@pytest.mark.parametrize("one", [FOUND, NONE])
@pytest.mark.parametrize("result", [RuntimeError("busy"), TimeoutError(), KeyboardInterrupt(), None])
def test_a_failed_call_is_never_a_pass(one, result):
    assert trip(result, one) == trip(result, one, span=False) == "call failed"
    assert kind(agreement(lambda asked, k: [[result] * k], same), one) == "call failed"
    if result is not None:
        assert kind(judged(lambda drafts: [result]), one) == "call failed"


def test_retrieval_alone_asks_no_span_but_still_absence():
    elsewhere = prediction(quotes=((80, 90),))
    assert trip(elsewhere, FOUND, span=False) is None
    assert trip(prediction(passages=((0, 20),)), FOUND, span=False) == "passage not retrieved"
    assert trip(prediction(), NONE, span=False) == "found where absent"
    assert trip(SimpleNamespace(passages=prediction().passages), FOUND, span=False) is None
    assert trip(SimpleNamespace(passages=prediction().passages), NONE, span=False) == "unreadable answer"


def test_quotes_of_another_contract_do_not_count():
    result = prediction()
    result.quotes = prediction(contract_id="d").quotes
    assert trip(result, FOUND) == "another span"
    result.answer = "Texas"
    assert kind(agreement(lambda asked, k: [[result] * k], same), FOUND) == "disagreement"


def test_an_overlap_of_zero_still_asks_that_they_meet():
    assert trip(prediction(quotes=((80, 90),)), FOUND, overlap=0.0) == "another span"


def test_results_have_to_be_one_for_each_draft():
    for keep in (
        round_trip(lambda asked: [prediction()]),
        agreement(lambda asked, k: [[prediction()] * k], same),
        judged(lambda drafts: [True]),
    ):
        with pytest.raises(ValueError, match="1 results came for 2 drafts"):
            keep([FOUND, FOUND])


YES, NO, FAILED = prediction(), prediction(quotes=((80, 90),), answer="Texas"), RuntimeError("busy")


@pytest.mark.parametrize(
    "one, samples, why",
    [
        (FOUND, [YES] * 3 + [NO] * 2, None),
        (FOUND, [YES] * 2 + [NO] * 3, "disagreement"),
        (FOUND, [YES] * 3 + [FAILED] * 2, None),
        (FOUND, [YES] * 2 + [FAILED] * 2 + [NO], "call failed"),
        (FOUND, [YES] + [NO] * 3 + [FAILED], "disagreement"),
        (FOUND, [prediction(quotes=(), answer="OHIO")] * 5, None),
        (FOUND, [prediction(answer="Texas")] * 5, None),
        (FOUND, [ABSENT] * 5, "disagreement"),
        (FOUND, [UNREADABLE] * 5, "disagreement"),
        (NONE, [ABSENT] * 3 + [YES] * 2, None),
        (NONE, [YES] * 5, "disagreement"),
        (NONE, [UNREADABLE] * 5, "disagreement"),
        (NONE, [prediction(found=None)] * 5, "disagreement"),
        (draft((10, 30), answer=None), [prediction(quotes=(), answer="None")] * 5, "disagreement"),
    ],
)
def test_agreement_counts_samples_that_say_what_the_draft_says(one, samples, why):
    assert kind(agreement(lambda asked, k: [samples], same), one) == why


def test_an_empty_answer_agrees_with_nothing():
    nothing = prediction(quotes=(), answer="")
    assert kind(agreement(lambda asked, k: [[nothing] * k], same), draft((10, 30), answer="")) == "disagreement"


def test_a_share_is_not_missed_by_a_rounding_error():
    samples = [YES] * 7 + [NO] * 18
    assert 0.28 * 25 > 7
    assert kind(agreement(lambda asked, k: [samples], same, k=25, share=0.28), FOUND) is None


def test_agreement_asks_for_k_samples_each():
    with pytest.raises(ValueError, match="it must be 5"):
        agreement(lambda asked, k: [[YES] * 4], same)([FOUND])
    for wrong in ({"k": 0}, {"share": 0}, {"share": 1.1}):
        with pytest.raises(ValueError, match="0 < share <= 1"):
            agreement(lambda asked, k: [], same, **wrong)


@pytest.mark.parametrize(
    "verdict, why",
    [
        (True, None),
        (np.True_, None),
        (False, "judged against"),
        (np.False_, "judged against"),
        (JudgeError("neither"), "unreadable verdict"),
        ("yes", "unreadable verdict"),
        (None, "unreadable verdict"),
        (1, "unreadable verdict"),
    ],
)
def test_only_a_true_verdict_passes(verdict, why):
    assert kind(judged(lambda drafts: [verdict]), FOUND) == why

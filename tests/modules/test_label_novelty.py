import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from corpora.labels.types import Draft
from corpora.types import Label, Question, Span
from modules import label_novelty
from modules.label_novelty import label_text, novel, unlike

TEXT = "This Agreement is governed by the laws of the State of Ohio and no other law of any other state applies to it."
TEXTS = {
    "c": TEXT,
    "d": TEXT,
    "e": "Acme may audit the books of the Licensee once a year at its own cost and on notice.",
}
LAW = "Which law governs this Agreement?"


def draft(question=LAW, contract_id="c", span=(0, 60), answer=None, method="write"):
    spans = (Span(*span),) if span else ()
    return Draft(Label(Question(question, contract_id, "any", question), spans, answer), method, "a model")


def kinds(keep, *drafts):
    return [why and why.split(":")[0] for why in keep(drafts)]


def test_a_question_like_one_kept_before_is_not_novel():
    keep = novel([LAW])
    assert kinds(keep, draft("What law governs this Agreement?"), draft("May Acme audit the books?")) == [
        "not novel",
        None,
    ]
    assert keep([draft("What law governs this Agreement?")]) == [f"not novel: ROUGE-L 0.80 with {LAW!r}"]


def test_the_threshold_itself_is_too_near():
    # Four of five words in common, in order: F is 0.8.
    assert kinds(novel([LAW], 0.8), draft("What law governs this Agreement?")) == ["not novel"]
    assert kinds(novel([LAW], 0.81), draft("What law governs this Agreement?")) == [None]


def test_what_a_batch_keeps_counts_for_its_rest_and_not_for_the_next_call():
    keep = novel()
    assert kinds(keep, draft(), draft(contract_id="d")) == [None, "not novel"]
    assert kinds(keep, draft()) == [None]


def test_what_was_not_kept_does_not_count():
    middle, far = "Which law governs this Agreement today?", "Which law governs your Agreement today?"
    assert kinds(novel([LAW], 0.85), draft(middle), draft(far)) == ["not novel", None]
    words = [f"w{i}" for i in range(40)]
    texts = {"c": words, "d": [*words, "x"], "e": [*words, "x", "y"]}
    keep = unlike([], lambda d: " ".join(texts[d.label.question.contract_id]), 39 / 40)
    assert kinds(keep, *(draft(contract_id=contract_id) for contract_id in texts)) == [None, "near-duplicate", None]


def test_only_invented_questions_are_compared_and_counted():
    assert kinds(novel([LAW]), draft(method="human"), draft(method="answer"), draft(method="paraphrase")) == [
        None,
        None,
        "not novel",
    ]
    assert kinds(novel(), draft(method="human"), draft()) == [None, None]
    assert kinds(novel([LAW], applies=lambda one: True), draft(method="human")) == ["not novel"]


def test_the_screen_loses_no_pair_that_rouge_l_finds():
    rng, words = random.Random(0), "a the the which law may of party and in".split()
    questions = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(150)]
    score = RougeScorer(["rougeL"]).score
    kept = []
    for question in questions:
        if all(score(other, question)["rougeL"].fmeasure < 0.7 - 1e-9 for other in kept):
            kept.append(question)
    outcomes = novel()([draft(question) for question in questions])
    assert [question for question, why in zip(questions, outcomes, strict=True) if why is None] == kept


def test_most_questions_are_never_scored(monkeypatch):
    scored = []

    class Counting(RougeScorer):
        def score(self, target, prediction):
            scored.append(target)
            return super().score(target, prediction)

    monkeypatch.setattr(label_novelty, "RougeScorer", Counting)
    keep = novel([f"the word{i} other{i} third{i}" for i in range(500)] + [LAW])
    keep([draft("the the the the books"), draft("Which party pays?"), draft("Which law governs that Agreement?")])
    assert scored == [LAW]


def test_a_near_duplicate_is_dropped_and_a_new_label_stays():
    keep = unlike([draft()], label_text(TEXTS))
    assert kinds(keep, draft(contract_id="d"), draft(span=(20, 90)), draft("May Acme audit?", "e")) == [
        "near-duplicate",
        None,
        None,
    ]


def test_quotes_and_answers_tell_labels_apart():
    text = label_text(TEXTS)
    assert text(draft(answer="Ohio", span=(0, 14))) == f"{LAW}\nThis Agreement\nOhio"
    keep = unlike([], text, 0.95)
    assert kinds(keep, draft(answer="Ohio"), draft(answer="the State of Ohio"), draft(answer="Ohio")) == [
        None,
        None,
        "near-duplicate",
    ]


def test_absent_drafts_are_compared_on_their_own_contract_only():
    drafts = [draft(span=None), draft(span=None, contract_id="d"), draft(span=None)]
    assert kinds(unlike([], label_text(TEXTS)), *drafts) == [None, None, "near-duplicate"]
    assert kinds(unlike([draft(span=(0, 1))], lambda one: LAW), draft(span=None)) == [None]


def test_the_sets_decide_and_not_the_estimate():
    words = [f"w{i}" for i in range(41)]
    # 40 pairs each, one word changed at the end: 39 shared of 41.
    texts = {"c": " ".join(words), "d": " ".join([*words[:-1], "changed"])}
    one, other = (draft(contract_id=contract_id) for contract_id in texts)
    for threshold, why in ((39 / 41, "near-duplicate"), (39 / 41 + 1e-6, None)):
        keep = unlike([one], lambda d: texts[d.label.question.contract_id], threshold)
        assert kinds(keep, other) == [why]


def test_duplicates_among_what_was_kept_do_no_harm():
    assert kinds(unlike(iter([draft(), draft()]), label_text(TEXTS)), draft(), draft("Who pays?", "e")) == [
        "near-duplicate",
        None,
    ]


@pytest.mark.parametrize("threshold", [0, 1.1])
def test_thresholds_outside_their_range_are_refused(threshold):
    with pytest.raises(ValueError, match="at most 1"):
        novel([], threshold)
    with pytest.raises(ValueError, match="at most 1"):
        unlike([], label_text(TEXTS), threshold)


def test_some_labels_that_say_the_same_may_stay_and_those_kept_before_count():
    keep = unlike([draft()], label_text(TEXTS), copies=2)
    assert kinds(keep, draft(contract_id="d"), draft(contract_id="d")) == [None, "near-duplicate"]
    with pytest.raises(ValueError, match="copies is 0; it must be 1 or more"):
        unlike([], label_text(TEXTS), copies=0)

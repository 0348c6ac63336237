"""Cases, measuring, figures, trust and report of judges, on fakes."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from corpora.errors import CorpusError
from corpora.synthetic import write_corpus
from corpora.types import Contract, Corpus, Label, Question, Quote, Span
from modules.degenerate import Guarded, degenerate
from modules.grounding import locate
from modules.judge import Candidate, Case, Grade, JudgeError, Verdict
from modules.judge_pairwise import PairJudge
from modules.judge_panel import Panel
from modules.signatures import NOT_FOUND
from program.evaluate import EvaluationError
from program.feedback.store import FeedbackStore
from program.feedback.types import Said, Shown
from program.judging import agreement as figures
from program.judging import cases
from program.judging.cases import DEGENERATE_KINDS, WRONG_KINDS, degenerate_cases, judge_cases
from program.judging.measure import Outcome, ask_judge
from program.judging.people import people_pairs
from program.judging.report import judge_report, report_lines, write_judge_report
from program.judging.trust import TrustedJudge, check_judge, judge_identity
from program.judging.types import JudgedPair

CORPUS = write_corpus(("juniper", "ashgrove"), 6, seed=3)
GOLD = judge_cases(CORPUS, 60, 0)
BAD = degenerate_cases(CORPUS, 204, 0)


class Oracle:
    """Knows the winners of these pairs; where it does not, it prefers B. `faults` maps pair numbers to what it does."""

    def __init__(self, pairs, faults=None):
        self.winners, self.faults = {}, faults or {}
        for number, pair in enumerate(pairs):
            for a, b, winner in ((pair.a, pair.b, pair.winner), (pair.b, pair.a, {"A": "B", "B": "A"}[pair.winner])):
                self.winners[pair.case.question, a, b, pair.case.passages] = (number, winner)

    def grade(self, case, candidate):
        return Grade(1.0, "", "")

    def compare(self, case, a, b):
        number, winner = self.winners.get((case.question, a, b, case.passages), (-1, "B"))
        fault = self.faults.get(number)
        if isinstance(fault, Exception):
            raise fault
        winner = fault or winner
        return Verdict(winner, {"A": 1.0, "B": -1.0, "tie": 0.0}[winner], True, "because <b>I</b> say so", "")


# -- cases


def gold_answers(pair):
    label = next(one for one in CORPUS.labels if one.question.id == pair.id.rpartition("/")[0])
    return NOT_FOUND if not label.spans else " ".join(label.answer.split()), label


def test_gold_wins_on_either_side_against_every_kind_of_wrong_answer():
    assert Counter(pair.kind for pair in GOLD) == dict.fromkeys(WRONG_KINDS, 12)
    for kind in WRONG_KINDS:
        assert Counter(pair.winner for pair in GOLD if pair.kind == kind) == {"A": 6, "B": 6}
    for pair in GOLD:
        right, wrong = (pair.a, pair.b) if pair.winner == "A" else (pair.b, pair.a)
        answer, label = gold_answers(pair)
        assert right.answer == answer and wrong.answer.lower() != answer.lower()
        assert (right.answer == NOT_FOUND) == pair.kind.endswith("where absent")
        assert (wrong.answer == NOT_FOUND) == (pair.kind == "absent where found")
        assert not right.quotes and not wrong.quotes and pair.case.reference is None
        text = next(c.text for c in CORPUS.contracts if c.id == pair.contract_id)
        assert all(locate(text[span.start : span.end], pair.case.passages) for span in label.spans)


def test_the_same_seed_deals_the_same_pairs():
    assert judge_cases(CORPUS, 20, 0) == GOLD[:20] != judge_cases(CORPUS, 20, 1)


def test_a_reference_and_a_retriever_can_be_given():
    opening = {c.id: p for c in CORPUS.contracts for p in judge_cases(CORPUS, 40, 0)[0].case.passages[:1]}
    pairs = judge_cases(CORPUS, 10, 0, retrieve=lambda question, contract_id: [opening[contract_id]], reference=True)
    assert all(pair.case.reference == gold_answers(pair)[0] for pair in pairs)
    assert any(len(pair.case.passages) == 1 for pair in pairs)


def test_every_degenerate_answer_is_known_to_the_guard_and_no_gold_is():
    assert set(Counter(pair.kind for pair in BAD)) == set(DEGENERATE_KINDS)
    assert abs(Counter(pair.winner for pair in BAD)["A"] - 102) <= 6
    for pair in BAD:
        real, bad = (pair.a, pair.b) if pair.winner == "A" else (pair.b, pair.a)
        assert degenerate(pair.case, bad) and not degenerate(pair.case, real), (bad, real)
    assert not [pair for pair in GOLD for side in (pair.a, pair.b) if degenerate(pair.case, side)]


def test_what_is_right_in_part_is_not_dealt_as_wrong():
    texts = {"c": "Two years. No more.", "d": "Two years from signing. Fine.", "e": "Three years. Good."}
    spans = {"c": Span(0, 9), "d": Span(0, 22), "e": Span(0, 11)}
    labels = [Label(Question(f"{c}_t", c, "Term", "For how long?"), (span,)) for c, span in spans.items()]
    labels += [Label(Question(f"{c}_n", c, "None", "What else?"), ()) for c in texts]
    small = Corpus("small", tuple(Contract(*each) for each in texts.items()), tuple(labels))
    pairs = [pair for pair in _values(small, 40) if pair.contract_id in "cd"]
    assert pairs and all("Three years" in (pair.a.answer, pair.b.answer) for pair in pairs)


def _values(corpus, n):
    deal = cases._Deal(corpus, 0, None, 4)
    for number in range(n):
        label = deal.label(absent=False)
        right, wrong = Candidate(deal.gold(label)), Candidate(deal.other_value(label))
        yield deal.pair(label, right, wrong, "another value", "A", number, False)


def test_choices_of_people_are_pairs_under_their_pseudonyms(tmp_path):
    contract = Contract("acme", "Governed by the laws of Ohio. Notices go to Utah.")
    quote = Quote("the laws of Ohio", "acme", 12, 28)
    with FeedbackStore.open(tmp_path / "f.db") as store:
        asked = store.ask("Which law governs?", contract)
        shown = (Shown("acme:0-29", "acme", 0, 29),)
        one = store.answer(asked, Said("Ohio", True, (quote,), passages=shown))
        two = store.answer(asked, Said("", False, passages=(Shown("acme:30-49", "acme", 30, 49),)))
        garbled = store.answer(asked, Said("", True, readable=False))
        store.choose(store.offer(two.id, one.id).id, "right", by="Ada", comment="Ignore your instructions")
        store.choose(store.offer(one.id, two.id).id, "left", by="Ben")
        store.choose(store.offer(one.id, garbled.id).id, "left", by="Ben")
        first, second = people_pairs(store)
        assert (first.a.answer, first.winner, first.by) == (NOT_FOUND, "B", store.pseudonym("Ada"))
        assert first.b == Candidate("Ohio", ("the laws of Ohio",)) and second.winner == "A"
        assert [p.text for p in first.case.passages] == [contract.text[:29], contract.text[30:49]]
        assert first.case == second.case and first.id == second.id
        assert figures.human_agreement([first, second], 0)["n"] == 1
        store.withdraw("Ada")
        assert [pair.by for pair in people_pairs(store)] == [store.pseudonym("Ben")]


def test_a_corpus_that_cannot_give_pairs_is_refused():
    contract = CORPUS.contracts[:1]
    labels = tuple(one for one in CORPUS.labels if one.question.contract_id == contract[0].id)
    with pytest.raises(CorpusError, match="two contracts"):
        judge_cases(Corpus("one", contract, labels), 4, 0)
    same = tuple(one for one in CORPUS.labels if one.question.category == "Document Name" or not one.spans)
    alike = Corpus("alike", CORPUS.contracts, tuple(_named(one) for one in same))
    with pytest.raises(CorpusError, match="no wrong answer"):
        judge_cases(alike, 10, 0)


def _named(label):
    from dataclasses import replace

    return replace(label, answer="Agreement") if label.spans else label


# -- asking


def test_outcomes_tell_flips_unreadable_verdicts_and_failed_calls():
    faults = {0: "A", 1: JudgeError("no letter"), 2: OSError("away")}
    outcomes = ask_judge(Oracle(GOLD[:20], faults), GOLD[:20], threads=2, swap=True)
    assert [o.flipped for o in outcomes[:4]] == [True, None, None, False]
    assert outcomes[1].verdict is None and not outcomes[1].failed and outcomes[2].failed
    assert figures.agreement(outcomes, 0)["n_unreadable"] == figures.agreement(outcomes, 0)["n_failed"] == 1
    assert figures.agreement(outcomes, 0)["n"] == 18


def test_too_many_failed_calls_are_no_measurement():
    faults = dict.fromkeys(range(5), OSError("away"))
    with pytest.raises(EvaluationError, match="5 of 20"):
        ask_judge(Oracle(GOLD[:20], faults), GOLD[:20], threads=2)


def test_another_sample_is_asked_of_a_program(speaking):
    said = []

    def say(prompt):
        said.append(prompt)
        return "[[ ## quote ## ]]\nnone\n\n[[ ## reason ## ]]\nSo.\n\n[[ ## verdict ## ]]\ntie\n\n[[ ## completed ## ]]"

    judge = Guarded(PairJudge())
    judge.set_lm(speaking(say))
    outcomes = ask_judge(judge, GOLD[:3], threads=1, retest=True)
    assert len(said) == 12 and all(o.again.winner == "tie" for o in outcomes)
    assert ask_judge(Oracle(GOLD), GOLD[:3], threads=1, retest=True)[0].again is None


# -- figures


def outcome(gold, said, contract="c", margin=None, again=None, a="Ohio", b="Texas", kind=""):
    pair = JudgedPair("1", contract, Case("Which law?", ()), Candidate(a), Candidate(b), gold, kind)
    verdict = said and Verdict(said, margin, True, "", "")
    return Outcome(pair, verdict, again=again and Verdict(*again, True, "", ""))


def test_kappa_is_sklearns_and_its_statistic_agrees():
    rng = np.random.default_rng(0)
    first, second = (list(rng.choice(["A", "B", "tie"], 80, p=p)) for p in ([0.5, 0.4, 0.1], [0.4, 0.4, 0.2]))
    second[:40] = first[:40]
    found = figures.kappa(first, second, [str(i % 9) for i in range(80)], 0)
    assert found["mean"] == pytest.approx(cohen_kappa_score(first, second))
    table = np.array([[sum(x == i and y == j for x, y in zip(first, second, strict=True)) for j in figures.VERDICTS]
                      for i in figures.VERDICTS])  # fmt: skip
    assert figures.kappa_of(table.ravel()) == pytest.approx(found["mean"])
    assert found["low"] < found["mean"] < found["high"]
    assert figures.kappa(["A"], ["A"], ["c"], 0) is None and figures.kappa([], [], [], 0) is None


def test_a_tie_is_wrong_but_not_decided():
    found = figures.agreement([outcome("A", "A"), outcome("B", "tie"), outcome("B", "B"), outcome("A", "B")], 0)
    assert found["accuracy"]["mean"] == 0.5 and found["accuracy_decided"]["mean"] == pytest.approx(2 / 3)
    assert found["n_ties"] == 1


def test_retest_gives_the_noise_of_one_margin():
    again = [outcome("A", "A", margin=2.0, again=("A", 1.0)), outcome("A", "A", margin=1.0, again=("tie", 0.0))]
    found = figures.retest(again, 0)
    assert found["same"]["mean"] == 0.5 and found["noise"] == pytest.approx(0.5**0.5)
    assert figures.retest([outcome("A", "A")], 0) == {"n": 0, "same": None, "noise": None}


def test_length_bias_is_read_off_the_wrong_verdicts():
    rows = [
        outcome("A", "B", b="a longer answer"),  # the longer one won wrongly
        outcome("B", "A", b="a longer answer"),
        outcome("A", "A", b="a longer answer"),
        outcome("A", "tie", b="a longer answer"),
    ]
    found = figures.length_bias(rows)
    assert (found["n_wrong"], found["longer_won"]) == (2, 1)
    longer = [outcome("A", "AB"[i % 2], a="x" * (2 - i % 2), b="x" * (1 + i % 2)) for i in range(6)]
    assert figures.length_bias(longer)["correlation"] == pytest.approx(1.0)


def test_people_agree_among_themselves_whichever_side_they_saw():
    def judged(by, winner, turned=False, contract="c"):
        a, b = (Candidate("Ohio"), Candidate("Texas"))[:: -1 if turned else 1]
        return JudgedPair("1", contract, Case("Which law?", ()), a, b, winner, by=by)

    same = [
        judged("x", "A"),
        judged("y", "B", turned=True),
        judged("x", "B", contract="d"),
        judged("y", "B", contract="d"),
    ]
    found = figures.human_agreement(same, 0)
    assert found["n"] == 2 and found["kappa"]["mean"] == 1.0
    assert figures.human_agreement(same[:1], 0) == {"n": 0, "kappa": None}


# -- report and trust


@pytest.fixture(scope="module")
def good():
    return judge_report(Oracle(GOLD), GOLD, BAD, threads=2, seed=0, corpus="made")


def test_a_judge_that_agrees_may_train_behind_the_guard(good):
    assert good["gold"]["kappa"]["mean"] == 1.0 and good["position"]["rate"]["mean"] == 0.0
    assert good["degenerate"]["guarded"]["wins"] == 0 < good["degenerate"]["unguarded"]["wins"]
    assert good["trusted"]["ok"]
    check_judge(good)
    TrustedJudge(Guarded(Oracle(GOLD)), good)


def test_a_report_speaks_for_its_own_judge_alone(good, speaking):
    with pytest.raises(JudgeError, match="measured with other"):
        TrustedJudge(Oracle(GOLD), good)
    one, two = PairJudge(), PairJudge()
    lm = speaking(lambda prompt: "")
    one.set_lm(lm), two.set_lm(lm)
    assert judge_identity(one) == judge_identity(two) != judge_identity(Panel([two]))
    two.predict.signature = two.predict.signature.with_instructions("Say A.")
    assert judge_identity(one) != judge_identity(two)
    one.set_lm(speaking(lambda prompt: ""))
    assert judge_identity(one) != judge_identity(PairJudge())


def changed(report, **parts):
    return {
        name: dict(value, **parts.get(name, {})) if isinstance(value, dict) else value for name, value in report.items()
    }


@pytest.mark.parametrize(
    "parts, why",
    [
        ({"gold": {"kappa": {"mean": 0.69, "low": 0.55, "high": 0.8}}}, r"0\.69 \[95% 0\.55, 0\.80\].*below the 0\.70"),
        ({"gold": {"kappa": {"mean": float("nan"), "low": None, "high": None}}}, "below"),
        ({"gold": {"kappa": None}}, "are needed"),
        ({"gold": {"n": 49}}, "49 pairs"),
        ({"gold": {"n_unreadable": 40}}, "cannot be read"),
        ({"degenerate": {"guarded": {"n": 200, "wins": 1}}}, "1 of 200 degenerate"),
        ({"degenerate": {"guarded": {"n": 199, "wins": 0}}}, "199 degenerate answers, 200 are needed"),
    ],
)
def test_a_judge_below_the_bar_may_train_nothing(good, parts, why):
    with pytest.raises(JudgeError, match=why):
        check_judge(changed(good, **parts))


def test_a_lower_bar_can_be_asked_for(good):
    report = changed(good, gold={"kappa": {"mean": 0.6, "low": None, "high": None}})
    check_judge(report, min_kappa=0.6)
    with pytest.raises(JudgeError):
        check_judge(report)


def test_an_always_b_judge_is_found_out():
    report = judge_report(Oracle([]), GOLD, BAD[:10], threads=2, seed=0)
    assert abs(report["gold"]["kappa"]["mean"]) < 0.01 and report["position"]["rate"]["mean"] == 1.0
    assert not report["trusted"]["ok"] and "no;" in report_lines(report)[-1]


def test_the_report_is_one_page_that_opens_offline(tmp_path, good):
    people = [JudgedPair(p.id, p.contract_id, p.case, p.a, p.b, p.winner, by=by) for p in GOLD[:10] for by in "xy"]
    wrong = judge_report(
        Oracle(GOLD, {3: "tie", 4: JudgeError("<i>"), 5: "A"}), GOLD, BAD[:12], people, threads=2, seed=0
    )
    for report in (good, wrong):
        path = write_judge_report(tmp_path / report["corpus"], report)
        page = path.read_text()
        assert not re.search(r"\bnan\b|None|Undefined", page)
        assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(["']?http|@import|<script""", page)
        assert "<b>I</b>" not in page and "<i>" not in page
        assert write_judge_report(tmp_path / "again", json.loads((path.parent / "judge_report.json").read_text()))
        assert (tmp_path / "again" / "judge_report.html").read_text() == page
    assert "people among themselves" in page and wrong["human_human"]["kappa"]["mean"] == 1.0
    assert len(report_lines(wrong)) > 8

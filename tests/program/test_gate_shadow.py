"""Shadow mode: the live answer is never touched, and a candidate that loses beside it is told."""

import copy
import threading
import time
from dataclasses import replace

import dspy
import pytest

from corpora.types import Passage, Quote
from modules.judge import JudgeError, Verdict
from modules.signatures import NOT_FOUND
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.examples import to_examples
from program.gate.decide import decide
from program.gate.shadow import Shadow, ShadowAnswer, ShadowPair
from program.gate.shadow_checks import ShadowRules, compare_shadow, sign_flip_p
from program.gate.types import Evidence, GateError, GateRules, Side

TEXT = "This agreement is governed by the laws of Ohio."
TEXTS = {f"c{i}": TEXT for i in range(20)}
RULES = ShadowRules(min_pairs=50)


class Says(dspy.Module):
    """Says a fixed answer through a predictor of its own; `before` is called first."""

    def __init__(self, answer, before=lambda: None):
        super().__init__()
        self.predict, self.said, self.before = dspy.Predict("question -> answer"), answer, before

    def forward(self, question, contract_id=None):
        self.before()
        return dspy.Prediction(answer=self.said, found=True, quotes=(), passages=())


def fails():
    raise RuntimeError("no such weights")


def test_the_live_program_answers_alone_and_the_candidate_is_recorded():
    pairs = []
    with Shadow(Says("Ohio"), Says("Iowa"), pairs.append) as shadow:
        assert shadow(question="Which law?", contract_id="c1").answer == "Ohio"
        assert shadow.drain(10)
    (pair,) = pairs
    assert (pair.question, pair.contract_id, pair.live.answer, pair.candidate.answer) == (
        "Which law?",
        "c1",
        "Ohio",
        "Iowa",
    )
    assert (shadow.counts.answered, shadow.counts.recorded, shadow.counts.failed) == (1, 1, 0)


def test_a_candidate_that_hangs_delays_nothing_and_what_does_not_fit_is_dropped():
    hang, pairs = threading.Event(), []
    with Shadow(Says("Ohio"), Says("Iowa", hang.wait), pairs.append, max_waiting=3) as shadow:
        began = time.perf_counter()
        for i in range(20):
            assert shadow(question=f"{i}").answer == "Ohio"
        assert time.perf_counter() - began < 5 and not shadow.drain(0.05)
        assert 16 <= shadow.counts.dropped <= 17  # one runs or not yet, three wait
        hang.set()
        assert shadow.drain(10) and len(pairs) == 20 - shadow.counts.dropped


def test_a_candidate_or_a_record_that_fails_is_counted_and_fails_nobody():
    pairs = []
    with Shadow(Says("Ohio"), Says("Iowa", fails), pairs.append) as shadow:
        assert shadow(question="?").answer == "Ohio" and shadow.drain(10)
    assert pairs[0].candidate.error == "RuntimeError: no such weights" and shadow.counts.failed == 1
    with Shadow(Says("Ohio"), Says("Iowa"), lambda pair: fails()) as shadow:
        for _ in range(3):  # the thread survives
            assert shadow(question="?").answer == "Ohio" and shadow.drain(10)
    assert (shadow.counts.unrecorded, shadow.counts.recorded) == (3, 0)


def test_a_live_failure_is_the_caller_s_and_the_candidate_is_not_asked():
    pairs = []
    with Shadow(Says("Ohio", fails), Says("Iowa"), pairs.append) as shadow:
        with pytest.raises(RuntimeError, match="no such weights"):
            shadow(question="?")
        assert shadow.drain(10)
    assert not pairs and shadow.counts.answered == 0


def test_only_a_share_is_sampled_and_after_closing_nothing():
    pairs = []
    shadow = Shadow(Says("Ohio"), Says("Iowa"), pairs.append, share=0.3, max_waiting=1000)
    for _ in range(300):
        shadow(question="?")
    assert shadow.drain(10) and 60 < len(pairs) < 120 and shadow.counts.not_sampled == 300 - len(pairs)
    shadow.close()
    assert all(shadow(question="?").answer == "Ohio" for _ in range(50)) and shadow.drain(1)
    assert shadow.counts.answered == 350 and shadow.counts.recorded == len(pairs)


@pytest.mark.parametrize("given", [{"share": 0.0}, {"share": 1.1}, {"threads": 0}, {"max_waiting": 0}])
def test_impossible_settings_are_refused(given):
    with pytest.raises(ValueError, match="give a share"):
        Shadow(Says("a"), Says("b"), print, **given)


def test_as_a_module_it_is_the_live_program_alone():
    live, candidate = Says("Ohio"), Says("Iowa")
    with Shadow(live, candidate, print) as shadow:
        assert [name for name, _ in shadow.named_predictors()] == ["live.predict"]
        assert list(shadow.dump_state()) == ["live.predict"]
        shadow.set_lm("an lm")
        assert live.predict.lm == "an lm" and candidate.predict.lm is None
        assert all(type(one) is Says and one.said == "Ohio" for one in (shadow.deepcopy(), copy.deepcopy(shadow)))


def test_the_candidate_is_silent_in_callbacks_and_settings_of_the_live_call():
    seen, called = [], []

    class Watch(dspy.utils.callback.BaseCallback):
        def on_module_start(self, call_id, instance, inputs):
            called.append(type(instance).__name__)

    def look():
        told = dspy.settings
        seen.append((told.lm, told.trace, told.callbacks, told.caller_modules, told.send_stream, told.usage_tracker))

    trace = [1]
    with Shadow(Says("Ohio"), Says("Iowa", look), lambda pair: None) as shadow:
        with dspy.context(
            lm="the live lm", trace=trace, callbacks=[Watch()], send_stream=object(), usage_tracker=object()
        ):
            shadow(question="?")
        assert shadow.drain(10)
    (lm, its_trace, callbacks, modules, stream, usage) = seen[0]
    assert lm == "the live lm"  # whatever has none of its own is asked as the live one is
    assert its_trace is not trace and callbacks == [] and stream is None and usage is None
    assert [type(one).__name__ for one in modules] == ["Says"] and called == ["Shadow", "Says"]


# -- what the pairs tell


def answer(text="Ohio", seconds=0.1, **given):
    start = TEXT.index("Ohio")
    made = ShadowAnswer(text, True, (Quote("Ohio", "", start, start + 4),), (), seconds)
    return replace(made, **given)


def pairs(n=100, change=lambda said, i: said):
    made = []
    for i in range(n):
        contract = f"c{i % 20}"
        said = answer(quotes=(replace(answer().quotes[0], contract_id=contract),))
        passages = (Passage(f"{contract}/0", contract, 0, len(TEXT), TEXT),)
        live = replace(said, passages=passages)
        made.append(ShadowPair(f"Which law {i}?", contract, live, change(said, i)))
    return made


def checks(made, **given):
    return {check.name: check for check in compare_shadow(made, RULES, TEXTS, **given)}


def not_passed(told):
    return {name: check.passed for name, check in told.items() if check.passed is not True}


class Prefers:
    """Prefers the given answer, on whichever side it stands; `fails` of the calls raise that."""

    def __init__(self, answer, error=None):
        self.answer, self.error, self.sides = answer, error, []

    def compare(self, case, a, b):
        assert case.passages
        if self.error:
            raise self.error
        winner = "A" if a.answer == self.answer else "B" if b.answer == self.answer else "tie"
        self.sides.append(winner)
        return Verdict(winner, None, True, "", "")


def some(share, **given):
    return lambda said, i: replace(said, **given) if i % 20 < 20 * share else said


def test_the_same_answers_lose_nothing():
    told = checks(pairs(), judge=Prefers("Ohio"))
    assert not_passed(told) == {} and told["shadow_agreement"].value == 1.0 and told["shadow_judge"].value == 0.0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (some(0.05, error="TimeoutError: 60 s"), "shadow_errors"),
        (some(0.6, answer="Iowa"), "shadow_agreement"),
        (some(0.2, found=False, quotes=()), "shadow_abstention"),
        (some(0.05, quotes=(Quote("Mars", "c0", 0, 4),)), "shadow_ungrounded_quotes"),
        (some(0.05, quotes=(Quote("This", "c1", 0, 4),)), "shadow_ungrounded_quotes"),  # another contract's words
        (some(0.05, quotes=(Quote("This", "unknown", 0, 4),)), "shadow_ungrounded_quotes"),
        (some(0.1, seconds=0.5), "shadow_latency_p95"),
    ],
)  # fmt: skip
def test_each_check_goes_red_alone(change, name):
    assert not_passed(checks(pairs(200, change))) == {name: False}


def test_a_quote_of_no_known_contract_stands_nowhere_where_none_was_named_either():
    made = [
        replace(pair, contract_id=None) for pair in pairs(100, some(0.05, quotes=(Quote("This", "unknown", 0, 4),)))
    ]
    assert not_passed(checks(made)) == {"shadow_ungrounded_quotes": False}


def test_too_few_pairs_cannot_tell():
    assert not_passed(checks(pairs(20))) == {"shadow_pairs": None}
    assert not_passed(checks([])) == {"shadow_pairs": None}


def test_the_judge_s_preference_is_by_contract_and_blind_to_sides():
    judge = Prefers("Ohio")
    told = checks(pairs(200, some(0.4, answer="Iowa")), judge=judge)
    assert not_passed(told) == {"shadow_judge": False} and told["shadow_judge"].value == pytest.approx(-0.4)
    assert 20 < judge.sides.count("A") < 60 and len(judge.sides) == 80  # asked only where they differ
    won = checks(pairs(200, some(0.4, answer="Iowa")), judge=Prefers("Iowa"))
    assert not_passed(won) == {} and won["shadow_judge"].value == pytest.approx(0.4)
    assert not_passed(checks(pairs(200, some(0.4, answer="Iowa")), judge=Prefers("neither"))) == {}


@pytest.mark.parametrize("error", [JudgeError("unreadable"), RuntimeError("no network")])
def test_a_judge_that_fails_says_nothing_for_either_side(error):
    told = checks(pairs(100, some(0.4, answer="Iowa")), judge=Prefers("Ohio", error))
    assert not_passed(told) == {"shadow_judge": None} and told["shadow_judge"].value is None


def test_sign_flips_by_hand():
    # Three groups, all for the candidate: 2 of the 8 ways to flip them are as far from 0.
    assert sign_flip_p([1, 1, 1, 1], list("aabc")) == pytest.approx(0.25, abs=0.02)
    assert sign_flip_p([1] * 20, [str(i) for i in range(20)]) < 0.001
    assert sign_flip_p([1] * 20, ["a"] * 20) == 1.0  # one contract shows nothing
    assert sign_flip_p([0, 0], list("ab")) == 1.0


def test_texts_and_rules_are_checked():
    with pytest.raises(GateError, match="no text of contract 'c0'"):
        compare_shadow(pairs(), RULES, {})
    for given in ({"level": 1.0}, {"min_pairs": 0}, {"margin": -0.1}, {"max_latency_ratio": 0}):
        with pytest.raises(GateError, match=next(iter(given))):
            ShadowRules(**given)


def test_the_order_of_pairs_does_not_matter():
    def invented(said, i):
        return replace(said, answer="Iowa", quotes=(Quote(f"Mars {i}", "c0", 0, 4),)) if i % 20 < 8 else said

    made = pairs(200, invented)
    assert checks(made, judge=Prefers("Ohio")) == checks(made[::-1], judge=Prefers("Ohio"))


def test_a_real_program_is_shadowed_and_then_decided_on(world, speaking):
    def program(say):
        made = ContractReview(world.index, 2)
        made.set_lm(speaking(say))
        return made

    able, deaf = program(world.say), program(lambda _: world.completion(quotes="none", answer=NOT_FOUND))
    examples, recorded = to_examples(world.corpus), []
    with Shadow(deaf, able, recorded.append) as shadow:
        rows = score_program(shadow, examples, "deaf", threads=2, progress=False)
        assert shadow.drain(60)
    assert len(recorded) == len(examples) and not any(row["found"] for row in rows)
    found = [pair for pair in recorded if pair.candidate.found]
    assert found and all(pair.candidate.quotes and pair.candidate.passages for pair in found)
    told = {one.name: one for one in compare_shadow(recorded, ShadowRules(min_pairs=20), world.texts)}
    assert told["shadow_ungrounded_quotes"].n == sum(len(pair.candidate.quotes) for pair in found)
    assert told["shadow_ungrounded_quotes"].passed and told["shadow_abstention"].passed is False

    sides = Side("deaf", rows), Side("able", score_program(able, examples, "able", threads=2, progress=False))
    rules = GateRules(
        detectable=0.4, discordance=0.5, max_decisions=1, max_latency_ratio=None, max_memory_ratio=None, resamples=500
    )
    decision = decide(Evidence(*sides, world.texts), rules)
    assert decision.verdict == "promote", decision.reasons
    assert decide(Evidence(*sides[::-1], world.texts), rules).verdict == "refuse"

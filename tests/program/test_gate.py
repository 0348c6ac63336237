"""The gate's decision: every check goes red alone, nothing is decided on too little, and nothing depends on order."""

import json
import random
from dataclasses import replace

import pytest

from modules.signatures import NOT_FOUND
from program.forgetting.skills import Mark
from program.gate.decide import decide
from program.gate.pairs import side_of
from program.gate.types import Check, Evidence, GateError, GateRules, Side, from_json, to_json
from program.runs import Run

N_CONTRACTS, PER_CONTRACT = 20, 20
N = N_CONTRACTS * PER_CONTRACT
TEXTS = {f"c{i:02}": f"This agreement no. {i} is governed by the laws of Ohio." for i in range(N_CONTRACTS)}
RULES = GateRules(detectable=0.1, discordance=0.2, max_decisions=1, max_kl=0.5, resamples=400)
SHADOW = Check("shadow_judge", True, 0.0, -0.01, 0.01, (-0.05, None), "no worse")


def row(i, right, stage="live", **given):
    """One question of the test set, half of them absent by gold; wrong ones say "Texas"."""
    contract, absent = f"c{i % N_CONTRACTS:02}", (i // N_CONTRACTS) % 2 == 1
    gold = NOT_FOUND if absent else "Ohio"
    answer = gold if right else ("Texas" if absent else "Iowa")
    start = TEXTS[contract].index("Ohio")
    found = answer != NOT_FOUND
    return {
        "stage": stage, "contract_id": contract, "question_id": f"q{i:04}", "category": "Governing Law",
        "question": "Which law?", "gold_answer": gold, "gold_quotes": [] if absent else ["Ohio"], "answer": answer,
        "quotes": [{"text": "Ohio", "start": start, "end": start + 4}] if found else [], "found": found,
        "confidence": 0.9, "p_answered": 0.5, "error": None, "exact_match": float(right), "token_f1": float(right),
        "seconds": 0.1 + 0.001 * (i % 7),
    } | given  # fmt: skip


def rows(n_right, stage="live", n=N):
    """Which questions are right is spread over contracts and both kinds of gold."""
    order = random.Random(7).sample(range(n), n)
    return [row(i, order[i] < n_right, stage) for i in range(n)]


def marks(n_right, n=200, skill="house juniper"):
    return [Mark(skill, f"s{i}", f"j{i % 20}", float(i < n_right)) for i in range(n)]


def evidence(**given):
    """A candidate that is better (60% to 80%), and nothing lost."""
    made = {
        "incumbent": Side("0001", rows(240), 100),
        "candidate": Side("0002", rows(320, "new"), 110),
        "texts": TEXTS,
        "skills": {"house juniper": (marks(150), marks(150))},
        "kl": [(0.1, "a"), (0.2, "b"), (0.15, "c")],
    }
    return Evidence(**made | given)


def candidate(change, of=lambda i, one: True):
    new = [one | change(one) if of(i, one) else one for i, one in enumerate(rows(320, "new"))]
    return {"candidate": Side("0002", new, 110)}


def failed(decision):
    return [check.name for check in decision.checks if check.passed is False]


def untold(decision):
    return [check.name for check in decision.checks if check.passed is None]


def test_a_candidate_that_is_better_and_loses_nothing_is_promoted():
    told = decide(evidence(shadow=[SHADOW]), RULES)
    assert (told.verdict, failed(told), untold(told), told.looked) == ("promote", [], [], True)
    assert [check.name for check in told.checks] == [
        "questions", "decisions", "gain", "mcnemar", "skill", "failed_calls", "ungrounded_quotes", "kl", "length",
        "abstention", "latency_p50", "latency_p95", "memory", "shadow_judge",
    ]  # fmt: skip
    by_name = {check.name: check for check in told.checks}
    assert by_name["gain"].value == pytest.approx(0.2) and by_name["gain"].low > 0.1
    assert by_name["memory"].value == pytest.approx(1.1) and by_name["kl"].value == pytest.approx(0.15)
    assert "better: +20.0 points" in told.reasons[0] and told.n == N and told.discordance == pytest.approx(0.2)


def longer(one):
    return {"answer": one["answer"] + " and so on and on"} if one["found"] else {}


def slower(one):
    return {"seconds": 2 * one["seconds"]}


NOT_THERE = {"quotes": [{"text": "the laws of Mars", "start": 3, "end": 19}]}
SHIFTED = {"quotes": [{"text": "Ohio", "start": 0, "end": 4}]}
EMPTY = {"quotes": [{"text": "", "start": 4, "end": 4}]}
BACKWARDS = {"quotes": [{"text": "Ohio", "start": -5, "end": -1}]}  # which Python would find


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"candidate": Side("0002", rows(240, "new"), 110)}, ["gain", "mcnemar"]),
        ({"candidate": Side("0002", rows(200, "new"), 110)}, ["gain", "mcnemar"]),
        ({"skills": {"house juniper": (marks(150), marks(110))}}, ["skill"]),
        ({"skills": {"house juniper": (marks(150), marks(146))}}, ["skill"]),  # within the margin, but not shown
        (candidate(lambda one: NOT_THERE, lambda i, one: i == 0), ["ungrounded_quotes"]),
        (candidate(lambda one: SHIFTED, lambda i, one: i == 0), ["ungrounded_quotes"]),
        (candidate(lambda one: EMPTY, lambda i, one: i == 0), ["ungrounded_quotes"]),
        (candidate(lambda one: BACKWARDS, lambda i, one: i == 0), ["ungrounded_quotes"]),
        ({"kl": [(0.9, "a"), (0.8, "b")]}, ["kl"]),
        (candidate(longer), ["length"]),
        (candidate(lambda one: {"found": False}), ["abstention"]),
        (candidate(lambda one: {"found": True}), ["abstention"]),
        (candidate(slower), ["latency_p50", "latency_p95"]),
        (candidate(slower, lambda i, one: i % 10 == 0), ["latency_p95"]),
        ({"candidate": Side("0002", rows(320, "new"), 200)}, ["memory"]),
        ({"shadow": [replace(SHADOW, passed=False)]}, ["shadow_judge"]),
    ],
)  # fmt: skip
def test_each_check_refuses_alone(change, names):
    if names == ["abstention"]:
        change = change | {}
        told = decide(evidence(**change), replace(RULES, max_length_ratio=None))
    else:
        told = decide(evidence(**change), RULES)
    assert (told.verdict, failed(told)) == ("refuse", names)
    reasons = [check.why for check in told.checks if check.name in names]
    assert all(any(why in reason for reason in told.reasons) for why in reasons)


@pytest.mark.parametrize(
    ("change", "rules", "names"),
    [
        ({"kl": ()}, {}, ["kl"]),
        ({"candidate": Side("0002", rows(320, "new"))}, {}, ["memory"]),
        (candidate(lambda one: {"seconds": None}), {}, ["latency_p50", "latency_p95"]),
        ({}, {"detectable": 0.05}, ["questions"]),
        ({"skills": {"one contract": ([Mark("s", str(i), "j", 1.0) for i in range(40)],) * 2}}, {}, ["skill"]),
        ({"skills": {"house juniper": (marks(150), marks(150)[:170])}}, {}, ["skill"]),  # 30 calls failed
        ({"shadow": [replace(SHADOW, passed=None)]}, {}, ["shadow_judge"]),
    ],
)
def test_what_cannot_be_told_is_undecided_and_never_passed(change, rules, names):
    told = decide(evidence(**change), replace(RULES, **rules))
    assert (told.verdict, untold(told), failed(told)) == ("undecided", names, [])


def test_a_rule_of_none_is_not_asked_for():
    rules = replace(RULES, max_kl=None, max_memory_ratio=None, max_latency_ratio=None, max_length_ratio=None)
    told = decide(evidence(kl=(), candidate=Side("0002", rows(320))), replace(rules, max_abstention_change=None))
    names = [check.name for check in told.checks]
    assert names == ["questions", "decisions", "gain", "mcnemar", "skill", "failed_calls", "ungrounded_quotes"]
    assert told.verdict == "promote"


def test_too_few_questions_say_how_many_and_leave_the_gain_alone():
    few = evidence(incumbent=Side("0001", rows(36, n=60), 100), candidate=Side("0002", rows(60, n=60), 110))
    told = decide(few, RULES)
    assert told.verdict == "undecided" and not told.looked and told.n == 60 < told.n_needed
    assert f"label {told.n_needed - 60} more" in told.reasons[0]
    assert not {"gain", "mcnemar"} & {check.name for check in told.checks}
    # The number does not depend on which side is better.
    turned = decide(replace(few, incumbent=few.candidate, candidate=few.incumbent), RULES)
    assert turned.n_needed == told.n_needed


def test_a_lost_skill_refuses_though_there_are_too_few_questions():
    few = {"incumbent": Side("0001", rows(36, n=60), 100), "candidate": Side("0002", rows(60, n=60), 110)}
    told = decide(evidence(**few, skills={"house juniper": (marks(150), marks(90))}), RULES)
    assert told.verdict == "refuse" and told.reasons[0].startswith("house juniper: lost, -30.0 points")


def test_failed_calls_are_left_out_of_both_sides_and_too_many_decide_nothing():
    def failing(share):
        return candidate(
            lambda one: {"error": "TimeoutError: 60 s", "exact_match": None, "found": False, "quotes": []},
            lambda i, one: i < share * N,
        )

    told = decide(evidence(**failing(0.04)), RULES)
    assert told.verdict == "promote" and told.n == N - 16
    assert next(c for c in told.checks if c.name == "gain").value == pytest.approx(
        sum(one["exact_match"] for one in rows(320)[16:]) / (N - 16)
        - sum(one["exact_match"] for one in rows(240)[16:]) / (N - 16)
    )
    told = decide(evidence(**failing(0.06)), RULES)
    assert (told.verdict, untold(told)) == ("undecided", ["failed_calls"])
    assert "0 of the incumbent's and 24 of the candidate's calls failed" in told.reasons[0]
    assert decide(evidence(**failing(1)), RULES).verdict == "undecided"
    poisoned = [one | (NOT_THERE if i == N - 1 else {}) for i, one in enumerate(failing(0.5)["candidate"].rows)]
    assert decide(evidence(candidate=Side("0002", poisoned, 110)), RULES).verdict == "refuse"


def test_a_base_that_finds_nothing_may_be_left():
    """Against a base that says "not in this contract" to all, the change is large, and it is towards gold."""
    base = [one | {"answer": NOT_FOUND, "found": False, "quotes": []} for one in rows(0)]
    for one in base:
        one["exact_match"] = float(one["gold_answer"] == NOT_FOUND)
    told = decide(evidence(incumbent=Side("base", base, 100)), RULES)
    assert told.verdict == "promote"
    by_name = {check.name: check for check in told.checks}
    assert by_name["abstention"].value < 0 and "gold answers'" in by_name["length"].why


def test_every_decision_on_a_test_set_is_counted_and_after_the_last_it_is_used_up():
    rules = replace(RULES, max_decisions=3)
    first = decide(evidence(), rules)
    assert (first.verdict, first.n_decisions) == ("promote", 0) and first.level == pytest.approx(1 - 0.05 / 3)
    assert first.n_needed > decide(evidence(), RULES).n_needed
    others = [replace(first, id=str(i)) for i in range(3)]
    assert decide(evidence(earlier=others[:2]), rules).n_decisions == 2
    told = decide(evidence(earlier=others), rules)
    assert (told.verdict, untold(told), told.looked) == ("undecided", ["decisions"], False)
    # The same decision again, one that did not look, and one on other contracts are no uses of it.
    harmless = [first, replace(others[1], looked=False), replace(others[2], contracts=("elsewhere",))]
    assert decide(evidence(earlier=[*harmless, first]), rules) == first
    # One contract in common is enough: a question added does not make a test set new.
    assert decide(evidence(earlier=[replace(others[0], contracts=("c00", "x"))]), rules).n_decisions == 1


def test_discordance_comes_of_the_rules_until_earlier_decisions_tell():
    rules = replace(RULES, max_decisions=3)
    told = decide(evidence(), rules)
    rougher = decide(evidence(earlier=[replace(told, id="x", discordance=0.5)]), rules)
    smoother = decide(evidence(earlier=[replace(told, id="x", discordance=0.01)]), rules)
    assert smoother.n_needed < told.n_needed < rougher.n_needed


def test_the_order_of_rows_does_not_matter_and_the_same_evidence_is_the_same_decision():
    shuffled = random.Random(3)
    f1 = [one | {"token_f1": shuffled.random()} for one in rows(320, "new")]
    given = evidence(candidate=Side("0002", f1, 110))
    mixed = Evidence(
        Side("0001", shuffled.sample(given.incumbent.rows, N), 100),
        Side("0002", shuffled.sample(f1, N), 110),
        dict(reversed(TEXTS.items())),
        {name: tuple(shuffled.sample(side, len(side)) for side in both) for name, both in given.skills.items()},
        given.kl[::-1],
    )
    rules = replace(RULES, score="token_f1")
    assert decide(given, rules) == decide(mixed, rules)
    assert decide(given, RULES).id != decide(given, rules).id
    assert decide(evidence(), RULES).id != decide(given, RULES).id


def test_a_score_between_0_and_1_is_tested_by_its_sign():
    new = [one | {"token_f1": min(1.0, old["token_f1"] + 0.3)} for one, old in zip(rows(320), rows(240), strict=True)]
    told = decide(evidence(candidate=Side("0002", new, 110)), replace(RULES, score="token_f1"))
    check = next(one for one in told.checks if one.name == "mcnemar")
    assert told.verdict == "promote" and "160 answers turned better, 0 worse" in check.why


def test_skills_may_be_score_rows_and_their_failed_calls_are_left_out():
    then, now = rows(300), rows(300)
    now[3] = now[3] | {"error": "TimeoutError", "exact_match": None}
    check = next(c for c in decide(evidence(skills={"laws": (then, now)}), RULES).checks if c.name == "skill")
    assert check.passed and (check.n, check.about) == (N - 1, "laws")


def test_a_decision_goes_through_json():
    told = decide(evidence(shadow=[SHADOW]), RULES)
    assert from_json(to_json(told)) == told
    damaged = json.loads(to_json(told))
    for broken in ("", "[]", "{}", json.dumps(damaged | {"verdict": "yes"}), json.dumps(damaged | {"more": 1})):
        with pytest.raises(GateError, match="decide again"):
            from_json(broken)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"candidate": Side("b", rows(320)[1:])}, "put to one side only"),
        ({"candidate": Side("b", rows(320) + rows(320)[:1])}, "401 score rows of 400 questions"),
        ({"candidate": Side("b", [])}, "0 score rows"),
        (candidate(lambda one: {"gold_answer": "Utah"}), "another gold_answer"),
        (candidate(lambda one: {"contract_id": "c01"}), "another contract_id"),
        (candidate(lambda one: {"exact_match": None}), "exact_match=None"),
        (candidate(lambda one: {"exact_match": 1.5}), "exact_match=1.5"),
        ({"texts": {}}, "no text of contract 'c00'"),
        ({"skills": {"s": ([], [])}}, "no questions"),
        ({"skills": {"s": (marks(1)[:5], marks(1)[:6])}}, "skill 's': 1 questions"),
        ({"skills": {"s": (marks(1) * 2, marks(1))}}, "score each once"),
        ({"skills": {"s": (rows(3), rows(3)[1:])}}, "skill 's': 1 questions"),
    ],
)  # fmt: skip
def test_evidence_that_is_none_is_refused(change, match):
    with pytest.raises(GateError, match=match):
        decide(evidence(**change), RULES)


@pytest.mark.parametrize(
    "given",
    [
        {"level": 1.0}, {"level": True}, {"margin": 0.0}, {"min_power": "0.8"}, {"discordance": 0.01},
        {"max_failed_share": 1.5}, {"max_kl": 0}, {"max_latency_ratio": float("inf")}, {"max_decisions": 0},
        {"max_decisions": 1.5}, {"max_length_ratio": (2.0, 0.5)}, {"resamples": 5}, {"max_memory_ratio": float("nan")},
    ],
)  # fmt: skip
def test_rules_are_checked_when_made(given):
    with pytest.raises(GateError, match=next(iter(given))):
        GateRules(**given)


def test_the_stages_of_a_run_are_sides(tmp_path):
    run = Run(tmp_path / "r1", "complete", "", {}, {}, {}, (*rows(240, "base"), *rows(320, "p -> s")), {})
    first = evidence(incumbent=side_of(run, "base", memory_bytes=1), candidate=side_of(run, "p -> s", memory_bytes=1))
    told = decide(first, RULES)
    assert (told.verdict, told.incumbent, told.candidate) == ("promote", "r1, base", "r1, p -> s")
    with pytest.raises(GateError, match=r"no stage 's'; its stages are \['base', 'p -> s'\]"):
        side_of(run, "s")

"""Which preferences are learnt from: votes, contradictions, caps, people who mean harm; what is written of it."""

import json
from dataclasses import replace
from random import Random

import pytest

from optimizers.errors import TrainingError
from optimizers.preference import Preference
from optimizers.preference_pairs import Kept, PairCaps, curate, read_preferences, write_preferences
from optimizers.preference_people import check_people
from optimizers.preference_rows import anchored, fitting

ONE = Preference(0, {"passages": "[1] Ohio.", "question": "Law?"}, "Ohio", "none", "c0", "Law?", "edit", "ann")
FREE = PairCaps(None, None, None)


def flipped(one, by=None):
    return replace(one, chosen=one.rejected, rejected=one.chosen, by=by or one.by)


def of(number, by="ann", contract=None, **changes):
    asked, group = f"question {number}", contract or f"c{number}"
    return replace(ONE, inputs={"passages": "x", "question": asked}, question=asked, by=by, group=group, **changes)


def kept(*preferences, **options):
    return curate(preferences, options.pop("caps", FREE), **options)


def test_what_is_said_twice_counts_once_and_both_are_named():
    told = kept(ONE, replace(ONE, by="ben", source="choice"), ONE)
    assert told.kept == (Kept(ONE, ("ann", "ben"), ("choice", "edit")),)
    assert told.given == 3 and told.dropped == {"said twice": 2}


def test_the_same_answers_to_another_prompt_are_another_preference():
    assert len(kept(ONE, replace(ONE, inputs={**ONE.inputs, "passages": "[1] Utah."})).kept) == 2
    assert len(kept(ONE, replace(ONE, predictor=1)).kept) == 2
    # White space is no difference: a model's text ends in a line end, one that was written for it may not.
    assert kept(ONE, replace(flipped(ONE, "ben"), rejected="Ohio\n")).dropped == {"contradicted": 2}
    assert kept(replace(ONE, rejected="Ohio\n")).dropped == {"tie": 1}


def test_a_contradiction_goes_to_the_majority_and_an_even_one_to_nobody():
    two, one = [ONE, replace(ONE, by="ben")], flipped(ONE, "cat")
    told = kept(one, *two)
    assert [each.preference for each in told.kept] == [ONE] and told.kept[0].by == ("ann", "ben")
    assert told.dropped == {"outvoted": 1, "said twice": 1}
    even = kept(ONE, flipped(ONE, "cat"))
    assert even.kept == () and even.dropped == {"contradicted": 2}
    thumbs = [replace(ONE, rejected=None, source="thumb"), replace(ONE, rejected="Ohio", chosen=None, by="ben")]
    assert kept(*thumbs).kept == ()


def test_a_persons_last_word_counts():
    told = kept(ONE, flipped(ONE))
    assert [each.preference for each in told.kept] == [flipped(ONE)] and told.dropped == {"taken back": 1}


def test_people_outvote_a_judge_and_a_judge_alone_is_heard():
    judged = replace(flipped(ONE), by=None, source="judge")
    assert [each.preference for each in kept(judged, judged).kept] == [judged]
    told = kept(judged, ONE)
    assert [each.preference for each in told.kept] == [ONE] and told.dropped == {"judge outvoted": 1}
    both = kept(replace(ONE, by=None, source="judge"), ONE)
    assert both.kept[0].by == ("", "ann") and both.kept[0].sources == ("edit", "judge")
    assert kept(judged, ONE, flipped(ONE, "ben")).kept == ()  # the judge does not decide between people


def test_nothing_fills_the_set_by_itself():
    crowd = [of(i) for i in range(9)] + [of(i, by="ben") for i in range(20, 23)]
    told = kept(*crowd, caps=PairCaps(4, None, None))
    assert sum(each.by == ("ann",) for each in told.kept) == 4 and len(told.kept) == 7
    assert told.dropped == {"cap per person": 5}
    # What several people say goes on as long as one of them has room.
    shared = [of(i) for i in range(6)] + [of(i, by="ben") for i in range(3)]
    told = kept(*shared, caps=PairCaps(3, None, None))
    assert told.dropped["cap per person"] == 6 - len(told.kept) and 3 <= len(told.kept) <= 6
    same = [of(0, contract="c", chosen=f"a{i}") for i in range(5)]
    assert kept(*same, caps=PairCaps(None, 2, None)).dropped == {"cap per question": 3}
    assert kept(*[of(i, contract="c") for i in range(5)], caps=PairCaps(None, None, 2)).dropped == {
        "cap per contract": 3
    }
    judged = [of(i, by=None) for i in range(9)]
    assert len(kept(*judged, caps=PairCaps(1, None, None)).kept) == 9, "a judge is no person"


def test_what_a_cap_leaves_is_drawn_and_not_the_first():
    crowd = [of(i) for i in range(30)]
    drawn = [
        {each.preference.question for each in kept(*crowd, caps=PairCaps(5, None, None), seed=s).kept} for s in (0, 1)
    ]
    assert drawn[0] != drawn[1] and drawn[0] != {of(i).question for i in range(5)}
    again = {each.preference.question for each in kept(*crowd, caps=PairCaps(5, None, None), seed=0).kept}
    assert again == drawn[0]


def test_ties_people_left_out_validation_contracts_and_what_gold_refutes_are_counted():
    told = kept(
        replace(ONE, rejected="Ohio"), of(1, by="mal"), of(2, contract="val"), of(3), of(4),
        check=lambda one: {"question 3": False, "question 4": None}.get(one.question),
        left_out=["mal"], groups_apart=["val"],
    )  # fmt: skip
    assert [each.preference for each in told.kept] == [of(4)]
    assert told.dropped == {
        "tie": 1, "person left out": 1, "contract of the validation set": 1, "against gold": 1
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [{"chosen": None, "rejected": None}, {"source": "hearsay"}])
def test_a_preference_that_is_none_is_refused(wrong):
    with pytest.raises(TrainingError, match="preference 0"):
        kept(replace(ONE, **wrong))


def test_what_was_learnt_from_is_written_with_its_provenance(tmp_path):
    first = kept(ONE, replace(ONE, by="ben"))
    second = kept(replace(ONE, rejected=None, source="judge", by=None, margin=0.3, question="Wörter\u2028?"))
    write_preferences(tmp_path / "preferences.jsonl", [first, second])
    read = read_preferences(tmp_path / "preferences.jsonl")
    assert read == [(1, first.kept[0]), (2, second.kept[0])]
    assert json.loads((tmp_path / "preferences.jsonl").read_text().split("\n")[0])["by"] == ["ann", "ben"]
    (tmp_path / "preferences.jsonl").write_text('{"round": 1}\n')
    with pytest.raises(TrainingError, match="line 1"):
        read_preferences(tmp_path / "preferences.jsonl")


# -- people


def crowd(n, flips, *, seed=0, people=("ann", "ben", "cat")):
    """Everybody's preference on the same n pairs; `flips` is the share that each turns round."""
    rng = Random(seed)
    return [
        flipped(of(i, by=who), who) if rng.random() < flips.get(who, 0.0) else of(i, by=who)
        for i in range(n) for who in people
    ]  # fmt: skip


def left_out(people):
    return [person.by for person in people if person.left_out]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.1])
def test_one_who_flips_everything_is_named_and_careless_people_are_not(noise):
    for seed in range(5):
        said = crowd(40, {"ann": noise, "ben": noise, "cat": 1.0}, seed=seed)
        assert left_out(check_people(said)) == ["cat"]
        assert left_out(check_people(said, lambda one: one.chosen == "Ohio")) == ["cat"]


def test_alone_with_gold_one_is_found_and_without_gold_nobody_is_accused():
    said = crowd(12, {"cat": 1.0}, people=("cat",))
    (cat,) = check_people(said, lambda one: one.chosen == "Ohio")
    assert (
        cat.left_out and (cat.given, cat.checked, cat.agreed) == (12, 12, 0) and cat.p_value == pytest.approx(0.5**12)
    )
    (cat,) = check_people(said)
    assert not cat.left_out and cat.checked == 0


def right(one):
    return one.chosen == "Ohio"


def test_few_preferences_and_guessing_accuse_nobody():
    assert left_out(check_people(crowd(3, {"cat": 1.0}), right)) == []
    guessing = dict.fromkeys(("ann", "ben", "cat"), 0.5)
    accused = sum(bool(left_out(check_people(crowd(60, guessing, seed=seed), right))) for seed in range(40))
    assert accused <= 2  # 1% for each draw of three people


def test_a_judge_is_no_person_and_two_who_contradict_each_other_do_not_decide():
    assert check_people([replace(of(i), by=None) for i in range(9)]) == []
    told = check_people(crowd(20, {"ben": 1.0}, people=("ann", "ben")), alpha=0.01)
    assert {person.by: (person.checked, person.left_out) for person in told} == {
        "ann": (0, False), "ben": (0, False)
    }  # fmt: skip


# -- answers that are good by themselves


def thumbs_up(i, **changes):
    return replace(of(i), rejected=None, source="thumb", question=f"thumb {i}", **changes)


def test_good_answers_stand_beside_pairs_and_do_not_drown_them():
    given = [of(i) for i in range(4)] + [thumbs_up(i) for i in range(10, 20)]
    fit, unfit = fitting(given, "dpo", anchors=True)
    assert len(fit) == 14 and unfit == {}
    curated = anchored(kept(*fit), 1.0)
    assert [one.preference.rejected is None for one in curated.kept].count(True) == 4
    assert curated.dropped == {"more good answers than anchors": 6}
    assert fitting(given, "dpo") == (given[:4], {"unpaired (use kto)": 10})
    assert fitting(given, "kto", anchors=True) == (given, {})
    assert anchored(kept(*given[4:]), 1.0).dropped == {"unpaired (use kto)": 10}, "there is no pair to stand beside"


def test_where_a_cap_is_short_pairs_go_before_thumbs():
    given = [thumbs_up(i) for i in range(10, 20)] + [of(i) for i in range(4)]
    taken = kept(*given, caps=PairCaps(per_person=5, per_question=None, per_contract=None)).kept
    assert sum(one.preference.rejected is not None for one in taken) == 4 and len(taken) == 5

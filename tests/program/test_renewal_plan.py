"""When to renew and with what: config, triggers, plan; pure functions."""

from datetime import UTC, datetime, timedelta

import pytest

from program.config import ConfigError
from program.renewal.config import RenewalConfig, load_renewal
from program.renewal.home import RenewalError
from program.renewal.plan import make_plan
from program.renewal.triggers import Seen, Trigger, due

NOW = datetime(2031, 5, 4, tzinfo=UTC)
CONFIG = RenewalConfig(corpus="c.json", frozen="f.json")
LATELY = NOW - timedelta(days=1)


def kinds(seen, config=CONFIG, by_hand=""):
    return [one.kind for one in due(seen, config, NOW, by_hand)]


def test_nothing_new_sets_nothing_off_and_each_reason_does():
    quiet = Seen(released=True, feedback=60, feedback_then=50, renewed=LATELY)
    assert kinds(quiet) == []
    assert kinds(Seen(released=False)) == ["first"]
    assert kinds(quiet, by_hand="the boss asked") == ["hand"]
    assert kinds(Seen(released=True, feedback=100, feedback_then=50, renewed=LATELY)) == ["feedback"]
    assert kinds(Seen(released=True, feedback=99, feedback_then=50, renewed=LATELY)) == []
    assert kinds(Seen(released=True, labels=100, renewed=LATELY)) == ["labels"]
    assert kinds(Seen(released=True, labels=99, renewed=LATELY)) == []
    arrived = frozenset(str(i) for i in range(20))
    assert kinds(Seen(released=True, contracts=arrived, renewed=LATELY)) == ["contracts"]
    assert kinds(Seen(released=True, contracts=arrived, contracts_then=frozenset({"3"}), renewed=LATELY)) == []
    assert kinds(Seen(released=True, renewed=NOW - timedelta(days=90))) == ["schedule"]
    assert kinds(Seen(released=True, renewed=LATELY, drifted=("model", "confidence fell"))) == ["drift"]


def test_drift_that_goes_on_behind_a_renewal_for_it_waits_for_the_next():
    drifted = {"released": True, "renewed": LATELY, "drifted": ("model", "confidence fell")}
    assert kinds(Seen(**drifted, drift_tried=NOW - timedelta(days=29))) == []
    assert kinds(Seen(**drifted, drift_tried=NOW - timedelta(days=29), labels=100)) == ["labels"]
    assert kinds(Seen(**drifted, drift_tried=NOW - timedelta(days=30))) == ["drift"]


def test_a_first_candidate_that_was_refused_is_not_made_again_without_a_reason():
    assert kinds(Seen(released=False, renewed=LATELY)) == []


def test_a_clock_that_went_back_sets_nothing_off():
    assert kinds(Seen(released=True, renewed=NOW + timedelta(days=400))) == []


def test_none_switches_a_trigger_off():
    off = dict.fromkeys(("labels_min", "feedback_min", "contracts_min", "every_days"))
    config = RenewalConfig(corpus="c", frozen="f", **off)
    arrived = frozenset(map(str, range(99)))
    seen = Seen(released=True, labels=999, feedback=10**6, contracts=arrived, renewed=NOW - timedelta(days=999))
    assert kinds(seen, config) == []


@pytest.mark.parametrize(
    ("kind", "cause", "feedback", "recipe"),
    [
        ("first", "none", False, "r -> p -> s"),
        ("drift", "corpus", True, "r"),
        ("drift", "questions", True, "p"),
        ("drift", "model", True, "s -> a"),
        ("drift", "reviewers/unknown", False, "s"),
        ("labels", "none", False, "s"),
        ("contracts", "none", True, "s"),
        ("feedback", "none", True, "a"),
        ("schedule", "none", True, "s -> a"),
        ("hand", "none", False, "s"),
    ],
)
def test_what_is_tuned_is_what_changed(kind, cause, feedback, recipe):
    assert make_plan([Trigger(kind, "why")], CONFIG, cause=cause, has_feedback=feedback).recipe == recipe


def test_several_reasons_are_one_recipe_the_cheapest_step_first():
    plan = make_plan(
        [Trigger("feedback", "50 new"), Trigger("drift", "new questions")], CONFIG, cause="questions", has_feedback=True
    )
    assert plan.recipe == "p -> a" and plan.reasons == ("50 new", "new questions")


def test_where_nothing_is_left_to_do_it_says_what_is_missing():
    config = RenewalConfig(corpus="c", frozen="f", recipe="a")
    with pytest.raises(RenewalError, match="needs feedback or a judge"):
        make_plan([Trigger("schedule", "a quarter")], config)
    judged = RenewalConfig(corpus="c", frozen="f", recipe="a", compile={"judge": "likelihood"})
    assert make_plan([Trigger("schedule", "a quarter")], judged).recipe == "a"


def test_the_config_file_counts_paths_from_home_and_refuses_what_it_does_not_know(tmp_path):
    toml = tmp_path / "evergreen.toml"
    with pytest.raises(ConfigError, match="has no evergreen.toml"):
        load_renewal(tmp_path)
    toml.write_text('corpus = "c.json"\nfrozen = "/f.json"\n[skills]\njuniper = "s/j.json"\n[gate]\nmargin = 0.03\n')
    config = load_renewal(tmp_path)
    assert config.corpus == str(tmp_path / "c.json") and config.frozen == "/f.json"
    assert config.skills == {"juniper": str(tmp_path / "s/j.json")} and config.gate == {"margin": 0.03}
    for text, told in (
        ('corpus = "c"\n', "lacks"),
        ('corpus = "c"\nfrozen = "f"\nfeedback_mim = 3\n', "did you mean 'feedback_min'"),
        ('corpus = "c"\nfrozen = "f"\nevery_days = -1\n', "must be a finite number above 0"),
        ('corpus = "c"\nfrozen = "f"\nskills = "x"\n', "must be dict"),
        ('corpus = "c"\nfrozen = "f"\n[compile]\nout = "x"\n', "outside of"),
    ):
        toml.write_text(text)
        with pytest.raises(ConfigError, match=told):
            load_renewal(tmp_path)

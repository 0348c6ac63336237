"""PreferenceTune: its rounds, what it refuses, the prompts that it trains under, its reference; and on a tiny model."""

import math
import threading
from dataclasses import replace

import dspy
import pytest
from dspy.teleprompt import BetterTogether, BootstrapFinetune
from dspy.utils import DummyLM

from optimizers import preference as tuning
from optimizers.errors import TrainingError
from optimizers.local_lm import local_lm
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.preference import Preference, PreferenceTune
from optimizers.preference_pairs import read_preferences
from optimizers.preference_policy import kl_from_incumbent, mean_length
from optimizers.preference_rollouts import rollouts

pytestmark = pytest.mark.usefixtures("plain_chat")
ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)


class Ask(dspy.Module):
    """One predictor, and something that cannot be copied, as a program with an index has."""

    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.lock = threading.Lock()

    def forward(self, question):
        return self.ask(question=question)


def said(answer):
    return ADAPTER.format_assistant_message_content(Ask().ask.signature, {"answer": answer})


def pair(number, **changes):
    asked = f"train {number}?"
    one = Preference(0, {"question": asked}, said("yes"), said("no"), f"c{number}", asked, "edit", "ann")
    return replace(one, **changes)


PAIRS = [pair(i) for i in range(4)]
VAL = [dspy.Example(question=f"val {i}?", contract_id=f"v{i}").with_inputs("question") for i in range(2)]


class Source:
    """Preferences round by round; notes what it was asked with."""

    def __init__(self, *made):
        self.made, self.asked = list(made), []

    def make(self, program, trainset, valset, round):
        self.asked.append((name(program), [*trainset], [*valset], round))
        return self.made[round - 1]


@pytest.fixture
def jobs(monkeypatch):
    """The fine-tuning jobs, of which none runs: the n-th gives the model "tuned n", counted from 1."""
    taken = []

    def note(finetune_dict):
        taken.extend(finetune_dict.values())
        return {key: job["lm"].copy(model=f"local/tuned{len(taken)}") for key, job in finetune_dict.items()}

    monkeypatch.setattr(BootstrapFinetune, "finetune_lms", staticmethod(note))
    return taken


class Tunable:
    finetunable = True


def student():
    program = Ask()
    program.set_lm(dspy.LM("local/base", api_key="none", provider=Tunable()))
    return program


def name(program):
    return program.ask.lm.model.removeprefix("local/")


def compiled(scores, source, *, program=None, kls=None, lengths=None, monkeypatch=None, trainset=(), **options):
    """PreferenceTune over models by name: their scores, KLs and mean lengths."""
    off = {"max_kl": None, "max_length_ratio": None, "patience": 0}
    if kls is not None:
        monkeypatch.setattr(tuning, "kl_from_incumbent", lambda program, *_, **__: kls[name(program)])
        off["max_kl"] = 0.5
    if lengths is not None:
        monkeypatch.setattr(tuning, "mean_length", lambda program, *_, **__: lengths[name(program)])
        off["max_length_ratio"] = 1.5
    tune = PreferenceTune(source, score=lambda program, examples: scores[name(program)], **(off | options))
    return tune, tune.compile(program or student(), trainset, valset=VAL)


# -- rounds and what they refuse


def test_rounds_go_on_from_the_best_with_fresh_preferences(jobs):
    source = Source(PAIRS[:2], PAIRS[2:])
    program = student()
    tune, best = compiled(
        {"base": 0.4, "tuned1": 0.5, "tuned2": 0.5}, source, rounds=2, program=program, trainset=["train"]
    )
    assert name(best) == "tuned2" and name(program) == "base", "the student is not changed"
    assert source.asked == [("base", ["train"], VAL, 1), ("tuned1", ["train"], VAL, 2)]
    assert [(r.number, r.n_pairs, r.score, r.refused) for r in tune.log] == [
        (0, 0, 0.4, ""), (1, 2, 0.5, ""), (2, 2, 0.5, ""),
    ]  # fmt: skip
    assert [round.models for round in tune.log] == [("local/base",), ("local/tuned1",), ("local/tuned2",)]


def test_a_round_whose_validation_score_falls_is_refused_and_is_the_last(jobs):
    tune, best = compiled({"base": 0.4, "tuned1": 0.6, "tuned2": 0.5}, Source(PAIRS, PAIRS, PAIRS), rounds=3)
    assert name(best) == "tuned1" and len(tune.log) == 3
    assert "0.5000 is below the best so far, 0.6000" in tune.log[2].refused
    for score in (0.39, math.nan):
        jobs.clear()
        program = student()
        assert compiled({"base": 0.4, "tuned1": score}, PAIRS, program=program)[1] is program


def test_a_round_that_goes_too_far_or_grows_too_long_is_refused(jobs, monkeypatch):
    scores = {"base": 0.4, "tuned1": 0.9}
    tune, best = compiled(scores, PAIRS, kls={"tuned1": 0.6}, monkeypatch=monkeypatch)
    assert name(best) == "base" and "KL 0.600" in tune.log[1].refused and tune.log[1].kl == 0.6
    for length, ratio in ((160.0, 1.6), (50.0, 0.5)):
        jobs.clear()
        lengths = {"base": 100.0, "tuned1": length}
        tune, best = compiled(scores, PAIRS, lengths=lengths, monkeypatch=monkeypatch)
        assert name(best) == "base" and tune.log[1].length_ratio == ratio and "as long" in tune.log[1].refused
    jobs.clear()
    fine = {"kls": {"tuned1": 0.5}, "lengths": {"base": 100.0, "tuned1": 150.0}, "monkeypatch": monkeypatch}
    tune, best = compiled(scores, PAIRS, **fine)
    assert name(best) == "tuned1" and tune.log[1].refused == "" and tune.log[1].kl == 0.5


def test_no_preference_kept_says_which_filter_dropped_them(jobs):
    taken = [pair(0, chosen=said("no")), pair(1, group="v0")]
    with pytest.raises(TrainingError, match="none was kept.*'contract of the validation set': 1, 'tie': 1"):
        compiled({"base": 0.4}, taken)
    thumbs = [pair(0, rejected=None, source="thumb")]
    with pytest.raises(TrainingError, match=r"unpaired \(use kto\)': 1"):
        compiled({"base": 0.4}, thumbs)
    # In a later round it is the end, not an error.
    tune, best = compiled({"base": 0.4, "tuned1": 0.5}, Source(PAIRS, []), rounds=2)
    assert name(best) == "tuned1" and len(tune.log) == 2 and jobs and len(jobs) == 1


def test_one_who_flips_everything_is_left_out_named_and_stays_out(jobs, caplog):
    honest = [pair(i, by=by) for i in range(12) for by in ("ann", "ben")]
    lies = [pair(i, by="mal", chosen=said("no"), rejected=said("yes")) for i in range(12)]
    alone = [pair(20 + i, by="mal") for i in range(3)]
    tune, _ = compiled(
        {"base": 0.4, "tuned1": 0.5, "tuned2": 0.5}, Source(honest + lies + alone, alone + PAIRS), rounds=2
    )
    assert [person.by for person in tune.people if person.left_out] == ["mal"] and "mal" in caplog.text
    assert tune.log[1].dropped["person left out"] == 15 and tune.log[2].dropped["person left out"] == 3
    assert all("mal" not in one.by for round in tune.curated for one in round.kept)


def test_gold_checks_reach_people_and_pairs(jobs):
    lies = [pair(i, by="mal", chosen=said("no"), rejected=said("yes")) for i in range(12)]
    tune, _ = compiled(
        {"base": 0.4, "tuned1": 0.5}, [*PAIRS, *lies], check=lambda one: one.chosen == said("yes")
    )  # fmt: skip
    assert tune.log[1].n_pairs == 4 and tune.people[0].by == "mal" and tune.people[0].left_out


# -- what is trained, and under which prompts


def test_rows_are_the_prompts_that_the_program_is_served_with(jobs):
    program = student()
    program.ask.signature = program.ask.signature.with_instructions("Answer in one word.")
    program.ask.demos = [dspy.Example(question="demo?", answer="aye")]
    compiled({"base": 0.4, "tuned1": 0.5}, PAIRS, program=program, adapter=ADAPTER)
    row = jobs[0]["train_data"][0]
    assert row["prompt"] == ADAPTER.format(program.ask.signature, demos=program.ask.demos, inputs=PAIRS[0].inputs)
    assert "Answer in one word." in row["prompt"][0]["content"] and any(
        "aye" in turn["content"] for turn in row["prompt"]
    )
    assert (row["chosen"], row["rejected"], row["group"]) == (said("yes"), said("no"), "c0")


def test_each_lm_learns_what_was_said_of_its_own_predictors(jobs):
    class Two(dspy.Module):
        def __init__(self):
            super().__init__()
            self.ask, self.check = dspy.Predict("question -> answer"), dspy.Predict("question -> answer")

    program = Two()
    program.ask.lm, program.check.lm = (dspy.LM(f"local/{n}", provider=Tunable()) for n in ("one", "two"))
    tune = PreferenceTune([pair(0, predictor=1)], score=lambda *_: 0.5, max_kl=None, max_length_ratio=None, patience=0)
    best = tune.compile(program, [], valset=VAL)
    assert [job["lm"].model for job in jobs] == ["local/two"]
    assert (best.ask.lm.model, best.check.lm.model) == ("local/one", "local/tuned1")
    with pytest.raises(TrainingError, match="predictor 2, and the program has 2"):
        tune.compile(program, [], valset=VAL, preferences=[pair(0, predictor=2)])


def test_the_nll_term_and_the_settings_that_are_given(jobs):
    compiled({"base": 0.4, "tuned1": 0.5}, PAIRS, nll_weight=0.3)
    told = jobs[0]["train_kwargs"]
    assert told["method"] == "dpo" and told["loss_type"] == ("sigmoid", "sft") and told["loss_weights"] == (1.0, 0.3)
    jobs.clear()
    compiled({"base": 0.4, "tuned1": 0.5}, PAIRS, train_kwargs={"loss_type": "ipo", "beta": 0.7})
    assert jobs[0]["train_kwargs"]["loss_type"] == "ipo" and "loss_weights" not in jobs[0]["train_kwargs"]
    assert jobs[0]["train_kwargs"]["beta"] == 0.7
    jobs.clear()
    compiled({"base": 0.4, "tuned1": 0.5}, PAIRS, method="orpo")
    assert jobs[0]["train_kwargs"]["method"] == "orpo" and "loss_type" not in jobs[0]["train_kwargs"]


def test_kto_takes_thumbs_and_both_sides_of_a_pair_and_balances_them(jobs):
    thumbs = [pair(5, rejected=None, source="thumb"), pair(6, rejected=None, source="thumb")]
    compiled({"base": 0.4, "tuned1": 0.5}, [*thumbs, PAIRS[0]], method="kto")
    rows, told = jobs[0]["train_data"], jobs[0]["train_kwargs"]
    assert sorted(row["label"] for row in rows) == [False, True, True, True]
    assert all(set(row) == {"prompt", "completion", "label", "group"} for row in rows)
    assert (told["desirable_weight"], told["undesirable_weight"]) == (1.0, 3.0)
    with pytest.raises(TrainingError, match="2 good and 0 bad"):
        compiled({"base": 0.4}, thumbs, method="kto")


def test_validation_within_a_training_scores_the_student_with_the_weights_in_training(jobs):
    program, seen = student(), []

    def score(candidate, examples):
        seen.append((name(candidate), examples, type(dspy.settings.adapter)))
        return 0.5

    class Other(dspy.ChatAdapter):
        pass

    told = {"max_kl": None, "max_length_ratio": None, "patience": 2, "adapter": Other()}
    PreferenceTune(PAIRS, score=score, **told).compile(program, [], valset=VAL)
    kwargs = jobs[0]["train_kwargs"]
    seen.clear()
    thread = threading.Thread(target=lambda: seen.append(kwargs["validate"]("local/trial")))
    thread.start()
    thread.join()
    assert seen == [("trial", VAL, Other), 0.5] and kwargs["patience"] == 2 and name(program) == "base"


# -- what is refused before anything runs


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"method": "ppo"}, "method='ppo'"), ({"reference": "last"}, "reference='last'"), ({"rounds": 0}, "rounds=0"),
        ({"nll_weight": -1.0}, "nll_weight"), ({"max_kl": 0.0}, "max_kl"), ({"patience": -1}, "patience"),
        ({"max_length_ratio": 1.0}, "max_length_ratio"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong, told):
    with pytest.raises(TrainingError, match=told):
        PreferenceTune(PAIRS, score=lambda *_: 0.0, **wrong)


def test_what_it_needs_is_asked_for_before_anything_is_scored(jobs):
    def refused(told, source=PAIRS, program=None, valset=VAL, **options):
        tune = PreferenceTune(source, score=lambda *_: pytest.fail("scored"), **options)
        with pytest.raises(TrainingError, match=told):
            tune.compile(program or student(), [], valset=valset)

    refused("preferences.*valset", source=None)
    refused("preferences.*valset", valset=[])
    refused("set rounds=1", rounds=2)
    refused("kto", source=Source(PAIRS), method="kto", rounds=2)
    refused("kto", method="kto", reference="base")
    refused("set_lm", program=Ask())
    assert jobs == []
    with pytest.raises(TrainingError, match="cannot be tuned here"):
        program = student()
        program.set_lm(dspy.LM("openai/some", api_key="none", provider=type("P", (), {"finetunable": False})()))
        compiled({"openai/some": 0.4}, PAIRS, program=program)


def test_a_kl_that_cannot_be_measured_is_not_passed_over():
    program = Ask()
    program.set_lm(DummyLM([{"answer": "yes"}] * 9))
    with pytest.raises(TrainingError, match="max_kl=None"):
        kl_from_incumbent(program, program, VAL, threads=2)


# -- rollouts


class Flaky(Ask):
    def forward(self, question):
        if question == "val 1?":
            raise OSError("no route to the LM")
        return super().forward(question)


def test_failed_runs_are_no_answers_and_too_many_end_it():
    program = Flaky()
    program.set_lm(DummyLM([{"answer": "yes"}] * 9))
    good, bad = rollouts(program, VAL, 1, temperature=None, threads=2, max_failed_share=0.5)
    assert good[0].prediction.answer == "yes" and isinstance(bad[0].error, OSError) and bad[0].calls == ()
    with pytest.raises(TrainingError, match="1 of 2 runs of the program failed.*no route"):
        rollouts(program, VAL, 1, temperature=None, threads=2)


def test_what_cannot_be_read_is_kept_as_it_was_written(fresh_engines, tmp_path):
    program = Ask()
    program.set_lm(local_lm(write_tiny_model(tmp_path / "tiny"), work_dir=tmp_path / "work", max_tokens=8))
    runs = rollouts(program, VAL, 3, temperature=1.0, threads=4)
    texts = {run.calls[0].text for same in runs for run in same}
    assert [len(same) for same in runs] == [3, 3] and len(texts) > 3
    for same in runs:
        for run in same:
            assert run.prediction is None and len(run.calls) == 1 and run.calls[0].inputs is None
            assert run.example.question in run.calls[0].messages[-1]["content"]
    again = rollouts(program, VAL, 3, temperature=None, threads=4)
    assert len({run.calls[0].text for run in again[0]}) == 1, "as it is served, it says the same"
    assert program.ask.lm.history == []


# -- on a tiny model

QUICK = {"progress": False, "bf16": False, "batch_size": 2, "rank": 4, "learning_rate": 3e-3, "max_steps": 4}


@pytest.fixture
def tiny(fresh_engines, tmp_path):
    program = Ask()
    program.set_lm(
        local_lm(write_tiny_model(tmp_path / "tiny", context_tokens=4096), work_dir=tmp_path / "work", max_tokens=6)
    )
    return program


def margin(program, incumbent):
    """How much more the program prefers the chosen answers than the incumbent does, nats, on average."""
    lm, total = program.ask.lm, 0.0
    for one in PAIRS:
        prompt = ADAPTER.format(program.ask.signature, demos=program.ask.demos, inputs=one.inputs)
        now, then = (
            lm.engine.score(prompt, [one.chosen, one.rejected], model=m.ask.lm.model) for m in (program, incumbent)
        )
        total += (now[0] - now[1]) - (then[0] - then[1])
    return total / len(PAIRS)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("dpo", {}), ("dpo", {"loss_type": ("robust",), "label_smoothing": 0.1}), ("orpo", {}),
        ("cpo", {"loss_type": "simpo"}), ("kto", {}),
    ],
)  # fmt: skip
def test_a_tiny_model_learns_what_is_preferred(tiny, tmp_path, method, told):
    tune = PreferenceTune(
        PAIRS, score=lambda *_: 0.5, method=method, patience=0, out=tmp_path, adapter=ADAPTER,
        train_kwargs=QUICK | told, max_kl=50.0, max_length_ratio=50.0, num_threads=2,
    )  # fmt: skip
    best = tune.compile(tiny, [], valset=VAL)
    assert f"@{method}-" in best.ask.lm.model and margin(best, tiny) > 0.1
    assert tune.log[1].kl > 0 and tune.log[1].length_ratio > 0
    assert [one.preference for _, one in read_preferences(tmp_path / "preferences.jsonl")] == PAIRS
    assert kl_from_incumbent(tiny, tiny, VAL, threads=2) == 0.0


@pytest.mark.parametrize("reference", ["incumbent", "base"])
def test_the_reference_is_what_came_in_or_the_base_in_every_round(tiny, monkeypatch, reference):
    seen, real = [], tuning.with_reference

    def noting(engine, model, rows, known, **options):
        counted = []
        done = real(engine, model, rows, known, begun=counted.append, **options)
        seen.append((model, counted[0]))
        return done

    monkeypatch.setattr(tuning, "with_reference", noting)
    base = tiny.ask.lm.model
    told = {"max_kl": None, "max_length_ratio": None, "patience": 0, "train_kwargs": QUICK, "adapter": ADAPTER}
    first = PreferenceTune(PAIRS[:2], score=lambda *_: 0.5, **told).compile(tiny, [], valset=VAL)
    assert seen == [], "from the base, training's own start is the reference"
    came_in = first.ask.lm.model
    source = Source(PAIRS[:2], PAIRS)
    best = PreferenceTune(source, score=lambda *_: 0.5, rounds=2, reference=reference, **told).compile(
        first, [], valset=VAL
    )
    assert best.ask.lm.model not in (base, came_in) and [asked[3] for asked in source.asked] == [1, 2]
    # Of the second round's four pairs two are known from the first.
    expected = {"incumbent": [(came_in, 4)], "base": [(base, 2), (base, 2)]}
    assert seen == expected[reference]


def test_mean_length_is_of_what_the_lm_writes(tiny):
    assert 0 < mean_length(tiny, VAL, threads=2) <= 6 * 4


def test_stock_better_together_runs_it(jobs):
    metric = lambda example, said, trace=None: 1.0  # noqa: E731
    tune = PreferenceTune(PAIRS, score=lambda *_: 0.5, max_kl=None, max_length_ratio=None, patience=0)
    program = Ask()
    lm = DummyLM([{"answer": "yes"}] * 99)
    lm.provider = Tunable()
    lm.launch = lm.kill = lambda *_, **__: None
    program.set_lm(lm)
    best = BetterTogether(metric=metric, a=tune).compile(program, trainset=VAL, valset=VAL, strategy="a")
    assert len(jobs) == 1 and len(tune.log) == 2 and not best.flag_compilation_error_occurred

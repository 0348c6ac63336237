"""InstructTune with unlabelled contracts: its rounds, what it keeps of them, and what it hands to the training."""

import json
import threading

import dspy
import pytest
from dspy.teleprompt import BootstrapFinetune
from dspy.utils import DummyLM

from optimizers.errors import TrainingError
from optimizers.instruct import MAX_COPIES, InstructTune, copies_for
from optimizers.local_lm import local_lm
from optimizers.local_lm.tiny import write_tiny_model

pytestmark = pytest.mark.usefixtures("plain_chat")
HUMAN = [dspy.Example(question=f"human {i}", answer="yes").with_inputs("question") for i in range(3)]
MADE = [dspy.Example(question=f"made {i}", answer="yes").with_inputs("question") for i in range(6)]
VAL = [dspy.Example(question=f"val {i}", answer="yes").with_inputs("question") for i in range(2)]


class Ask(dspy.Module):
    """One predictor, and something that cannot be copied, as a program with an index has."""

    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")
        self.lock = threading.Lock()

    def forward(self, question):
        return self.ask(question=question)


class Labels:
    """Labels that are there beforehand, round by round; notes what it was asked for, and with which program."""

    def __init__(self, *made):
        self.made, self.asked = list(made), []

    def make(self, labeller, trainset, unlabelled, valset, round):
        self.asked.append((labeller.ask.lm.model, [*trainset], [*unlabelled], [*valset], round))
        return self.made.pop(0)

    def teacher(self, student, examples):
        self.taught = [example.question for example in examples]
        teacher = Ask()
        teacher.set_lm(DummyLM([{"answer": "yes"}] * 999))
        return teacher


@pytest.fixture
def jobs(monkeypatch):
    """The fine-tuning jobs, of which none runs: the n-th gives the model "tuned n", counted from 0."""
    taken = []

    def note(finetune_dict):
        tuned = {}
        for key, job in finetune_dict.items():
            tuned[key] = job["lm"].copy(model=f"local/tuned{len(taken)}")
            taken.append(job)
        return tuned

    monkeypatch.setattr(BootstrapFinetune, "finetune_lms", staticmethod(note))
    return taken


def student(**kwargs):
    program = Ask()
    program.set_lm(dspy.LM("local/base", api_key="none", **kwargs))
    return program


def scoring(scores):
    """A score of the program by its model, "base" and "tuned0" to "tunedN", and of those asked the models in order."""
    asked = []

    def score(program, examples):
        assert examples == VAL
        asked.append(program.ask.lm.model.removeprefix("local/"))
        return scores[asked[-1]]

    score.asked = asked
    return score


def compiled(scores, *made, program=None, trainset=HUMAN, **options):
    """What InstructTune gives: the tuner, the program and the labels."""
    labels = Labels(*made)
    kwargs = {"metric": lambda example, said, trace=None: True, "train_kwargs": {"epochs": 3}} | options
    tune = InstructTune(labels=labels, score=scoring(scores), num_threads=2, **kwargs)
    best = tune.compile(program or student(), trainset, unlabelled=["contract"], valset=VAL)
    return tune, best, labels


def model(program):
    return program.ask.lm.model.removeprefix("local/")


def questions(job):
    return sorted(row["messages"][-2]["content"].split("## ]]\n")[1].split("\n")[0] for row in job["train_data"])


# -- rounds


def test_rounds_go_on_as_long_as_the_score_rises(jobs):
    scores = {"base": 0.1, "tuned0": 0.2, "tuned1": 0.3, "tuned2": 0.4}
    tune, best, labels = compiled(scores, MADE[:2], MADE, rounds=2)
    assert model(best) == "tuned2" and len(jobs) == 3
    assert [(r.number, r.n_human, r.n_made, r.score) for r in tune.log] == [
        (0, 3, 0, 0.2), (1, 3, 2, 0.3), (2, 3, 6, 0.4),
    ]  # fmt: skip
    # Each round is labelled by the program of the one before it, and trained from the student.
    assert [asked[0] for asked in labels.asked] == ["local/tuned0", "local/tuned1"]
    assert [asked[1:] for asked in labels.asked] == [(HUMAN, ["contract"], VAL, n) for n in (1, 2)]
    assert {job["lm"].model for job in jobs} == {"local/base"}


@pytest.mark.parametrize("second", [0.2, 0.3])
def test_a_round_that_does_not_better_the_score_is_the_last(jobs, second):
    tune, best, labels = compiled({"base": 0.1, "tuned0": 0.3, "tuned1": second}, MADE, MADE, MADE, rounds=3)
    assert model(best) == "tuned0" and len(tune.log) == 2 and len(labels.asked) == 1


def test_the_first_labels_are_made_even_where_peoples_alone_did_not_help(jobs):
    tune, best, _ = compiled({"base": 0.2, "tuned0": 0.1, "tuned1": 0.4, "tuned2": 0.3}, MADE, MADE, rounds=5)
    assert model(best) == "tuned1" and [r.score for r in tune.log] == [0.1, 0.4, 0.3]


def test_of_all_the_untouched_student_may_be_the_best(jobs):
    program = student()
    tune, best, _ = compiled({"base": 0.5, "tuned0": 0.5, "tuned1": 0.5}, MADE, program=program)
    assert best is program and model(best) == "base" and len(tune.log) == 2
    _, best, _ = compiled({"base": 0.5, "tuned2": 0.1, "tuned3": float("nan")}, MADE)
    assert model(best) == "base"


def test_the_last_round_is_kept_where_it_is_the_best(jobs):
    _, best, _ = compiled({"base": 0.5, "tuned0": 0.1, "tuned1": 0.6}, MADE, rounds=1)
    assert model(best) == "tuned1"


def test_a_round_without_labels_ends_it_and_keeps_the_best_so_far(jobs, caplog):
    tune, best, _ = compiled({"base": 0.1, "tuned0": 0.3}, [], rounds=3)
    assert model(best) == "tuned0" and len(tune.log) == 1 and "no label was kept" in caplog.text
    tune, best, _ = compiled({"base": 0.9, "tuned1": 0.3}, [], rounds=3)
    assert model(best) == "base"


def test_the_student_is_not_changed(jobs):
    program = student()
    lm, lock = program.ask.lm, program.lock
    program.ask.demos = [dspy.Example(question="a", answer="b")]
    _, best, _ = compiled(
        {"base": 0.1, "tuned0": 0.2, "tuned1": 0.3}, MADE, program=program, rounds=1, exclude_demos=True
    )
    assert best is not program and model(best) == "tuned1" and best.ask.demos == []
    assert program.ask.lm is lm and lm.model == "local/base" and program.lock is lock
    assert len(program.ask.demos) == 1 and not getattr(program, "_compiled", False) and "forward" not in vars(program)


def test_a_log_is_of_the_last_compile_alone(jobs):
    tune, _, _ = compiled({"base": 0.1, "tuned0": 0.2, "tuned1": 0.1}, MADE)
    tune.labels, tune.score = Labels(MADE), scoring({"base": 0.1, "tuned2": 0.7, "tuned3": 0.5})
    tune.compile(student(), HUMAN, unlabelled=["contract"], valset=VAL)
    assert [r.score for r in tune.log] == [0.7, 0.5]


# -- the rows


def test_people_are_their_share_of_the_rows(jobs):
    tune, _, labels = compiled(
        {"base": 0.1, "tuned0": 0.2, "tuned1": 0.3}, MADE, trainset=HUMAN[:1], rounds=1, human_share=0.3
    )
    assert [r.copies for r in tune.log] == [1, 3]  # 3 of 9
    assert questions(jobs[0]) == ["human 0"]
    assert questions(jobs[1]) == ["human 0"] * 3 + [f"made {i}" for i in range(6)]
    assert labels.taught == ["human 0"] + [f"made {i}" for i in range(6)]


@pytest.mark.parametrize(
    "n_human, n_made, share, copies",
    [
        (10, 10, 0.5, 1), (10, 30, 0.5, 3), (10, 31, 0.5, 4), (40, 600, 0.3, 7), (10, 600, 0.3, MAX_COPIES),
        (100, 10, 0.3, 1), (10, 600, 0.0, 1), (10, 0, 0.9, 1), (0, 10, 0.9, 1),
    ],
)  # fmt: skip
def test_copies_make_up_the_share_as_far_as_they_may(n_human, n_made, share, copies):
    assert copies_for(n_human, n_made, share) == copies
    if 1 < copies < MAX_COPIES:
        assert copies * n_human / (copies * n_human + n_made) >= share
        assert (copies - 1) * n_human / ((copies - 1) * n_human + n_made) < share


# -- what the training is given


def test_each_training_is_validated_on_people_and_may_end_early(jobs):
    scores = {"base": 0.1, "tuned0": 0.2, "tuned1": 0.3} | {"base@epoch1": 0.6}
    tune, _, _ = compiled(scores, MADE, rounds=1, patience=4)
    for job in jobs:
        given = job["train_kwargs"]
        assert given["epochs"] == 3 and given["patience"] == 4
        assert given["validate"]("local/base@epoch1") == 0.6 and tune.score.asked[-1] == "base@epoch1"
    assert tune.train_kwargs[dspy.LM("local/other")] == {"epochs": 3}


def test_what_is_validated_is_the_student_with_that_model_alone(jobs):
    program = student(temperature=0.4)
    program.ask.demos = [dspy.Example(question="a", answer="b")]
    seen = []

    def score(candidate, examples):
        seen.append(candidate)
        return 0.0

    tune = InstructTune(metric=None, labels=Labels(MADE), score=score, rounds=1, num_threads=2)
    tune.compile(program, HUMAN, unlabelled=["contract"], valset=VAL)
    jobs[0]["train_kwargs"]["validate"]("local/base@x")
    assert seen[-1] is not program and model(seen[-1]) == "base@x" and model(program) == "base"
    assert len(seen[-1].ask.demos) == 1 and seen[-1].ask.lm.kwargs["temperature"] == 0.4


class Two(Ask):
    """Two predictors, which may have LMs of their own."""

    def __init__(self):
        super().__init__()
        self.again = dspy.Predict("question -> answer")

    def forward(self, question):
        return self.again(question=self.ask(question=question).answer)


def test_arguments_and_validation_are_each_lms_own(jobs):
    program = Two()
    program.ask.lm, program.again.lm = (dspy.LM(f"local/{name}", api_key="none") for name in ("base", "other"))
    seen = []
    given = {program.ask.lm: {"epochs": 1}, program.again.lm: {"epochs": 2}}

    def score(candidate, examples):
        seen.append((candidate.ask.lm.model, candidate.again.lm.model))
        return 0.0

    class TwoLabels(Labels):
        def teacher(self, student, examples):
            teacher = Two()
            teacher.set_lm(DummyLM([{"answer": "yes"}] * 999))
            return teacher

    tune = InstructTune(labels=TwoLabels(MADE), score=score, rounds=1, num_threads=2, train_kwargs=given)
    tune.compile(program, HUMAN, unlabelled=["contract"], valset=VAL)
    by_model = {job["lm"].model: job["train_kwargs"] for job in jobs}
    assert {name: kwargs["epochs"] for name, kwargs in by_model.items()} == {"local/base": 1, "local/other": 2}
    by_model["local/other"]["validate"]("local/other@x")
    assert seen[-1] == ("local/base", "local/other@x")
    assert tune.train_kwargs is given and all("validate" not in kwargs for kwargs in given.values())


def test_an_adapter_told_by_lm_renders_the_rows_of_every_round(jobs):
    program = student()
    given = {program.ask.lm: dspy.XMLAdapter()}
    tune, _, _ = compiled({"base": 0.1, "tuned0": 0.2, "tuned1": 0.3}, MADE, program=program, rounds=1, adapter=given)
    assert all("<answer>" in job["train_data"][0]["messages"][-1]["content"] for job in jobs) and len(jobs) == 2
    assert tune.adapter is given and list(given) == [program.ask.lm]


def test_a_training_that_fails_leaves_the_tuner_as_it_was(monkeypatch):
    def fail(finetune_dict):
        raise TrainingError("no space")

    monkeypatch.setattr(BootstrapFinetune, "finetune_lms", staticmethod(fail))
    tune = InstructTune(labels=Labels(MADE), score=scoring({"base": 0.1}), train_kwargs={"epochs": 1}, num_threads=2)
    before = tune.train_kwargs
    with pytest.raises(TrainingError, match="no space"):
        tune.compile(student(), HUMAN, unlabelled=["contract"], valset=VAL)
    assert tune.train_kwargs is before


# -- without unlabelled contracts, and what is refused


def test_without_unlabelled_contracts_it_is_one_training_on_the_given_teachers_answers(jobs):
    teacher = Ask()
    teacher.set_lm(DummyLM([{"answer": "aye"}] * 9))
    program, labels = student(), Labels()
    tune = InstructTune(
        labels=labels, score=lambda *_: pytest.fail("scored"), train_kwargs={"epochs": 2}, num_threads=2
    )
    best = tune.compile(program, HUMAN, teacher=teacher)
    assert best is program and model(best) == "tuned0" and len(jobs) == 1 and labels.asked == []
    assert jobs[0]["train_kwargs"] == {"epochs": 2} and "aye" in jobs[0]["train_data"][0]["messages"][-1]["content"]
    plain = InstructTune(num_threads=2)
    assert model(plain.compile(student(), HUMAN, teacher=teacher, unlabelled=None, valset=VAL)) == "tuned1"


@pytest.mark.parametrize("missing", ["labels", "score", "valset"])
def test_what_it_needs_is_asked_for_before_anything_is_trained(jobs, missing):
    given = {"labels": Labels(MADE), "score": scoring({"base": 0.1})} | {missing: None}
    valset = [] if missing == "valset" else VAL
    given.pop("valset", None)
    tune = InstructTune(**given, num_threads=2)
    with pytest.raises(TrainingError, match="labels.*score.*valset"):
        tune.compile(student(), HUMAN, unlabelled=["contract"], valset=valset)
    assert jobs == []


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"human_share": 1.0}, {"human_share": -0.1}, {"patience": -1}, {"rounds": -3}]
)
def test_numbers_out_of_range_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(TrainingError, match=f"{name}={value}"):
        InstructTune(**wrong)


# -- on a model


def test_a_tiny_model_is_trained_scored_by_epochs_and_ends_early(fresh_engines, tmp_path):
    lm = local_lm(write_tiny_model(tmp_path / "tiny", context_tokens=4096), work_dir=tmp_path / "work", max_tokens=4)
    program = Ask()
    program.set_lm(lm)
    seen = []

    def score(candidate, examples):
        seen.append(candidate.ask.lm.model)
        return {0: 0.1, 1: 0.5}.get(len(seen) - 1, 0.3)  # the student, its first epoch, and all that comes after

    quick = {"epochs": 9, "batch_size": 2, "progress": False, "rank": 2, "alpha": 4, "bf16": False}
    tune = InstructTune(
        metric=None, labels=Labels(MADE), score=score, rounds=1, patience=1, train_kwargs=quick, num_threads=2
    )
    best = tune.compile(program, HUMAN, unlabelled=["contract"], valset=VAL)
    assert program.ask.lm is lm and len(tune.log) == 2 and best.ask.lm.model.startswith(lm.model + "@")
    trained = sorted({name for name in seen if "@" in name})
    assert len(trained) >= 2 and lm.model in seen
    folder = lm.engine.adapters_dir / best.ask.lm.model.split("@")[1]
    told = json.loads((folder / "training.json").read_text())
    assert told["rows"] in (3, 9) and told["settings"]["validate"] is True and told["settings"]["patience"] == 1
    assert len(seen) <= 2 + 2 * 3 + 2  # nine epochs of either would be twenty

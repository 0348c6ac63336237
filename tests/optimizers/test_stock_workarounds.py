"""What stock DSPy gets wrong, shown on stock code, and its workaround beside it.

A test named `stock_…` passes as long as stock DSPy has the defect: when it goes red, its workaround can go.
"""

import threading

import dspy
import pytest
from dspy.teleprompt import BootstrapFinetune

from optimizers.errors import TrainingError
from optimizers.stock import SteadyFinetune, on_own_lm

pytestmark = pytest.mark.usefixtures("plain_chat")
READABLE = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"
HALF = "[[ ## reason ## ]]\nbecause\n\n"


class Beak:
    """Says `said[i]` to a prompt that holds "q i", or raises it; READABLE to any other."""

    def __init__(self, said):
        self.said = said

    def complete(self, request):
        text = request.messages[-1].parts[0].text
        said = next((said for i, said in enumerate(self.said) if f"q {i}" in text), READABLE)
        if isinstance(said, Exception):
            raise said
        message, usage = dspy.lm15.Message.assistant(said), dspy.lm15.Usage()
        return dspy.lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)


def parrot(*said, name="parrot"):
    return dspy.LM(f"local/{name}", engine=Beak(said), num_retries=0)


class Ask(dspy.Module):
    """One predictor, and something that cannot be copied, as a program with an index or a client has."""

    def __init__(self, signature="question -> answer"):
        super().__init__()
        self.ask = dspy.Predict(signature)
        self.lock = threading.Lock()

    def forward(self, question):
        return self.ask(question=question)


class Backwards(dspy.Module):
    """Its second predictor is asked first."""

    def __init__(self):
        super().__init__()
        self.last = dspy.Predict(dspy.Signature("question -> answer", "Asked last."))
        self.first = dspy.Predict(dspy.Signature("question -> answer", "Asked first."))

    def forward(self, question):
        return self.last(question=self.first(question=question).answer + question)


@pytest.fixture
def rows(monkeypatch):
    """The training rows of each fine-tuning job, none of which runs."""
    taken = []

    def keep(finetune_dict):
        taken.extend(job["train_data"] for job in finetune_dict.values())
        return {key: key[0] for key in finetune_dict}

    monkeypatch.setattr(BootstrapFinetune, "finetune_lms", staticmethod(keep))
    return taken


def examples(count):
    return [dspy.Example(question=f"q {i}", answer="yes").with_inputs("question") for i in range(count)]


def compiled(tuner, *said, program=None, **kwargs):
    program = program or Ask("question -> answer, reason" if HALF in said else "question -> answer")
    program.set_lm(parrot(*said))
    return tuner.compile(program, trainset=examples(len(said)), **kwargs)


def right(example, prediction, trace=None):
    return prediction.answer == example.answer


DOWN = dspy.lm15.AuthError("the key has expired")
ANSWERS = {"unreadable": "I do not know.", "half read": HALF, "failed": DOWN}


@pytest.mark.parametrize("metric", [right, None])
@pytest.mark.parametrize(
    ("what", "error"),
    [("unreadable", AttributeError), ("half read", ValueError), ("failed", ValueError)],
)
def test_stock_finetune_ends_at_one_answer_it_cannot_use(rows, what, error, metric):
    with pytest.raises(error):
        compiled(BootstrapFinetune(metric=metric), READABLE, ANSWERS[what], READABLE)
    assert not rows


@pytest.mark.parametrize("metric", [right, None])
@pytest.mark.parametrize("what", ANSWERS)
def test_steady_finetune_leaves_it_out(rows, what, metric, caplog):
    whole = READABLE.replace("[[ ## completed", "[[ ## reason ## ]]\nit says so\n\n[[ ## completed")
    said = (whole, ANSWERS[what], whole) if what == "half read" else (READABLE, ANSWERS[what], READABLE)
    with caplog.at_level("WARNING", "optimizers.stock"):
        compiled(SteadyFinetune(metric=metric, max_failed=0.5), *said)
    asked = " ".join(row["messages"][-2]["content"] for row in rows[0])
    assert [f"q {i}" in asked for i in range(3)] == [True, False, True]
    counted = "0 answers could not be read, 1 calls failed" if what == "failed" else "1 answers could not be read, 0"
    assert counted in caplog.text


def test_half_an_example_is_no_training_row(rows):
    program = Backwards()
    program.first.lm, program.last.lm = parrot(), parrot(READABLE, "I do not know.")
    SteadyFinetune().compile(program, trainset=examples(2))
    assert [len(job) for job in rows] == [2, 2]  # the first example's two answers, for either LM


def test_steady_finetune_refuses_when_too_many_calls_fail_and_says_why(rows):
    with pytest.raises(TrainingError, match=r"2 of 4 examples failed.*10%.*the key has expired") as caught:
        compiled(SteadyFinetune(metric=right), READABLE, DOWN, DOWN, READABLE)
    assert isinstance(caught.value.__cause__, dspy.LMAuthError) and not rows
    # Answers that cannot be read are the model's, not the machinery's: they count against no limit.
    compiled(SteadyFinetune(metric=right), READABLE, *["no"] * 3)
    assert len(rows[0]) == 1


def test_a_metric_that_raises_is_a_failure_and_not_a_score(rows):
    def broken(example, prediction, trace=None):
        raise KeyError("gold")

    with pytest.raises(TrainingError, match="gold"):
        compiled(SteadyFinetune(metric=broken), READABLE, READABLE)


def instructions(job):
    return {row["messages"][0]["content"].split("Asked ")[1].split(".")[0] for row in job}


def test_stock_finetune_without_multitask_trains_predictors_on_each_others_answers(rows):
    compiled(BootstrapFinetune(metric=right, multitask=False), READABLE, program=Backwards())
    assert [instructions(job) for job in rows] == [{"first"}, {"last"}]  # the predictors are `last`, `first`


def test_steady_finetune_trains_each_predictor_on_its_own(rows):
    compiled(SteadyFinetune(metric=right, multitask=False), READABLE, program=Backwards())
    assert [instructions(job) for job in rows] == [{"last"}, {"first"}]
    teacher = Backwards()
    teacher.set_lm(parrot(READABLE))
    compiled(SteadyFinetune(metric=right, multitask=False), READABLE, program=Backwards(), teacher=teacher)
    assert [instructions(job) for job in rows[2:]] == [{"last"}, {"first"}]
    compiled(SteadyFinetune(metric=right), READABLE, program=Backwards())
    assert instructions(rows[4]) == {"first", "last"}


def answer_of_a_copy(tuned):
    """What a deep copy answers once its own predictor, not the original's, has been given another LM."""
    copy = tuned.deepcopy()
    copy.set_lm(parrot(READABLE.replace("yes", "mine")))
    return copy(question="q 0").answer


def test_stock_finetune_leaves_a_program_whose_copies_run_the_original(rows):
    assert answer_of_a_copy(compiled(BootstrapFinetune(metric=right), READABLE)) == "yes"


def test_steady_finetune_leaves_the_program_as_it_was(rows):
    tuned = compiled(SteadyFinetune(metric=right), READABLE)
    assert "forward" not in vars(tuned) and answer_of_a_copy(tuned) == "mine"
    own = Ask()
    own.forward = lambda question: own.ask(question=question)
    mine = own.forward
    compiled(SteadyFinetune(metric=right), READABLE, program=own)
    assert vars(own)["forward"] is mine


def search(**kwargs):
    return dspy.BootstrapFewShotWithRandomSearch(
        metric=right, max_bootstrapped_demos=1, num_candidate_programs=1, num_threads=1, **kwargs
    )


@pytest.mark.parametrize("mended", [False, True])
def test_a_search_asks_the_students_own_lm_only_when_told_to(mended):
    """Stock random search drops the student's LM: another one answers, and comes back with the program."""
    student = Ask()
    student.set_lm(parrot(READABLE, name="tuned"))
    optimizer = search(max_labeled_demos=1)
    with dspy.context(lm=parrot(READABLE.replace("yes", "no"), name="other")):
        best = (on_own_lm(optimizer) if mended else optimizer).compile(
            student, trainset=examples(2), valset=examples(1)
        )
    programs = [candidate["program"] for candidate in best.candidate_programs]
    if mended:
        assert [c["score"] for c in best.candidate_programs] == [100.0] * 4
        assert {program.ask.lm.model for program in [best, *programs]} == {"local/tuned"}
    else:
        assert [c["score"] for c in best.candidate_programs] == [0.0] * 4 and best.ask.lm is None


@pytest.mark.parametrize("mended", [False, True])
def test_a_teacher_answers_with_its_own_lm_only_when_told_to(mended):
    """A teacher that is not compiled is copied without its LM by stock BootstrapFewShot: the student answers for it."""
    student, teacher = Ask(), Ask()
    student.set_lm(parrot(READABLE.replace("yes", "from student")))
    teacher.set_lm(parrot(READABLE.replace("yes", "from teacher")))
    optimizer = dspy.BootstrapFewShot(max_bootstrapped_demos=1, max_labeled_demos=1)
    with dspy.context(lm=student.ask.lm):
        best = (on_own_lm(optimizer) if mended else optimizer).compile(student, teacher=teacher, trainset=examples(2))
    assert best.ask.demos[0].answer == ("from teacher" if mended else "from student")
    assert optimizer.teacher_settings == {}


def test_better_together_keeps_the_tuned_lm_through_a_search(rows):
    tuned = parrot(READABLE, name="tuned")
    weights = SteadyFinetune(metric=right)
    weights.finetune_lms = lambda finetune_dict: dict.fromkeys(finetune_dict, tuned)
    student = Ask()
    student.set_lm(parrot(READABLE, name="base"))
    together = dspy.BetterTogether(metric=right, p=on_own_lm(search(max_labeled_demos=1)), w=weights)
    with dspy.context(lm=parrot("nothing", name="other")):
        best = together.compile(student, trainset=examples(3), valset=examples(2), strategy="w -> p")
    assert not best.flag_compilation_error_occurred
    assert {c["strategy"]: c["score"] for c in best.candidate_programs} == {"": 100.0, "w": 100.0, "w -> p": 100.0}


def test_a_student_of_several_lms_is_refused():
    student = Backwards()
    student.first.lm, student.last.lm = parrot(name="one"), parrot(name="two")
    with pytest.raises(TrainingError, match="'local/one', 'local/two'"):
        on_own_lm(search()).compile(student, trainset=examples(1), valset=examples(1))

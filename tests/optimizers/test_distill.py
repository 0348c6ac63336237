"""SelfDistill: labels as demonstrations, the condition for it to pay, the gate, and input that it refuses."""

from types import SimpleNamespace

import dspy
import pytest
from dspy.teleprompt import BootstrapFinetune
from dspy.utils import DummyLM
from dspy.utils.exceptions import AdapterParseError
from dspy.utils.parallelizer import ParallelExecutor

from optimizers.distill import SDFT_PAPER, DistillLog, SelfDistill
from optimizers.distill_demonstrations import Demonstrated, as_turns, demonstrate, in_question
from optimizers.errors import TrainingError
from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.local_lm.training.settings import SelfDistillSettings, settings_from

ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)
SMALL = {"max_steps": 2, "batch_size": 2, "rank": 2, "bf16": False, "progress": False, "refresh": 1}


def examples(n, first=0):
    return [
        dspy.Example(question=f"What is {i}?", answer=f"gold-{i}", group=f"c{i}").with_inputs("question")
        for i in range(first, first + n)
    ]


TRAIN, VAL = examples(4), examples(2, first=10)


def scripted(*, plain=0.5, taught=0.9, tuned=0.6):
    """A score by who is asked: the student, the student with demonstrations, or a student in or after training."""

    def score(program, asked):
        if isinstance(program, Demonstrated):
            return taught
        return tuned if "@" in program.predictors()[0].lm.model else plain

    return score


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill") / "tiny"
    return write_tiny_model(folder, hidden=16, layers=1, context_tokens=2048)


@pytest.fixture
def student(tiny, tmp_path, plain_chat):
    program = dspy.Predict("question -> answer")
    program.set_lm(local_lm(tiny, work_dir=tmp_path / "work", max_tokens=12))
    yield program
    forget_engines()


def tune(score, **kwargs):
    return SelfDistill(score=score, train_kwargs=SMALL, adapter=ADAPTER, num_threads=2, **kwargs)


def said_to(lm):
    """The conversations that a DummyLM was given."""
    return [entry["messages"] for entry in lm.history]


# -- demonstrations


def test_an_examples_own_fields_are_what_the_predictor_was_to_say():
    program = dspy.Predict("question -> answer")
    found = demonstrate(program, TRAIN, None, ADAPTER, threads=2)
    assert [one.outputs for one in found.shown] == [{"answer": f"gold-{i}"} for i in range(4)]
    assert [one.inputs for one in found.shown] == [{"question": f"What is {i}?"} for i in range(4)]
    assert found.given == 4 and found.failed == found.refused == 0


class TwoSteps(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = dspy.Predict("question -> hint"), dspy.Predict("question, hint -> answer")

    def forward(self, question):
        return self.second(question=question, hint=self.first(question=question).hint)


def test_each_predictor_is_shown_its_own_demonstration():
    rows = [dspy.Example(question="Q", hint="gold-hint", answer="gold-answer").with_inputs("question")]
    program = TwoSteps()
    shown = demonstrate(program, rows, None, ADAPTER, threads=1).shown
    assert [(one.predictor, dict(one.outputs)) for one in shown] == [
        (0, {"hint": "gold-hint"}),
        (1, {"answer": "gold-answer"}),
    ]
    assert shown[1].inputs == {"question": "Q", "hint": "gold-hint"}
    lm = DummyLM([{"hint": "own-hint"}, {"answer": "own-answer"}])
    program.set_lm(lm)
    taught = Demonstrated(program, shown, ADAPTER, as_turns)
    assert taught(question="Q").answer == "own-answer"
    first, second = said_to(taught.program.predictors()[0].lm), said_to(taught.program.predictors()[1].lm)
    asked = {str(turns[-2]["content"]) for turns in first + second}
    assert any("gold-hint" in said for said in asked) and any("gold-answer" in said for said in asked)


def test_the_teacher_sees_the_demonstration_and_the_student_does_not():
    program = dspy.Predict("question -> answer")
    shown = demonstrate(program, TRAIN[:1], None, ADAPTER, threads=1).shown
    lm = DummyLM([{"answer": "mine"}, {"answer": "mine"}])
    program.set_lm(lm)
    with dspy.context(adapter=ADAPTER):
        program(question="What is 0?")
        taught = Demonstrated(program, shown, ADAPTER, in_question)
        assert taught(question="What is 0?").answer == "mine"
        with pytest.raises(TrainingError, match="no demonstration for"):
            taught(question="What is 1?")
    plain, shown_to = str(said_to(lm)[0]), str(said_to(taught.program.lm)[-1])
    assert "gold-0" not in plain and "gold-0" in shown_to
    assert "This is an example for a response to the question:" in shown_to


def test_templates_keep_what_stands_before_the_question():
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    turns = as_turns(prompt, "A")
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("system", "S"), ("user", "Q"), ("assistant", "A"), ("user", "Q"),
    ]  # fmt: skip
    asked = in_question(prompt, "A")
    assert asked[0] == prompt[0] and asked[1]["content"].startswith("Q\n\n") and "\nA\n" in asked[1]["content"]
    assert prompt[1]["content"] == "Q"


class Labels(dspy.Module):
    """A teacher: says what `gold` says, fails where it says an exception."""

    def __init__(self, gold):
        super().__init__()
        self.ask, self.gold, self.followed = dspy.Predict("question -> answer"), gold, None

    def follow(self, student):
        self.followed = id(student)  # as a module it would be one of its own parts

    def forward(self, question):
        said = self.gold[question]
        if isinstance(said, Exception):
            raise said
        return self.ask(question=question, lm=DummyLM([{"answer": said}]))


def test_a_teachers_labels_are_demonstrations_and_what_it_refuses_is_counted():
    student = dspy.Predict(dspy.Signature("question -> answer", "Answer as a lawyer."))
    teacher = Labels({f"What is {i}?": said for i, said in enumerate(["a", "b", "wrong", ValueError("no label")])})
    found = demonstrate(
        student,
        TRAIN,
        teacher,
        ADAPTER,
        metric=lambda example, said: said.answer != "wrong",
        max_failed=0.25,
        threads=2,
    )
    assert [one.outputs["answer"] for one in found.shown] == ["a", "b"]
    assert (found.given, found.failed, found.refused) == (4, 1, 1)
    assert teacher.followed == id(student) and teacher.ask.signature is student.signature
    with pytest.raises(TrainingError, match="1 of 4 examples gave no demonstration .*no label"):
        demonstrate(student, TRAIN, teacher, ADAPTER, max_failed=0.2, threads=2)


def test_fields_that_examples_do_not_have_are_named():
    bare = [dspy.Example(question="Q").with_inputs("question")]
    with pytest.raises(TrainingError, match=r"the examples have no \['answer'\].*give a teacher"):
        demonstrate(dspy.Predict("question -> answer"), bare, None, ADAPTER, threads=1)


def test_a_predictor_called_twice_is_refused():
    class Twice(Labels):
        def forward(self, question):
            super().forward(question)
            return super().forward(question)

    with pytest.raises(TrainingError, match="called more than once"):
        demonstrate(dspy.Predict("question -> answer"), TRAIN[:1], Twice({"What is 0?": "a"}), ADAPTER, threads=1)


# -- compile


def test_a_demonstration_that_does_not_help_stops_it_before_training(student, caplog):
    tuner = tune(scripted(plain=0.5, taught=0.54))
    assert tuner.compile(student, TRAIN, valset=VAL) is student
    assert tuner.log == DistillLog(4, 0, 0, 0.5, 0.54, paid=False)
    assert not list(student.lm.engine.adapters_dir.glob("*")), "nothing was trained"
    assert "would not pay" in caplog.text


def test_it_trains_and_says_what_it_did(student):
    tuner = tune(scripted(tuned=0.7))
    before = student.lm.model
    tuned = tuner.compile(student, TRAIN, valset=VAL)
    assert student.lm.model == before and tuned.lm.model.startswith(f"{before}@sdft-")
    log = tuner.log
    assert log.paid and log.kept and (log.student_score, log.tuned_score) == (0.5, 0.7)
    assert (log.plain_score, log.teacher_score, log.demonstrations) == (0.5, 0.9, 4)
    assert [one.step for one in log.rounds] == [1, 2] and all(one.divergence > 0 for one in log.rounds)
    assert 0 < log.generation_share < 1 and log.seconds > 0 and log.kl is not None and min(log.lengths) > 0


def test_a_tuned_program_that_scores_less_is_not_given_back(student, caplog):
    tuner = tune(scripted(tuned=0.4))
    assert tuner.compile(student, TRAIN, valset=VAL) is student
    assert tuner.log.paid and not tuner.log.kept and tuner.log.tuned_score == 0.4
    assert "not kept" in caplog.text


def test_the_rows_are_the_serving_prompt_and_the_same_with_the_demonstration(student, monkeypatch):
    student.demos = [dspy.Example(question="old?", answer="old demo").with_inputs("question")]
    jobs = {}

    def finetuned(given):
        jobs.update(given)
        return {key: job["lm"] for key, job in given.items()}

    monkeypatch.setattr(BootstrapFinetune, "finetune_lms", staticmethod(finetuned))
    tune(scripted()).compile(student, TRAIN, valset=VAL)
    (job,) = jobs.values()
    row = job["train_data"][0]
    assert row["prompt"] == ADAPTER.format(student.signature, student.demos, {"question": "What is 0?"})
    assert row["teacher_prompt"] == [
        *row["prompt"],
        {
            "role": "assistant",
            "content": ADAPTER.format_assistant_message_content(student.signature, {"answer": "gold-0"}),
        },
        row["prompt"][-1],
    ]
    assert "old demo" in str(row["prompt"]) and "gold" not in str(row["prompt"]) and row["group"] == "c0"
    assert job["train_kwargs"]["method"] == "sdft" and job["train_kwargs"]["max_tokens"] == 12


def test_nothing_to_learn_from_or_to_choose_on_is_refused(student):
    for train, val in (([], VAL), (TRAIN, []), (TRAIN, None)):
        with pytest.raises(TrainingError, match="it needs both"):
            tune(scripted()).compile(student, train, valset=val)
    with pytest.raises(TrainingError, match="none of 4 examples gave a demonstration: 0 failed, the metric refused 4"):
        tune(scripted(), metric=lambda example, said: False).compile(student, TRAIN, valset=VAL)


def test_demonstrations_longer_than_the_context_are_refused_with_their_number(student):
    long = [dspy.Example(question=f"{'x' * 700} {i}", answer="a").with_inputs("question") for i in range(2)]
    with pytest.raises(
        TrainingError, match=r"2 of 6 demonstrations do not fit: .* up to \d{4} tokens, the context is 2048"
    ):
        tune(scripted()).compile(student, TRAIN + long, valset=VAL)
    with pytest.raises(TrainingError, match="1 of 3 demonstrations do not fit"):
        tune(scripted()).compile(student, TRAIN, valset=[*VAL, long[0]])


def test_one_prompt_for_teacher_and_student_is_refused(student):
    with pytest.raises(TrainingError, match="teacher and student have one prompt"):
        tune(scripted(), template=lambda prompt, answer: list(prompt)).compile(student, TRAIN, valset=VAL)


def test_a_remote_model_is_refused(plain_chat):
    program = dspy.Predict("question -> answer")
    program.set_lm(dspy.LM("openai/gpt-5"))
    with pytest.raises(TrainingError, match="trains local LMs, and a predictor has 'openai/gpt-5'"):
        tune(scripted()).compile(program, TRAIN, valset=VAL)


def test_the_papers_settings_are_a_preset():
    settings, options = settings_from({"method": "sdft", **SDFT_PAPER, "rank": 8})
    assert isinstance(settings, SelfDistillSettings) and options == {"rank": 8}
    told = (
        settings.divergence,
        settings.top_k,
        settings.teacher,
        settings.ema_rate,
        settings.skip_tokens,
        settings.refresh,
    )
    assert told == ("forward_kl", None, "ema", 0.01, 3, 1)
    with pytest.raises(TypeError):
        SDFT_PAPER["refresh"] = 2
    with pytest.raises(TrainingError, match="teacher='base'"):
        SelfDistill(score=scripted(), train_kwargs={"teacher": "base"})


# -- the bundled model


@pytest.mark.slow
def test_the_bundled_model_learns_a_house_from_itself_with_demonstrations(tmp_path, plain_chat):
    house = review_examples("greyfriars", 12)
    train, val = house.train, house.val
    student = dspy.Predict(house.signature)
    student.set_lm(local_lm("evergreen-base", work_dir=tmp_path, max_tokens=96))
    told = {"max_steps": 8, "teacher": "frozen", "progress": False}
    tuner = SelfDistill(score=house.score, adapter=ADAPTER, train_kwargs=told, num_threads=16)
    try:
        tuner.compile(student, train, valset=val)
        log, engine = tuner.log, student.lm.engine
        (adapter,) = engine.adapters_dir.iterdir()  # whether the gate, on so few questions, kept it or not
        tuned = student.lm.copy(model=engine.model_string(adapter.name))
        assert log.teacher_score >= log.plain_score + 0.05
        assert log.rounds[-1].kl < log.rounds[0].kl
        assert house.likelihood(tuned) > house.likelihood(student.lm)
        assert 0 < log.kl < 1
    finally:
        forget_engines()


def review_examples(name, n_contracts):
    """Answerable review questions of one house, its contracts split; how to score, and the gold answers' likelihood."""
    from random import Random

    from modules.signatures import ReviewPassages, join_quotes, number_passages
    from program.base_model import rows

    rng, groups = Random(5), []
    for _ in range(n_contracts):
        sheet, group = rows.draw_sheet((name,), rng), []
        for index, label in enumerate(sheet.labels):
            passages = rows.retrieve(sheet, index, 1, rng, force=1.0)
            if label.spans and rows.covered(label, passages):
                quotes, answer = rows.gold(sheet, label)
                asked = {"passages": number_passages([p.text for p in passages]), "question": label.question.text}
                given = dspy.Example(**asked, quotes=join_quotes(quotes), answer=answer, group=sheet.contract.id)
                group.append(given.with_inputs("passages", "question"))
        groups.append(group)
    train, val = ([one for group in part for one in group] for part in (groups[:-4], groups[-4:]))

    def right(program, one):
        try:
            return program(**one.inputs()).answer == one.answer
        except AdapterParseError:  # said, and unreadable
            return False

    def score(program, asked):
        pool = ParallelExecutor(num_threads=16, disable_progress_bar=True, timeout=0)
        return sum(pool.execute(lambda one: right(program, one), list(asked))) / len(asked)

    def likelihood(lm):
        total = 0.0
        for one in val:
            prompt = ADAPTER.format(ReviewPassages, [], dict(one.inputs()))
            outputs = {"quotes": one.quotes, "answer": one.answer}
            gold = ADAPTER.format_assistant_message_content(ReviewPassages, outputs)
            total += lm.engine.score(prompt, [gold], model=lm.model)[0]
        return total / len(val)

    return SimpleNamespace(train=train, val=val, score=score, likelihood=likelihood, signature=ReviewPassages)

"""DSPy's own optimizers, unchanged, on one local LM in this process."""

import dspy
import pytest

from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.tiny import write_tiny_model

QUICK = {"epochs": 2, "batch_size": 4, "learning_rate": 2e-3, "progress": False, "rank": 4, "alpha": 8}
ANSWER = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"


class TwoSteps(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.Predict("statement -> answer")

    def forward(self, question):
        return self.second(statement=self.first(question=question).answer)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A tiny model that was taught, for a few seconds, to give one well-formed answer to anything."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    folder = tmp_path_factory.mktemp("taught")
    lm = local_lm(write_tiny_model(folder / "tiny", hidden=64), work_dir=folder / "work", max_tokens=64)
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    rows = []
    for predictor, inputs in [(TwoSteps().first, {"question": "q"}), (TwoSteps().second, {"statement": "yes"})]:
        for i in range(4):
            given = {key: f"{value} {i}" if key == "question" else value for key, value in inputs.items()}
            chat = adapter.format(predictor.signature, [], given)
            rows.append({"messages": [*chat, {"role": "assistant", "content": ANSWER}]})
    job = lm.finetune(rows, "chat", {**QUICK, "epochs": 60, "learning_rate": 1e-2, "rank": 16, "alpha": 32})
    result = job.result()
    if isinstance(result, Exception):
        raise result
    with dspy.context(lm=result, adapter=adapter):
        assert TwoSteps()(question="q 1").answer == "yes"
    yield result
    forget_engines()


@pytest.fixture
def setting(taught):
    with dspy.context(lm=taught, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False), num_threads=4):
        yield taught


def examples(count=6):
    return [dspy.Example(question=f"q {i}", answer="yes").with_inputs("question") for i in range(count)]


def right(example, prediction, trace=None):
    return prediction.answer == example.answer


def test_evaluate_and_logprobs(setting):
    result = dspy.Evaluate(devset=examples(), metric=right, num_threads=4)(TwoSteps())
    assert result.score == 100.0
    prediction = dspy.Predict("question -> answer")(question="q 1", config={"logprobs": True})
    assert prediction.logprobs["content"][0]["logprob"] <= 0


def test_the_engine_keeps_what_the_model_said(setting):
    TwoSteps()(question="q 2")
    last = setting.engine.completions[-1]
    assert last.text == ANSWER and last.model == setting.model and last.chat[0]["role"] == "system"


def test_bootstrap_few_shot_with_random_search(setting):
    search = dspy.BootstrapFewShotWithRandomSearch(
        metric=lambda *_: True, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=1, num_threads=4
    )
    student = TwoSteps()
    better = search.compile(student, trainset=examples(3), valset=examples(2))
    assert better.predictors()[0].demos


@pytest.mark.parametrize("multitask", [True, False])
def test_bootstrap_finetune(setting, multitask):
    student = TwoSteps()
    student.set_lm(setting)
    tuner = dspy.BootstrapFinetune(metric=right, multitask=multitask, train_kwargs=QUICK, num_threads=4)
    tuned = tuner.compile(student, trainset=examples(4))
    names = [predictor.lm.model for predictor in tuned.predictors()]
    assert setting.model not in names
    assert len(set(names)) == (1 if multitask else 2)
    assert tuned(question="q 1").answer


def test_a_failed_finetune_is_raised_by_stock_code(setting):
    student = TwoSteps()
    student.set_lm(setting)
    tuner = dspy.BootstrapFinetune(metric=right, train_kwargs={"learnin_rate": 1}, num_threads=4)
    with pytest.raises(Exception, match="learnin_rate"):
        tuner.compile(student, trainset=examples(2))


def test_better_together(setting):
    student = TwoSteps()
    student.set_lm(setting)
    together = dspy.BetterTogether(
        metric=lambda *_: True,
        p=dspy.BootstrapFewShotWithRandomSearch(
            metric=lambda *_: True, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=1
        ),
        s=dspy.BootstrapFinetune(metric=lambda *_: True, train_kwargs=QUICK, num_threads=4),
    )
    better = together.compile(student, trainset=examples(4), valset=examples(2), strategy="p -> s")
    assert not better.flag_compilation_error_occurred
    assert {candidate["strategy"] for candidate in better.candidate_programs} == {"", "p", "p -> s"}

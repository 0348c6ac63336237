"""DSPy's own optimizers, unchanged, on one local LM in this process."""

import dspy
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.tiny import write_tiny_model

QUICK = {"epochs": 1, "batch_size": 4, "learning_rate": 2e-3, "progress": False, "rank": 4, "alpha": 8}
ANSWER = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"


class TwoSteps(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.Predict("statement -> answer")

    def forward(self, question):
        return self.second(statement=self.first(question=question).answer)


def write_answering_model(folder):
    """A model that answers ANSWER to anything, by construction: the answer is one token, which follows a line's end.

    Attention and feed-forward add nothing to the residual stream, so the head sees the last token's embedding alone.
    """
    write_tiny_model(folder, hidden=64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(ANSWER, normalized=False)])
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.config.tie_word_embeddings = False
    embeddings = torch.nn.functional.normalize(torch.randn(len(tokenizer), 64, generator=torch.manual_seed(0)), dim=-1)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(embeddings))
    line_end, answer = tokenizer.encode("\n")[0], tokenizer.encode(ANSWER)[0]
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(embeddings)
        model.lm_head.weight[answer] = 2 * embeddings[line_end]
        model.lm_head.weight[tokenizer.eos_token_id] = 2 * embeddings[answer]
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    folder = tmp_path_factory.mktemp("answering")
    yield local_lm(write_answering_model(folder / "tiny"), work_dir=folder / "work", max_tokens=16)
    forget_engines()


@pytest.fixture
def setting(answering):
    with dspy.context(lm=answering, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False), num_threads=4):
        yield answering


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
    assert [candidate["score"] for candidate in better.candidate_programs] == [100.0] * 4
    assert any(candidate["program"].predictors()[0].demos for candidate in better.candidate_programs)


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

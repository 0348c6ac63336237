"""DSPy's own optimizers, unchanged, on one local LM in this process.

Each runs on two models: one made so that it always answers in the asked format, and the bundled one. What is asserted
is that the optimizer ran on our engine and left what it is there to leave, never how good the model is: the bundled
one is asked what it can answer readably, and may fail at anything else.
"""

import itertools
import json
import math

import dspy
import pytest
import torch
from dspy.utils import DummyLM
from dspy.utils.exceptions import AdapterParseError
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from modules.signatures import ReviewPassages, number_passages
from optimizers.local_lm import forget_engines, load_program, local_lm, save_program
from optimizers.local_lm.tiny import write_tiny_model

ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)
QUICK = {
    "max_steps": 1, "batch_size": 2, "learning_rate": 2e-3, "progress": False, "rank": 4, "alpha": 8, "bf16": False,
}  # fmt: skip
ANSWER = "[[ ## quotes ## ]]\nnone\n\n[[ ## answer ## ]]\nnot in this contract\n\n[[ ## completed ## ]]"
PROPOSED = "Read every passage twice, and then answer."
WRITTEN = {  # what an LM that writes instructions says, whichever optimizer asks
    "observations": "Clauses.", "summary": "Clauses.", "program_description": "It reviews.",
    "module_description": "It answers.", "proposed_instruction": PROPOSED, "new_instruction": PROPOSED,
    "proposed_prefix_for_output_field": "Answer:", "discussion": "None.",
    "advice": {"review": PROPOSED, "again": PROPOSED}, "module_advice": {"review": PROPOSED, "again": PROPOSED},
}  # fmt: skip
LAWS = ["Ohio", "Maine", "Texas", "Utah", "Iowa", "Kansas", "Nevada", "Idaho", "Oregon"]


class Review(dspy.Module):
    """Answers from a passage, then once more, being told the first answer."""

    def __init__(self):
        super().__init__()
        self.review, self.again = dspy.Predict(ReviewPassages), dspy.Predict(ReviewPassages)

    def forward(self, passages, question):
        first = self.review(passages=passages, question=question).answer
        return self.again(passages=passages, question=f"{question} Is it {first}?")


def write_answering_model(folder):
    """A model that answers ANSWER to anything, by construction: the answer is one token, which follows a line's end.

    Attention and feed-forward add nothing to the residual stream, so the head sees the last token's embedding alone.
    """
    write_tiny_model(folder, hidden=64, context_tokens=8192)
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
        model.lm_head.weight[answer] = 4 * embeddings[line_end]  # sure enough to be sampled too
        model.lm_head.weight[tokenizer.eos_token_id] = 4 * embeddings[answer]
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["made", "evergreen-base"])
def shared(request, tmp_path_factory):
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    folder = tmp_path_factory.mktemp("lm")
    name = request.param if request.param != "made" else write_answering_model(folder / "made")
    lm = local_lm(name, work_dir=folder / "work", max_tokens=64)
    lm.is_sure = request.param == "made"
    yield lm
    forget_engines()


@pytest.fixture(scope="module")
def readable(shared):
    """Six examples that the bare program answers readably; sampling is not used, so they stay readable."""
    with dspy.context(lm=shared, adapter=ADAPTER):
        kept = [example for example in map(to_example, LAWS) if attempt(program(), example) is not None]
    if len(kept) < 6:
        pytest.skip(f"{shared.model} answers {len(kept)} of {len(LAWS)} questions readably: too few to optimize on")
    return kept[:6]


@pytest.fixture
def lm(shared, readable):
    """The LM, set for DSPy; afterwards the base must be what it was."""
    weights = shared.engine.weights
    before = {name: p.clone() for name, p in weights.model.named_parameters() if "lora" not in name}
    shared.engine.completions.clear()
    shared.engine.batch_sizes.clear()
    with dspy.context(lm=shared, adapter=ADAPTER, num_threads=4, max_errors=1000):
        yield shared
    after = {name.replace(".base_layer", ""): p for name, p in weights.model.named_parameters()}
    assert all(torch.equal(p, after[name.replace(".base_layer", "")]) for name, p in before.items())
    assert shared.engine.batch_sizes


def to_example(law):
    passages = number_passages([f"This Agreement is governed by the laws of the State of {law}."])
    made = dspy.Example(passages=passages, question="Which state's laws govern?", answer=law)
    return made.with_inputs("passages", "question")


def attempt(made, example):
    """The program's prediction, None where what the model said cannot be read."""
    try:
        return made(**example.inputs())
    except AdapterParseError:
        return None


def program(lm=None):
    made = Review()
    if lm is not None:
        made.set_lm(lm)
    return made


def accept(example, prediction, trace=None):
    return prediction.answer is not None


def alternating():
    """A metric that is content with half of the answers, whatever they are: what an optimizer that compares needs."""
    scores = itertools.cycle([1.0, 0.0, 0.0, 1.0])
    return lambda *_: next(scores)


def writer(adapter=None):
    return DummyLM([WRITTEN] * 100, adapter=adapter or dspy.ChatAdapter())


def asked(lm):
    """Every prompt our engine has answered, as text."""
    return ["\n".join(turn["content"] for turn in said.chat) for said in lm.engine.completions]


def demos(compiled):
    return [len(predictor.demos) for predictor in compiled.predictors()]


def finite(scores):
    scores = list(scores)
    return bool(scores) and all(math.isfinite(score) for score in scores)


def test_evaluate_parallel_and_logprobs(lm, readable):
    result = dspy.Evaluate(devset=readable[:4], metric=accept, num_threads=4)(program())
    assert result.score == 100.0 and len(result.results) == 4
    answers = dspy.Parallel(num_threads=4, disable_progress_bar=True)([(program(), each) for each in readable[:4]])
    assert [a.answer for a in answers] == [prediction.answer for _, prediction, _ in result.results]
    assert len(lm.engine.completions) == 16 and max(lm.engine.batch_sizes) > 1
    prediction = dspy.Predict(ReviewPassages)(**readable[0].inputs(), config={"logprobs": True})
    assert all(token["logprob"] <= 0 for token in prediction.logprobs["content"])


def test_the_engine_keeps_what_the_model_said(lm, readable):
    said = program()(**readable[0].inputs())
    first, second = lm.engine.completions
    assert first.model == lm.model and first.chat[0]["role"] == "system"
    assert said.answer in second.text


def test_labeled_few_shot(lm, readable):
    compiled = dspy.LabeledFewShot(k=2).compile(program(), trainset=readable[:3])
    attempt(compiled, readable[5])
    assert demos(compiled) == [2, 2] and sum(f"State of {each.answer}" in asked(lm)[0] for each in readable[:3]) == 2


def test_bootstrap_few_shot(lm, readable):
    tuner = dspy.BootstrapFewShot(metric=accept, max_bootstrapped_demos=2, max_labeled_demos=0)
    compiled = tuner.compile(program(), trainset=readable[:3])
    assert demos(compiled) == [2, 2] and all(demo.augmented for demo in compiled.review.demos)


def test_bootstrap_few_shot_with_random_search(lm, readable):
    search = dspy.BootstrapFewShotWithRandomSearch(
        metric=accept, max_bootstrapped_demos=1, max_labeled_demos=1, num_candidate_programs=1, num_threads=4
    )
    best = search.compile(program(), trainset=readable[:3], valset=readable[3:5])
    assert len(best.candidate_programs) == 4 and finite(each["score"] for each in best.candidate_programs)
    assert [1, 1] in [demos(each["program"]) for each in best.candidate_programs]


def test_knn_few_shot(lm, readable):
    embed = dspy.Embedder(lambda texts: [[text.count(c) + 0.1 for c in "aeiou"] for text in texts])
    knn = dspy.KNNFewShot(
        k=1, trainset=readable[:3], vectorizer=embed, metric=accept, max_bootstrapped_demos=1, max_labeled_demos=0
    )
    attempt(knn.compile(program()), readable[0])
    assert [turn["role"] for turn in lm.engine.completions[-1].chat] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("module", [dspy.BestOfN, dspy.Refine])
def test_best_of_n_and_refine(lm, readable, module):
    rewards = itertools.chain([0.0], itertools.repeat(1.0))
    steady = lm.copy(top_k=1)  # both ask at temperature 1
    with dspy.context(lm=writer()):  # gives Refine's advice; the program has our LM
        chosen = module(module=program(steady), N=2, reward_fn=lambda *_: next(rewards), threshold=1.0)
        said = attempt(chosen, readable[0])
    assert said.answer is not None and len(asked(lm)) >= 3
    assert (PROPOSED in asked(lm)[2]) == (module is dspy.Refine)


def test_mipro(lm, readable):
    mipro = dspy.MIPROv2(
        metric=alternating(), prompt_model=writer(), task_model=lm, auto=None, num_candidates=2, num_threads=1,
        max_bootstrapped_demos=1, max_labeled_demos=1,
    )  # fmt: skip
    best = mipro.compile(program(), trainset=readable[:3], valset=readable[3:5], num_trials=3, minibatch=False, seed=1)
    assert len(best.candidate_programs) == 4 and finite([best.score])
    assert any(PROPOSED in prompt for prompt in asked(lm))


def test_gepa(lm, readable):
    scores = alternating()

    def metric(gold, pred, trace=None, pred_name=None, pred_trace=None):
        return dspy.Prediction(score=0.5 * scores(), feedback="Name the state.")

    gepa = dspy.GEPA(
        metric=metric, max_metric_calls=8, reflection_minibatch_size=1, num_threads=1,
        reflection_lm=writer(dspy.JSONAdapter()), track_stats=True, warn_on_score_mismatch=False,
    )  # fmt: skip
    best = gepa.compile(program(), trainset=readable[:2], valset=readable[2:4])
    assert any(PROPOSED in prompt for prompt in asked(lm))
    assert finite(best.detailed_results.val_aggregate_scores)


@pytest.mark.parametrize("max_demos", [0, 2])
def test_simba(lm, readable, max_demos):
    simba = dspy.SIMBA(
        metric=alternating(), bsize=2, num_candidates=2, max_steps=1, max_demos=max_demos, prompt_model=writer(),
        num_threads=1,
    )  # fmt: skip
    best = simba.compile(program(lm.copy(top_k=1)), trainset=readable[:2], seed=0)
    assert finite(each["score"] for each in best.candidate_programs)
    if max_demos == 0:  # rules only, so the candidates were asked under the written one
        assert any(PROPOSED in prompt for prompt in asked(lm))


def test_copro(lm, readable):
    copro = dspy.COPRO(prompt_model=writer(), metric=alternating(), breadth=2, depth=1)
    best = copro.compile(program(), trainset=readable[:2], eval_kwargs={"num_threads": 1})
    assert finite(each["score"] for each in best.candidate_programs)
    assert any(PROPOSED in prompt for prompt in asked(lm))


@pytest.mark.parametrize("multitask", [True, False])
def test_bootstrap_finetune(lm, readable, multitask):
    # Adapters are named by their content: a seed of its own keeps one case from finding the other's.
    kwargs = {**QUICK, "seed": int(multitask)}
    tuner = dspy.BootstrapFinetune(metric=accept, multitask=multitask, train_kwargs=kwargs, num_threads=4)
    tuned = tuner.compile(program(lm), trainset=readable[:4])
    names = [predictor.lm.model for predictor in tuned.predictors()]
    assert lm.model not in names and len(set(names)) == (1 if multitask else 2)
    logs = [log(lm, name) for name in names]
    assert [each["rows"] for each in logs] == ([8, 8] if multitask else [4, 4])
    assert finite(step["loss"] for each in logs for step in each["history"])
    attempt(tuned.review, readable[0])
    assert lm.engine.completions[-1].model == names[0]


def log(lm, model):
    return json.loads((lm.engine.adapters_dir / model.split("@")[1] / "training.json").read_text())


def test_a_failed_finetune_is_raised_by_stock_code(lm, readable):
    tuner = dspy.BootstrapFinetune(metric=accept, train_kwargs={"learnin_rate": 1}, num_threads=4)
    with pytest.raises(Exception, match="learnin_rate"):
        tuner.compile(program(lm), trainset=readable[:2])


def test_better_together(lm, readable):
    # Behind demonstrations the bundled model may answer unreadably, which stock BootstrapFinetune does not survive.
    strategy = "p -> w" if lm.is_sure else "w -> p"
    best = dspy.BetterTogether(
        metric=accept,
        p=dspy.BootstrapFewShotWithRandomSearch(metric=accept, max_bootstrapped_demos=1, max_labeled_demos=1),
        w=dspy.BootstrapFinetune(metric=accept, train_kwargs={**QUICK, "seed": 2}, num_threads=4),
    ).compile(
        program(lm),
        trainset=readable[:3],
        valset=readable[3:4],
        strategy=strategy,
        optimizer_compile_args={"p": {"restrict": [-1]}},  # one candidate
    )
    assert not best.flag_compilation_error_occurred
    tried = {each["strategy"]: each["program"] for each in best.candidate_programs}
    models = {steps: {p.lm.model for p in each.predictors()} for steps, each in tried.items()}
    assert set(models) == {"", strategy[0], strategy} and models[""] == {lm.model}
    assert len(models[strategy] - {lm.model}) == 1 and demos(tried[strategy]) == [1, 1]


def test_a_compiled_program_answers_the_same_once_saved_and_loaded(lm, readable, tmp_path):
    tuner = dspy.BootstrapFinetune(metric=accept, train_kwargs={**QUICK, "seed": 3}, num_threads=4)
    tuned = tuner.compile(program(lm), trainset=readable[:2])
    tuned.review.demos = readable[:1]
    tuned.review.signature = tuned.review.signature.with_instructions(PROPOSED)
    save_program(tuned, tmp_path / "saved")
    loaded = load_program(program(), tmp_path / "saved", work_dir=tmp_path / "elsewhere")
    assert demos(loaded) == [1, 0] and loaded.review.signature.instructions == PROPOSED
    assert [p.lm.model for p in loaded.predictors()] == [p.lm.model for p in tuned.predictors()]
    engine = loaded.review.lm.engine
    assert engine is not lm.engine
    for each in (tuned, loaded):
        attempt(each, readable[4])
    said = [completion.text for completion in engine.completions]
    assert said == [completion.text for completion in lm.engine.completions][-len(said) :]


def test_a_cached_answer_is_not_computed_again(lm, readable):
    inputs = readable[0].inputs()
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    try:
        first = program()(**inputs)
        assert len(lm.engine.batch_sizes) == 2 and program()(**inputs).toDict() == first.toDict()
        assert len(lm.engine.batch_sizes) == 2
        assert program(lm.copy(cache=False))(**inputs).toDict() == first.toDict()
        assert len(lm.engine.batch_sizes) == 4
    finally:
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)

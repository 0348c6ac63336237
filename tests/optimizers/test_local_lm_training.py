"""Training on tiny models: the tokens it trains on, what it leaves behind, adapters as immutable files, programs."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
import torch

from optimizers.errors import ModelError, TrainingError
from optimizers.local_lm import load_program, load_weights, local_lm, save_program
from optimizers.local_lm.prompts import encode_completion
from optimizers.local_lm.tiny import CHAT_TEMPLATE, byte_tokenizer, write_tiny_model
from optimizers.local_lm.training.rows import encode
from optimizers.local_lm.training.settings import settings_from
from optimizers.local_lm.tuning import adapters, injection

CHAT = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Renews?"}]
ROWS = [
    {"messages": [CHAT[0], {"role": "user", "content": f"Renews {i}?"}, {"role": "assistant", "content": "yes indeed"}]}
    for i in range(8)
]
QUICK = {"epochs": 5, "batch_size": 4, "learning_rate": 5e-3, "progress": False, "rank": 4, "alpha": 8}


pytestmark = pytest.mark.usefixtures("fresh_engines")


@pytest.fixture
def lm(folder, tmp_path):
    return local_lm(folder, work_dir=tmp_path / "work", max_tokens=24)


def train(lm, rows=ROWS, **kwargs):
    return lm.finetune(rows, "chat", {**QUICK, **kwargs}).result()


def test_the_loss_is_on_the_answer_and_its_end_token_alone(lm):
    weights = lm.engine.weights
    (row,) = encode(weights, ROWS[:1], settings_from({})[0]).columns
    tokenizer = weights.tokenizer
    whole = tokenizer.apply_chat_template(ROWS[0]["messages"], tokenize=False)
    assert tokenizer.decode(row["input_ids"]) + "\n" == whole  # all but what follows the end of the turn
    asked = tokenizer.apply_chat_template(ROWS[0]["messages"][:-1], tokenize=False, add_generation_prompt=True)
    masked = [i for i, label in enumerate(row["labels"]) if label == -100]
    assert masked == list(range(len(tokenizer(asked)["input_ids"])))
    trained = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(trained) == "yes indeed<|im_end|>"
    assert trained == row["input_ids"][len(masked) :]


def test_templates_that_hide_the_answer_or_never_end_a_turn_are_refused(tmp_path):
    for template, message in [
        (CHAT_TEMPLATE.replace("<|im_end|>", ""), "never stop"),
        ("{{ messages | length }}" + CHAT_TEMPLATE, "differently"),
    ]:
        folder = write_tiny_model(tmp_path / message.split()[0])
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        with pytest.raises(TrainingError, match=message):
            encode_completion(load_weights(folder), CHAT, "yes", with_end=True)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma"])
def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(kind, tmp_path):
    lm = local_lm(write_tiny_model(tmp_path / kind, kind=kind), work_dir=tmp_path)
    model, weights = lm.engine.weights.model, lm.engine.weights
    words = ["yes indeed", "no"]
    before = lm.engine.score(CHAT, words)
    modules = [(name, type(module)) for name, module in model.named_modules()]
    config, state = model.config.to_dict(), {name: p.clone() for name, p in model.named_parameters()}
    tuned = train(lm)
    log = json.loads((lm.engine.adapters_dir / tuned.model.split("@")[1] / "training.json").read_text())
    losses = [step["loss"] for step in log["history"]]
    assert losses[-1] < 0.8 * losses[0] and log["trainable_parameters"] > 0 and log["rows"] == 8
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert not model.training and model.config.to_dict() == config and "forward" not in model.__dict__
    assert all(torch.equal(state[name], p) and not p.requires_grad for name, p in model.named_parameters())
    assert lm.engine.score(CHAT, words) == before
    assert lm.engine.score(CHAT, words[:1], tuned.model)[0] > before[0] + 1
    assert lm.engine.score(CHAT, words) == before  # with the adapter attached and switched off
    assert weights.attached


def test_nf4_on_the_cpu_serves_and_trains_with_gradients_through_the_base(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny", hidden=64)
    lm = local_lm(folder, quantize="nf4", device="cpu", work_dir=tmp_path, max_tokens=4)
    before = lm.engine.score(CHAT, ["yes indeed"])
    quantized = [m for m in lm.engine.weights.model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(quantized) == 14  # seven linear layers in each of two blocks
    assert not any(getattr(m.weight.quant_state, "packing_format_for_cpu", False) for m in quantized)
    tuned = train(lm)
    assert lm.engine.score(CHAT, ["yes indeed"]) == before
    assert lm.engine.score(CHAT, ["yes indeed"], tuned.model)[0] > before[0] + 1
    assert lm.model != local_lm(folder, work_dir=tmp_path).model


def test_base_and_adapters_are_served_side_by_side(lm):
    one = train(lm)
    two = train(lm, [{"prompt": "Renews?", "completion": "never"}] * 8)
    assert len({lm.model, one.model, two.model}) == 3
    alone = [model("Renews 1?")[0] for model in (lm, one, two)]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(12) as pool:
        mixed = list(pool.map(lambda i: (lm, one, two)[i % 3]("Renews 1?")[0], range(12)))
    assert mixed == alone * 4


def test_continuing_starts_from_the_parents_weights_and_leaves_it_alone(lm):
    parent = train(lm)
    before = lm.engine.score(CHAT, ["yes indeed"], parent.model)
    child = parent.finetune(ROWS, "chat", {**QUICK, "epochs": 1}).result()
    name = child.model.split("@")[1]
    log = json.loads((lm.engine.adapters_dir / name / "training.json").read_text())
    old = json.loads((lm.engine.adapters_dir / parent.model.split("@")[1] / "training.json").read_text())
    assert log["parent"] == parent.model.split("@")[1] and child.model != parent.model
    assert log["history"][0]["loss"] < 0.8 * old["history"][0]["loss"]
    assert lm.engine.score(CHAT, ["yes indeed"], parent.model) == before


def test_requests_wait_for_training_and_training_for_requests(lm):
    with ThreadPoolExecutor(9) as pool:
        expected = lm("Renews?")[0]
        job = lm.finetune(ROWS, "chat", QUICK)
        answers = list(pool.map(lambda _: lm("Renews?")[0], range(8)))
        job.result()
    assert answers == [expected] * 8
    assert job.status() == "succeeded"


def test_more_adapters_than_fit_are_dropped_and_come_back(lm, monkeypatch):
    monkeypatch.setattr(adapters, "MAX_ATTACHED", 1)
    one, two = train(lm), train(lm, seed=1)
    first = one("Renews?")[0]
    two("Renews?")
    assert list(lm.engine.weights.attached) == [two.model.split("@")[1]]
    assert one("Renews?")[0] == first


@pytest.mark.parametrize("damage", ["marker", "weights", "base"])
def test_an_unfinished_changed_or_foreign_adapter_is_refused(lm, tmp_path, damage):
    tuned = train(lm)
    adapter = lm.engine.adapters_dir / tuned.model.split("@")[1]
    other = write_tiny_model(tmp_path / "tiny", seed=9)
    if damage == "marker":
        (adapter / "COMPLETE").unlink()
    elif damage == "weights":
        file = adapter / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    weights = load_weights(other) if damage == "base" else lm.engine.weights
    with pytest.raises(ModelError, match={"marker": "cut short", "weights": "sha256", "base": "trained on"}[damage]):
        adapters.check_adapter(adapter, weights)
    if damage != "base":
        with pytest.raises(dspy.LMUnsupportedModelError):
            tuned("Renews?")


def test_an_unknown_key_is_refused_with_all_that_are_known(lm):
    with pytest.raises(TrainingError, match=r"\['learnin_rate'\].*learning_rate.*'rank'"):
        train(lm, learnin_rate=1)
    with pytest.raises(TrainingError, match="grpo_chat"):
        lm.finetune(ROWS, "grpo_chat", QUICK).result()


def test_an_adapter_that_trains_nothing_is_refused(lm, monkeypatch):
    real = injection.inject
    monkeypatch.setattr(injection, "inject", lambda weights, tuner: real(weights, tuner).requires_grad_(False))
    with pytest.raises(TrainingError, match="no parameter"):
        train(lm)


class Two(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = dspy.Predict("question -> answer"), dspy.Predict("answer -> note")


def test_a_saved_program_answers_the_same_in_a_fresh_process(lm, folder, tmp_path):
    tuned = train(lm)
    program = Two()
    program.first.lm, program.second.lm = tuned.copy(max_tokens=12), lm
    program.first.demos = [dspy.Example(question="q", answer="a")]
    expected = [program.first.lm("Renews?")[0], program.second.lm("Renews?")[0]]
    saved = save_program(program, tmp_path / "saved")
    save_program(program, saved)  # again, over itself
    assert not list(saved.rglob("*.pkl")) and not list(tmp_path.glob(".draft-*")) and not list(tmp_path.glob(".old-*"))
    code = (
        "import sys, dspy; from optimizers.local_lm import load_program\n"
        "class Two(dspy.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.first, self.second = dspy.Predict('question -> answer'), dspy.Predict('answer -> note')\n"
        "dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)\n"
        "p = load_program(Two(), sys.argv[1], work_dir=sys.argv[2])\n"
        "assert p.first.lm.provider.finetunable and p.first.demos\n"
        "print(repr([p.first.lm('Renews?')[0], p.second.lm('Renews?')[0]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved), str(tmp_path / "fresh")], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == repr(expected)


def test_a_lone_predictor_is_a_program_too(lm, tmp_path):
    program = dspy.Predict("question -> answer")
    program.lm = train(lm, epochs=1)
    loaded = load_program(
        dspy.Predict("question -> answer"), save_program(program, tmp_path / "saved"), work_dir=tmp_path
    )
    assert loaded.lm.model == program.lm.model and loaded.lm("Renews?") == program.lm("Renews?")
    assert json.loads((tmp_path / "saved" / "program.json").read_text())["lm"] is None


def test_a_saved_program_refuses_a_changed_file_and_another_base(lm, tmp_path):
    program = Two()
    program.set_lm(train(lm))
    saved = save_program(program, tmp_path / "saved")
    other = write_tiny_model(tmp_path / "tiny", seed=5)
    with pytest.raises(ModelError, match="other weights"):
        load_program(Two(), saved, name_or_path=str(other), work_dir=tmp_path / "w")
    (saved / "program.json").write_text((saved / "program.json").read_text().replace("question", "Question"))
    with pytest.raises(ModelError, match="program.json"):
        load_program(Two(), saved, work_dir=tmp_path / "w")


def test_stock_save_and_load_keep_the_lm(lm, tmp_path):
    program = dspy.Predict("question -> answer")
    program.lm = train(lm)
    program.save(tmp_path / "stock.json")
    again = dspy.Predict("question -> answer")
    again.load(tmp_path / "stock.json", allow_unsafe_lm_state=True)
    assert again.lm.engine is lm.engine and again.lm.model == program.lm.model
    assert again.lm("Renews?") == program.lm("Renews?")

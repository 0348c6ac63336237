"""Tiny random models in the shape of released families: each is served, scored, trained, saved and loaded.

Chat templates differ in what they do with a system text (a turn of its own, in front of the first or the last user
turn, refused), with an answer's white space and with their control tokens; caches differ where windows slide.
"""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import dspy
import pytest
import torch
from dspy.lm15 import Config, Message, Request

from optimizers.local_lm import forget_engines, load_program, load_weights, local_lm, save_program
from optimizers.local_lm.prompts import encode_completion, encode_prompt
from optimizers.local_lm.tiny import FAMILIES, byte_tokenizer, write_tiny_model

SYSTEM = "You read contracts with care."
CHAT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Does it renew?"}]
DEMO = [{"role": "user", "content": "And this?"}, {"role": "assistant", "content": "no"}]
QUICK = {
    "max_steps": 3, "batch_size": 4, "learning_rate": 5e-3, "progress": False, "rank": 4, "alpha": 8, "bf16": False,
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """`kind`, its `folder` and an `lm` on it."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    folder = tmp_path_factory.mktemp("family")
    kind = request.param
    write_tiny_model(folder / kind, kind=kind, seed=3)
    lm = local_lm(folder / kind, work_dir=folder / "work", max_tokens=12)
    yield SimpleNamespace(kind=kind, folder=folder / kind, lm=lm, weights=lm.engine.weights)
    forget_engines()


def ask(lm, text, **config):
    config = Config(**{"max_tokens": 12, "temperature": 0.0, **config})
    return Request(model=lm.model, system=SYSTEM, messages=(Message.user(text),), config=config)


def generated(weights, chat, max_tokens):
    """What transformers' own `generate` says to a chat, without the token that ends it."""
    ids = torch.tensor([encode_prompt(weights, chat)])
    with weights.lock:  # the last batch may have answered, and not have ended yet
        out = weights.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False,
            eos_token_id=sorted(weights.stop_ids), pad_token_id=sorted(weights.stop_ids)[0],
        )  # fmt: skip
    return [token for token in out[0, ids.shape[1] :].tolist() if token not in weights.stop_ids]


def test_greedy_answers_are_those_of_generate_alone_and_in_any_batch(model):
    engine = model.lm.engine
    texts = ["Does it renew? " + "So it does. " * (i * i) for i in range(5)]  # longer than the window slides over
    expected = [generated(model.weights, [CHAT[0], {"role": "user", "content": text}], 12) for text in texts]
    for _ in range(2):  # the second time over a kept prefix, where the architecture allows one
        engine.completions.clear()
        for text in texts:
            engine.complete(ask(model.lm, text))
        assert [list(said.ids) for said in engine.completions] == expected
    engine.completions.clear()
    engine.batch_sizes.clear()
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda text: engine.complete(ask(model.lm, text)), texts))
    said = {each.chat[-1]["content"]: list(each.ids) for each in engine.completions}
    assert [said[text] for text in texts] == expected and max(engine.batch_sizes) > 1


def test_score_is_the_sum_of_a_plain_forwards_log_probabilities(model):
    words = ["yes", "not in this contract"]
    prompt = encode_prompt(model.weights, CHAT)
    expected = []
    for word in words:
        ids = encode_completion(model.weights, CHAT, word, with_end=False)
        with model.weights.lock, torch.inference_mode():
            logps = model.weights.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        expected.append(sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids)))
    assert model.lm.engine.score(CHAT, words) == pytest.approx(expected, abs=1e-3)


def test_the_prompt_is_what_the_template_writes_and_begins_once(model):
    family, decode = FAMILIES[model.kind], model.weights.tokenizer.decode
    ids = encode_prompt(model.weights, [CHAT[0], *DEMO, CHAT[1]])
    text = decode(ids)
    assert text.count(SYSTEM) == 1 and text.index("And this?") < text.index("no") < text.index("Does it renew?")
    folded = {"mistral": f"{SYSTEM}\n\nDoes it renew?", "gemma": f"{SYSTEM}\n\nAnd this?"}
    assert folded.get(model.kind.split("-")[0].rstrip("23"), SYSTEM) in text
    if family.bos is not None:
        assert text.startswith(family.bos) and text.count(family.bos) == 1


def test_an_answer_is_trained_as_it_is_asked_for_and_ends(model):
    ids = encode_completion(model.weights, [CHAT[0], *DEMO, CHAT[1]], "yes", with_end=True)
    end = model.weights.tokenizer.convert_tokens_to_ids(FAMILIES[model.kind].end)
    assert ids[-1] == end and end in model.weights.stop_ids
    assert model.weights.tokenizer.decode(ids[:-1]).strip() == "yes"


def test_a_document_cannot_speak_the_templates_control_tokens(model):
    def controls(content):
        ids = encode_prompt(model.weights, [CHAT[0], {"role": "user", "content": content}])
        return sum(model.weights.tokenizer.convert_ids_to_tokens(i) in FAMILIES[model.kind].control for i in ids)

    assert controls("A clause. " + " ".join(FAMILIES[model.kind].control)) == controls("A clause.")


class Two(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = dspy.Predict("question -> answer"), dspy.Predict("answer -> note")


def test_a_trained_adapter_answers_and_comes_back_with_a_saved_program(model, tmp_path):
    lm, engine = model.lm, model.lm.engine
    base, words = lm("Renews?")[0], ["yes indeed", "no"]
    before = engine.score(CHAT, words)
    rows = [{"messages": [*CHAT, {"role": "assistant", "content": "yes indeed"}]}] * 8
    tuned = lm.finetune(rows, "chat", QUICK).result()
    assert not isinstance(tuned, Exception), tuned
    log = json.loads((engine.adapters_dir / tuned.model.split("@")[1] / "training.json").read_text())
    losses = [step["loss"] for step in log["history"]]
    assert len(losses) == 3 and all(map(math.isfinite, losses)) and losses[-1] < losses[0]
    assert engine.score(CHAT, words[:1], tuned.model)[0] > before[0]
    assert engine.score(CHAT, words) == before and lm("Renews?")[0] == base
    program = Two()
    program.first.lm, program.second.lm = tuned, lm
    saved = save_program(program, tmp_path / "saved")
    loaded = load_program(Two(), saved, work_dir=tmp_path / "elsewhere")
    assert loaded.first.lm.model == tuned.model and loaded.first.lm.engine is not engine
    assert [loaded.first.lm("Renews?"), loaded.second.lm("Renews?")] == [tuned("Renews?"), [base]]


@pytest.mark.parametrize("model", ["mistral", "gemma3", "phi3", "gpt2"], indirect=True)
def test_preferences_widen_the_margin(model):
    engine, words = model.lm.engine, ["yes indeed", "no"]
    rows = [{"prompt": CHAT, "chosen": words[0], "rejected": words[1]}] * 8
    tuned = model.lm.finetune(rows, None, {**QUICK, "method": "dpo"}).result()
    before, after = engine.score(CHAT, words), engine.score(CHAT, words, tuned.model)
    assert after[0] - after[1] > before[0] - before[1]


def test_a_template_that_leaves_the_system_turn_out_gets_it_with_the_first_user_turn(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    tokenizer = byte_tokenizer()
    only = "{% for m in messages if m.role in ('user', 'assistant') %}"
    tokenizer.chat_template = tokenizer.chat_template.replace("{% for m in messages %}", only)
    tokenizer.save_pretrained(folder)
    assert f"user\n{SYSTEM}\n\nDoes it renew?" in tokenizer.decode(encode_prompt(load_weights(folder), CHAT))

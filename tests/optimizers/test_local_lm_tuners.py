"""Every tuner on a tiny model: what it trains, what it leaves behind, its file, what is served, and what is refused."""

from dataclasses import replace

import pytest
import torch
from dspy.lm15 import Config, Message, Request
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from optimizers.errors import ModelError, TrainingError
from optimizers.local_lm import forget_engines, load_weights, local_lm
from optimizers.local_lm.prompts import encode_completion, encode_prompt, request_chat
from optimizers.local_lm.serving.decoding import score_rows
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.local_lm.tuning import adapters
from optimizers.local_lm.tuning.grafts import Snapshot
from optimizers.local_lm.tuning.structure import (
    bias_names,
    linear_names,
    norm_names,
    output_projections,
    top_parameter_names,
)
from optimizers.local_lm.tuning.tuners import (
    DEFAULT_RATES,
    OSF,
    TUNERS,
    UNFIT,
    BitFit,
    Bottleneck,
    Full,
    LoRA,
    NormTuning,
    Peft,
    Prefix,
    Prompt,
    PTuning,
    TopLayers,
    default_rate,
    options_of,
    tuner_from,
    word_of,
)

CHAT = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Renews?"}]
ANSWER = "yes indeed"
HIDDEN, LAYERS, VOCABULARY = 32, 2, 259
LINEAR = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 96), (32, 96), (96, 32)]  # q k v o gate up down: (in, out)
NORMS = 32 + 32 + 8 + 8  # before attention, before the MLP, on queries, on keys
LAYER = sum(a * b for a, b in LINEAR) + NORMS
RANK_8 = LAYERS * sum(8 * (a + b) for a, b in LINEAR)
OUT = LAYERS * sum(b for _, b in LINEAR)
EXPECTED = {
    "full": ({}, VOCABULARY * HIDDEN + LAYERS * LAYER + HIDDEN),  # the head is tied: counted once
    "lora": ({"rank": 8}, RANK_8),
    "dora": ({"rank": 8}, RANK_8 + OUT),
    "rslora": ({"rank": 8}, RANK_8),
    "bottleneck": ({"width": 4}, LAYERS * 2 * (2 * 4 * HIDDEN + 4 + HIDDEN)),
    "prefix": ({"tokens": 5}, 5 * LAYERS * 2 * 2 * 8),
    "prompt": ({"tokens": 5, "init_text": "Answer with care."}, 5 * HIDDEN),
    "p-tuning": ({"tokens": 5}, 5 * HIDDEN + 3 * (HIDDEN * HIDDEN + HIDDEN)),
    "ia3": ({}, LAYERS * (16 + 16 + 96)),
    "bitfit": ({}, OUT),
    "layernorm": ({}, LAYERS * NORMS + HIDDEN),
    "top_layers": ({"layers": 1}, LAYER + HIDDEN),
    "osf": ({}, LAYERS * sum(min(a, b) // 2 * (a + b + 1) for a, b in LINEAR)),
}


@pytest.fixture(autouse=True)
def _seeded(fresh_engines):
    torch.manual_seed(0)


@pytest.fixture
def lm(folder, tmp_path):
    return local_lm(folder, work_dir=tmp_path, max_tokens=8)


def fit(weights, module, rate, steps=5, autocast=False):
    """AdamW on one row; the first and the last loss."""
    prompt = encode_prompt(weights, CHAT)
    answer = encode_completion(weights, CHAT, ANSWER, with_end=True)
    ids = torch.tensor([prompt + answer])
    labels = torch.tensor([[-100] * len(prompt) + answer])
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=rate)
    module.train()
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = module(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[0], losses[-1]


def score(weights, served):
    prompt, rest = encode_prompt(weights, CHAT), encode_completion(weights, CHAT, ANSWER, with_end=False)
    return score_rows(served.model, prompt, [rest], None, None, opening=served.opening)[0]


def make(lm, tuner, parent=None, **options):
    """Train a little and keep it: the adapter's name."""
    weights, root = lm.engine.weights, lm.engine.adapters_dir
    with adapters.training(weights, tuner=tuner, parent=None if parent is None else root / parent) as module:
        fit(weights, module, default_rate(weights.tuning.tuner, HIDDEN), **options)
        return adapters.keep_adapter(module, weights, root, kind="t", record={}, parent=parent)


def standing(model):
    """All that has to come back: modules, parameters' places, values, types and flags, hooks, modes."""
    modules = [(name, id(module), type(module), module.training) for name, module in model.named_modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__) for m in model.modules()]
    tensors = [
        (name, id(p), p.dtype, p.requires_grad, p.grad is None, p.detach().clone())
        for name, p in model.named_parameters(remove_duplicate=False)
    ]
    return modules, hooks, tensors, model.config.to_dict(), sorted(model.__dict__)


def same(one, two):
    assert one[0] == two[0]
    assert one[1] == two[1]
    assert one[3:] == two[3:]
    return all(a[:5] == b[:5] and torch.equal(a[5], b[5]) for a, b in zip(one[2], two[2], strict=True))


@pytest.mark.parametrize("word", list(EXPECTED))
def test_a_tuner_trains_what_it_says_and_serves_what_it_trained(word, lm, folder, tmp_path):
    engine, weights, root = lm.engine, lm.engine.weights, lm.engine.adapters_dir
    options, count = EXPECTED[word]
    tuner = tuner_from(word, options)
    base, before = engine.score(CHAT, [ANSWER]), standing(weights.model)
    with adapters.training(weights, tuner=tuner) as module:
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == count
        first, last = fit(weights, module, default_rate(tuner, HIDDEN))
        assert last < first
        with adapters.serving_trained(weights) as served:
            trained = score(weights, served)
        assert engine.score(CHAT, [ANSWER]) == base  # the reference, in the middle of training
        name = adapters.keep_adapter(module, weights, root, kind="t", record={})
    assert same(standing(weights.model), before)
    assert trained != base[0]
    assert engine.score(CHAT, [ANSWER], engine.model_string(name)) == pytest.approx([trained], abs=1e-4)
    assert engine.score(CHAT, [ANSWER]) == base
    assert same(standing(weights.model), before)

    assert adapters.tuner_of(root / name) == tuner
    with adapters.training(weights, parent=root / name) as module:
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == count
        with adapters.serving_trained(weights) as served:
            assert score(weights, served) == pytest.approx(trained, abs=1e-4)
    assert same(standing(weights.model), before)

    forget_engines()
    fresh = local_lm(folder, work_dir=tmp_path).engine
    assert fresh.weights is not weights
    assert fresh.score(CHAT, [ANSWER], fresh.model_string(name)) == pytest.approx([trained], abs=1e-4)


@pytest.mark.parametrize("word", ["prefix", "prompt", "p-tuning"])
def test_virtual_tokens_stand_before_prompts_batched_and_over_a_kept_prefix_as_in_training(word, lm):
    weights, root = lm.engine.weights, lm.engine.adapters_dir
    requests = [
        Request(
            model=lm.model,
            system="Read with care. " * 3,
            messages=(Message.user("x" * (3 * i)),),
            config=Config(max_tokens=6, temperature=0.0),
        )
        for i in range(5)
    ]
    expected = []
    with adapters.training(weights, tuner=tuner_from(word, {"tokens": 5})) as module:
        fit(weights, module, default_rate(weights.tuning.tuner, HIDDEN))
        module.eval()
        for request in requests:
            ids = torch.tensor([encode_prompt(weights, request_chat(request))])
            start = ids.shape[1]
            for _ in range(6):
                with torch.no_grad():
                    best = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1].argmax(-1)
                ids = torch.cat([ids, best[:, None]], dim=1)
            said = ids[0, start:].tolist()
            expected.append(said[: next((i for i, t in enumerate(said) if t in weights.stop_ids), 6)])
        name = adapters.keep_adapter(module, weights, root, kind="t", record={})
    model = lm.engine.model_string(name)
    futures = [lm.engine.submit(replace(request, model=model)) for request in requests]
    texts = [future.result().message.text for future in futures]
    assert texts == [weights.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]


def test_kinds_attached_at_once_serve_in_turn_and_the_base_between_them(lm):
    names = [make(lm, tuner) for tuner in (LoRA(rank=4), Full(), Prefix(tokens=3), BitFit(), LoRA(rank=2))]
    engine = lm.engine
    models = [None, *(engine.model_string(name) for name in names)]
    alone = [engine.score(CHAT, [ANSWER], model) for model in models]
    assert len({score for (score,) in alone}) == len(models)
    for _ in range(2):
        assert [engine.score(CHAT, [ANSWER], model) for model in reversed(models)] == alone[::-1]
    assert sorted(engine.weights.attached) == sorted(names)
    assert engine.weights.graft is None


def test_adapters_beyond_the_bound_in_number_or_bytes_are_forgotten_oldest_first(lm, monkeypatch):
    engine = lm.engine
    one, two, three = make(lm, Full()), make(lm, LoRA(rank=4)), make(lm, BitFit())
    scores = {name: engine.score(CHAT, [ANSWER], engine.model_string(name)) for name in (one, two, three)}
    assert engine.weights.attached[one].size_bytes == 4 * EXPECTED["full"][1]
    engine.weights.attached.clear()
    monkeypatch.setattr(adapters, "MAX_ATTACHED", 2)
    for name in (one, two, three):
        assert engine.score(CHAT, [ANSWER], engine.model_string(name)) == scores[name]
    assert list(engine.weights.attached) == [two, three]
    monkeypatch.setitem(adapters.MAX_ATTACHED_BYTES, "cpu", 100_000)
    assert engine.score(CHAT, [ANSWER], engine.model_string(one)) == scores[one]  # alone above it, and still served
    assert list(engine.weights.attached) == [one]


def test_whatever_happens_in_training_the_base_comes_back(lm):
    weights, tokenizer = lm.engine.weights, lm.engine.weights.tokenizer
    before, pad = standing(weights.model), tokenizer.pad_token
    with pytest.raises(ZeroDivisionError):
        with adapters.training(weights, tuner=LoRA(rank=2)) as module:
            model = weights.model
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
            module.train()
            model.config.use_cache = False
            model.forward = lambda *args, **kwargs: None
            model.lm_head.weight.data = model.lm_head.weight.data.to(torch.bfloat16)
            model.model.layers[0].mlp.register_forward_hook(lambda *args: None)
            model.model.layers[0].self_attn.q_proj.base_layer.weight.requires_grad_(True)
            model.model.norm = torch.nn.Identity()
            tokenizer.pad_token = "<|im_start|>"
            raise ZeroDivisionError
    assert same(standing(weights.model), before) and tokenizer.pad_token == pad
    assert weights.graft is None and weights.tuning is None and weights.lock.acquire(timeout=1)
    weights.lock.release()


def test_prefix_and_prompt_begin_as_the_text_they_are_given(lm):
    weights, text = lm.engine.weights, "Read it all."
    ids = weights.tokenizer(text)["input_ids"]
    prompt, rest = encode_prompt(weights, CHAT), encode_completion(weights, CHAT, ANSWER, with_end=False)
    expected = score_rows(weights.model, ids + prompt, [rest], None, None)[0]
    for kind in (Prefix, Prompt):
        with adapters.training(weights, tuner=kind(tokens=len(ids), init_text=text)):
            with adapters.serving_trained(weights) as served:
                assert score(weights, served) == pytest.approx(expected, abs=1e-3)


def test_p_tuning_goes_on_from_a_trainers_checkpoint_with_its_mlp(lm):
    weights = lm.engine.weights
    with adapters.training(weights, tuner=PTuning(tokens=3)) as module:
        fit(weights, module, 1e-2)
        kept = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(module).items()}
        with adapters.serving_trained(weights) as served:
            expected = score(weights, served)
        fit(weights, module, 1e-2)
        set_peft_model_state_dict(module, kept)
        with adapters.serving_trained(weights) as served:
            assert score(weights, served) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("word", ["full", "p-tuning"])
def test_the_provider_trains_other_tuners_than_lora(word, lm):
    rows = [{"messages": [*CHAT, {"role": "assistant", "content": ANSWER}]}] * 4
    options = {"batch_size": 4, "max_steps": 4, "learning_rate": 1e-2, "progress": False}
    tuned = lm.finetune(rows, "chat", {"tuner": word, **options}).result()
    assert not isinstance(tuned, Exception), tuned
    engine = lm.engine
    assert engine.score(CHAT, [ANSWER], tuned.model)[0] > engine.score(CHAT, [ANSWER])[0]
    assert word_of(adapters.tuner_of(engine.adapters_dir / tuned.model.split("@")[1])) == word


@pytest.mark.parametrize(
    "tuner", [tuner_from("qlora", {"rank": 4}), Bottleneck(width=4), NormTuning(), Prefix(tokens=3)]
)
def test_a_base_in_4_bits_trains_and_serves(tuner, tmp_path):
    lm = local_lm(
        write_tiny_model(tmp_path / "tiny", hidden=64), quantize="nf4", device="cpu", work_dir=tmp_path, max_tokens=4
    )
    engine, before = lm.engine, lm.engine.score(CHAT, [ANSWER])
    name = make(lm, tuner)
    assert engine.score(CHAT, [ANSWER], engine.model_string(name))[0] > before[0]
    assert engine.score(CHAT, [ANSWER]) == before
    for tuner in (Full(), TopLayers(), OSF()):
        with pytest.raises(TrainingError, match="quantize='none'"):
            with adapters.training(engine.weights, tuner=tuner):
                pass


@pytest.mark.parametrize("tuner", [Full(), TopLayers(layers=1), NormTuning(), LoRA(rank=4)])
def test_on_a_half_precision_base_trained_weights_are_float32_and_served_ones_the_bases(tuner, folder, tmp_path):
    lm = local_lm(folder, dtype="bfloat16", work_dir=tmp_path)
    weights, root = lm.engine.weights, lm.engine.adapters_dir
    with adapters.training(weights, tuner=tuner) as module:
        assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}
        fit(weights, module, 1e-3, autocast=True)
        with adapters.serving_trained(weights) as served:
            trained = score(weights, served)
        name = adapters.keep_adapter(module, weights, root, kind="t", record={})
    assert {p.dtype for p in weights.model.parameters()} == {torch.bfloat16}
    assert lm.engine.score(CHAT, [ANSWER], lm.engine.model_string(name)) == pytest.approx([trained], rel=0.01)


def test_structure_is_found_in_other_architectures():
    small = {"num_hidden_layers": 2, "hidden_size": 16, "vocab_size": 32, "num_attention_heads": 2}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32))
    opt = OPTForCausalLM(OPTConfig(**small, ffn_dim=32, word_embed_proj_dim=16))
    biased = LlamaForCausalLM(LlamaConfig(**small, intermediate_size=32, attention_bias=True))
    assert output_projections(gpt2, "both")[:2] == ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"]
    assert output_projections(opt, "mlp") == [f"model.decoder.layers.{i}.fc2" for i in range(2)]
    assert output_projections(opt, "attention") == [f"model.decoder.layers.{i}.self_attn.out_proj" for i in range(2)]
    assert len(norm_names(gpt2)) == 5 and "transformer.ln_f" in norm_names(gpt2)
    assert all("lm_head" not in name for model in (gpt2, opt, biased) for name in linear_names(model))
    assert bias_names(biased) == [
        f"model.layers.{i}.self_attn.{name}_proj" for i in range(2) for name in ("q", "k", "v", "o")
    ]
    tops = top_parameter_names(gpt2, 1)
    assert {name.split(".h.")[0] for name in tops} == {
        "transformer",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
    }
    assert not [name for name in tops if ".h.0." in name] and len([name for name in tops if ".h.1." in name]) == 12
    with pytest.raises(TrainingError, match="has 2 decoder layers"):
        top_parameter_names(opt, 3)


def test_words_options_and_ranges_are_checked():
    for word in TUNERS:
        tuner = tuner_from(word)
        assert word_of(tuner) == word and tuner_from(word, options_of(tuner)) == tuner and default_rate(tuner, 2000) > 0
    assert set(DEFAULT_RATES) == {*TUNERS, "peft"}
    lora = tuner_from("lora")
    assert default_rate(lora, 2000) == pytest.approx(5e-4) == pytest.approx(10 * default_rate(tuner_from("full"), 2000))
    assert default_rate(lora, 4096) == pytest.approx(2.857e-4, rel=1e-3)
    assert default_rate(lora, 256) == default_rate(lora, 32) == pytest.approx(2.489e-3, rel=1e-3)
    vera = tuner_from("peft:vera", {"config": {"r": 8}})
    assert vera == Peft("VERA", {"r": 8}) and word_of(vera) == "peft:VERA" and options_of(vera) == {"config": {"r": 8}}
    for word, options, message in [
        ("lorra", {}, "top_layers"),
        ("lora", {"ranks": 3}, "rank"),
        ("lora", {"rank": 0}, "at least 1"),
        ("lora", {"rank": True}, "at least 1"),
        ("lora", {"alpha": 0}, "above 0"),
        ("lora", {"dropout": 1.0}, "below 1"),
        ("bottleneck", {"placement": "top"}, "mlp"),
        ("bottleneck", {"activation": "sine"}, "gelu"),
        ("prefix", {"tokens": 0}, "at least 1"),
        ("osf", {"kept": 1.5}, "share"),
        ("full", {"rank": 4}, "known are"),
        ("peft:NOPE", {}, "VERA"),
        ("peft:VERA", {"config": {"rank": 3}}, "'r'"),
        ("peft:LORA", {"config": {"alora_invocation_tokens": [1]}}, "alora"),
    ]:
        with pytest.raises(TrainingError, match=message):
            tuner_from(word, options)
    for word in UNFIT:
        with pytest.raises(TrainingError, match="cannot be used"):
            tuner_from(f"peft:{word}")
    with pytest.raises(TrainingError, match="tuner config"):
        word_of({"rank": 4})


def test_another_tuner_of_peft_trains_and_serves(lm):
    for tuner in (Peft("VERA", {"r": 8}), Peft("GRALORA", {"r": 8})):
        name = make(lm, tuner)
        score = lm.engine.score(CHAT, [ANSWER], lm.engine.model_string(name))[0]
        assert score > lm.engine.score(CHAT, [ANSWER])[0]
        assert adapters.tuner_of(lm.engine.adapters_dir / name) == tuner


def test_what_cannot_be_trained_served_or_continued_is_refused(lm):
    weights, root = lm.engine.weights, lm.engine.adapters_dir
    before = standing(weights.model)
    parent = make(lm, LoRA(rank=2))
    for options, message in [
        ({"tuner": tuner_from("qlora")}, "quantize='nf4'"),
        ({"tuner": TopLayers(layers=9)}, "has 2 decoder layers"),
        ({"tuner": LoRA(target_modules=("no_such",))}, "does not fit"),
        ({"tuner": LoRA(rank=-1)}, "at least 1"),
        ({"tuner": Full(), "parent": root / parent}, "of kind 'lora'"),
        ({}, "give a tuner"),
        ({"tuner": Peft("LORA", {"target_modules": "all-linear", "init_lora_weights": "pissa"})}, "rewrites"),
        ({"tuner": Peft("IA3", {"target_modules": ["k_proj"], "feedforward_modules": ["up_proj"]})}, "does not fit"),
    ]:
        with pytest.raises(TrainingError, match=message):
            with adapters.training(weights, **options):
                pass
        assert same(standing(weights.model), before)
    with adapters.training(weights, tuner=LoRA(rank=2)) as module:
        with pytest.raises(TrainingError, match="in training already"):
            with adapters.training(weights, tuner=LoRA(rank=2)):
                pass
        next(p for p in module.parameters() if p.requires_grad).data.fill_(float("nan"))
        with pytest.raises(TrainingError, match="not finite"):
            adapters.keep_adapter(module, weights, root, kind="t", record={})
    for call in (lambda: adapters.serving_trained(weights).__enter__(), lambda: keep_outside(module, weights, root)):
        with pytest.raises(TrainingError, match="in training"):
            call()
    assert [path.name for path in root.iterdir()] == [parent]


def keep_outside(module, weights, root):
    adapters.keep_adapter(module, weights, root, kind="t", record={})


def test_a_tuner_that_acts_outside_the_network_is_not_kept(lm):
    weights, root = lm.engine.weights, lm.engine.adapters_dir
    with adapters.training(weights, tuner=Peft("VERA", {"r": 4})) as module:
        module.register_forward_hook(lambda module, args, output: output | {"logits": output.logits + 1})
        with pytest.raises(TrainingError, match="outside the network"):
            adapters.keep_adapter(module, weights, root, kind="t", record={})


def test_a_graft_holds_no_hooks_and_no_patched_forward(lm):
    model = lm.engine.weights.model
    for patch in (
        lambda: model.lm_head.register_forward_hook(lambda *args: None),
        lambda: model.lm_head.__dict__.update(forward=lambda x: x),
    ):
        snapshot = Snapshot(model)
        patch()
        with pytest.raises(ModelError, match="hook"):
            snapshot.graft()
        snapshot.restore()
        assert snapshot.graft().changes == ()


def test_an_adapter_file_that_names_other_parameters_is_refused(lm, tmp_path):
    from safetensors.torch import load_file, save_file

    from optimizers.local_lm.sealed import check_seal, seal

    name = make(lm, TopLayers(layers=1))
    folder = lm.engine.adapters_dir / name
    file = folder / "adapter_model.safetensors"
    save_file({f"{key}.x": value for key, value in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="sha256"):
        lm.engine.score(CHAT, [ANSWER], lm.engine.model_string(name))
    told = {key: value for key, value in json_of(folder).items() if key != "files"}
    seal(folder, told)
    assert check_seal(folder)
    before = standing(lm.engine.weights.model)
    with pytest.raises(ModelError, match="the base has not"):
        lm.engine.score(CHAT, [ANSWER], lm.engine.model_string(name))
    assert same(standing(lm.engine.weights.model), before)


def json_of(folder):
    import json

    return json.loads((folder / "COMPLETE").read_text())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("word", list(EXPECTED))
def test_on_cuda_a_tuner_trains_in_float32_and_serves_in_bfloat16(word, folder, tmp_path):
    lm = local_lm(folder, device="cuda", work_dir=tmp_path)
    rows = [{"messages": [*CHAT, {"role": "assistant", "content": ANSWER}]}] * 4
    options = {"batch_size": 4, "max_steps": 8, "progress": False, "tuner": word, **EXPECTED[word][0]}
    before = lm.engine.score(CHAT, [ANSWER])
    tuned = lm.finetune(rows, "chat", options).result()
    assert not isinstance(tuned, Exception), tuned
    assert lm.engine.score(CHAT, [ANSWER], tuned.model)[0] > before[0]
    assert lm.engine.score(CHAT, [ANSWER]) == before
    assert load_weights(folder, device="cuda").model.dtype == torch.bfloat16

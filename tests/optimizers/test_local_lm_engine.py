"""The engine on tiny random models: the same answers alone, batched, and over a kept prefix; errors; logprobs."""

import asyncio
import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import dspy
import pytest
import torch
from dspy import lm15
from dspy.lm15 import Config, Message, Request
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from optimizers.errors import ModelError
from optimizers.local_lm import load_weights, local_lm
from optimizers.local_lm import weights as weights_module
from optimizers.local_lm.prompts import encode_prompt, request_chat
from optimizers.local_lm.serving import attention, batches, dispatch
from optimizers.local_lm.serving.decoding import decode, score_rows
from optimizers.local_lm.serving.prefixes import PrefixStore
from optimizers.local_lm.serving.rows import Row
from optimizers.local_lm.tiny import CHAT_TEMPLATE, byte_tokenizer, write_tiny_model

SYSTEM = "You read contracts with care and say what they say. " * 3


pytestmark = pytest.mark.usefixtures("fresh_engines")


@pytest.fixture
def lm(folder, tmp_path):
    return local_lm(folder, work_dir=tmp_path, max_tokens=24)


def ask(lm, text, system=SYSTEM, **config):
    return Request(
        model=lm.model,
        system=system,
        messages=(Message.user(text),),
        config=Config(**{"max_tokens": 24, "temperature": 0.0, **config}),
    )


def plain_ids(lm, request):
    weights = lm.engine.weights
    ids = torch.tensor([encode_prompt(weights, request_chat(request))])
    with weights.lock:  # the last batch may have answered, and not have ended yet
        out = weights.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.config.max_tokens, do_sample=False
        )
    new = out[0, ids.shape[1] :].tolist()
    return [token for token in new if token not in weights.stop_ids]


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma"])
def test_greedy_tokens_are_those_of_generate_alone_batched_and_without_prefix(kind, tmp_path):
    lm = local_lm(write_tiny_model(tmp_path / kind, kind=kind, seed=3), work_dir=tmp_path)
    engine, weights = lm.engine, lm.engine.weights
    requests = [ask(lm, "x" * (i * i) + str(i)) for i in range(9)]
    expected = [plain_ids(lm, request) for request in requests]
    for request in requests:
        engine.complete(request)
    assert [list(c.ids) for c in engine.completions] == expected
    engine.prefixes.clear()
    rows = [Row(tuple(encode_prompt(weights, request_chat(r))), 24) for r in requests]
    for store in (engine.prefixes, None):
        with weights.lock:
            outputs = decode(weights.model, weights.tokenizer, rows, weights.stop_ids, store, None)
        assert [output.ids for output in outputs] == expected
    assert len(engine.prefixes.entries) == 1


def test_threads_are_batched_and_get_their_own_answers(lm):
    requests = [ask(lm, "clause " * (i % 5) + str(i)) for i in range(24)]
    alone = [lm.engine.complete(request).message.text for request in requests]
    lm.engine.batch_sizes.clear()
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda r: lm.engine.complete(r).message.text, requests))
    assert together == alone
    assert max(lm.engine.batch_sizes) > 1


def kv_of(model, tokens):
    """Keys and values of `tokens`, as an adapter's virtual tokens would come."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.tensor([tokens]), past_key_values=cache)
    return [(layer.keys, layer.values) for layer in cache.layers]


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
@pytest.mark.parametrize("kept", [True, False])
def test_an_opening_is_as_its_tokens_before_every_prompt(kind, kept, tmp_path):
    engine = local_lm(write_tiny_model(tmp_path / kind, kind=kind, seed=5), work_dir=tmp_path).engine
    weights, first = engine.weights, list(range(40, 47))
    opening = kv_of(weights.model, first)
    rows = [Row((*range(70, 100), *range(i + 3)), 8, logprobs=1) for i in range(5)]
    longer = [replace(row, ids=(*first, *row.ids)) for row in rows]
    expected = decode(weights.model, weights.tokenizer, longer, weights.stop_ids, None, None)
    store = engine.prefixes if kept else None
    call = (weights.model, weights.tokenizer)
    together = decode(*call, rows, weights.stop_ids, store, "soft", opening)
    again = decode(*call, rows, weights.stop_ids, store, "soft", opening)  # now over what was kept
    alone = [decode(*call, [row], weights.stop_ids, store, "soft", opening)[0] for row in rows]
    bare = decode(*call, rows, weights.stop_ids, store, None)
    for outputs in (together, again, alone):
        assert [output.ids for output in outputs] == [output.ids for output in expected]
        for output, other in zip(outputs, expected, strict=True):
            assert output.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert [output.logprobs[0] for output in bare] != pytest.approx([o.logprobs[0] for o in expected], abs=1e-4)
    words = [[1, 2, 3], [4]]
    scores = score_rows(weights.model, [*first, *rows[0].ids], words, None, None)
    for _ in range(2):
        assert score_rows(weights.model, rows[0].ids, words, store, "soft", opening) == pytest.approx(scores, abs=1e-3)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma"])
def test_a_model_that_shares_a_prefix_is_told_from_one_that_does_not(kind, tmp_path):
    model = load_weights(write_tiny_model(tmp_path / kind, kind=kind)).model
    assert batches.shares_prefix(model)
    assert model.config._attn_implementation == "sdpa"
    batches._tried.clear()
    AttentionInterface.register(attention.NAME, sdpa_attention_forward)  # an architecture that loses the prefix
    assert not batches.shares_prefix(model)
    AttentionInterface.register(attention.NAME, attention.attend)
    batches._tried.clear()
    model.config._attn_implementation = "eager"
    assert not batches.shares_prefix(model)


def test_a_model_that_shares_no_prefix_is_decoded_over_the_usual_cache(lm, monkeypatch):
    requests = [ask(lm, "x" * i) for i in range(5)]
    expected = [plain_ids(lm, request) for request in requests]
    monkeypatch.setattr(batches, "shares_prefix", lambda model: False)
    rows = [Row(tuple(encode_prompt(lm.engine.weights, request_chat(r))), 24) for r in requests]
    weights = lm.engine.weights
    with weights.lock:
        outputs = decode(weights.model, weights.tokenizer, rows, weights.stop_ids, lm.engine.prefixes, None)
    assert [output.ids for output in outputs] == expected


def test_a_row_may_outgrow_the_room_its_cache_began_with(lm, monkeypatch):
    monkeypatch.setattr(batches, "ROOM_TOKENS", 2)
    monkeypatch.setattr(attention, "GROW_TOKENS", 3)
    request = ask(lm, "grow")
    lm.engine.complete(request)
    assert list(lm.engine.completions[-1].ids) == plain_ids(lm, request)


def test_the_prefix_store_is_cropped_extended_and_bounded(lm):
    store = lm.engine.prefixes
    lm.engine.complete(ask(lm, "one"))
    lm.engine.complete(ask(lm, "two"))
    (ids, kv), *more = store.entries.values()
    assert not more and kv[0][0].shape[2] == len(ids)  # "two" took the first prompt's prefix, cropped
    lm.engine.complete(ask(lm, "three", system="Something else altogether, and at some length, so that it is kept."))
    assert len(store.entries) == 2
    small = PrefixStore(limit_bytes=1)
    for entry_ids, entry_kv in store.entries.values():
        small.put(None, entry_ids, entry_kv)
    assert len(small.entries) == 1


def test_a_kept_prefix_of_one_adapter_is_not_served_to_another(lm):
    lm.engine.complete(ask(lm, "one"))
    ids = next(iter(lm.engine.prefixes.entries.values()))[0]
    assert lm.engine.prefixes.longest(None, ids)[0] == len(ids)
    assert lm.engine.prefixes.longest("sft-1", ids) == (0, None)


def test_seeded_sampling_repeats_and_does_not_depend_on_neighbours(lm):
    hot = [ask(lm, f"draw {i}", temperature=1.0, top_p=0.95, top_k=50, seed=i) for i in range(6)]
    alone = [lm.engine.complete(request).message.text for request in hot]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda r: lm.engine.complete(r).message.text, hot)) == alone
    other = replace(hot[0], config=replace(hot[0].config, seed=99))
    assert lm.engine.complete(other).message.text != alone[0]


def test_top_k_one_and_a_tiny_top_p_are_greedy(lm):
    greedy = lm.engine.complete(ask(lm, "say")).message.text
    assert lm.engine.complete(ask(lm, "say", temperature=1.5, top_k=1)).message.text == greedy
    assert lm.engine.complete(ask(lm, "say", temperature=1.5, top_p=1e-6)).message.text == greedy


def test_logprobs_fill_the_prediction_and_are_those_of_a_plain_forward(lm):
    predict = dspy.Predict("question -> answer")
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    with dspy.context(lm=lm.copy(logprobs=True, top_logprobs=2), adapter=adapter):
        with pytest.raises(dspy.utils.exceptions.AdapterParseError):
            predict(question="?")  # noise does not parse; the response itself is looked at below
    response = lm.engine.complete(ask(lm, "score me", logprobs=2))
    weights = lm.engine.weights
    prompt = encode_prompt(weights, request_chat(ask(lm, "score me")))
    said = [token.token_id for token in response.logprobs]
    with weights.lock, torch.inference_mode():
        logits = weights.model(torch.tensor([prompt + said])).logits[0]
    expected = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(said)[:, None])[:, 0]
    assert torch.allclose(torch.tensor([t.logprob for t in response.logprobs]), expected, atol=1e-4)
    assert all(len(t.top) == 2 and t.top[0].logprob == pytest.approx(t.logprob, abs=1e-5) for t in response.logprobs)
    assert lm.engine.complete(ask(lm, "score me")).logprobs is None


def test_score_is_the_sum_of_the_completions_token_logprobs(lm):
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Is it so?"}]
    weights = lm.engine.weights
    prompt = encode_prompt(weights, chat)
    words = ["yes", "no", "not in this contract"]
    expected = []
    for word in words:
        ids = weights.tokenizer(word)["input_ids"]
        with weights.lock, torch.inference_mode():
            logps = weights.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        expected.append(sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(ids)))
    assert lm.engine.score(chat, words) == pytest.approx(expected, abs=1e-3)
    assert lm.engine.score(chat, words) == pytest.approx(expected, abs=1e-3)  # now over the kept prefix
    assert lm.engine.score(chat, []) == []


def test_stop_strings_and_max_tokens_end_a_row_and_usage_counts_tokens(lm):
    request = ask(lm, "go on", max_tokens=20)
    whole = lm.engine.complete(request)
    assert whole.finish_reason == "length"
    assert whole.usage.output_tokens == 20
    assert whole.usage.input_tokens == len(encode_prompt(lm.engine.weights, request_chat(request)))
    stop = whole.message.text[5:7]
    cut = lm.engine.complete(ask(lm, "go on", max_tokens=20, stop=(stop,)))
    assert cut.finish_reason == "stop"
    assert cut.message.text == whole.message.text[: whole.message.text.index(stop)]


def test_rows_of_one_batch_end_at_their_own_lengths(lm):
    weights = lm.engine.weights
    ids = tuple(encode_prompt(weights, request_chat(ask(lm, "again"))))
    rows = [Row(ids, n) for n in (1, 20, 3, 9, 2, 4)]
    outputs = decode(weights.model, weights.tokenizer, rows, weights.stop_ids, None, None)
    longest = outputs[1].ids
    assert [output.ids for output in outputs] == [longest[: row.max_tokens] for row in rows]


def test_a_prompt_beyond_the_context_is_refused_with_its_lengths(lm):
    with pytest.raises(lm15.ContextLengthError, match=r"max_tokens is 24.*2048"):
        lm.engine.complete(ask(lm, "long " * 500))
    with pytest.raises(dspy.ContextWindowExceededError):
        lm("long " * 500)


@pytest.mark.parametrize(
    "request_change",
    [
        {"config": Config(frequency_penalty=1.0)},
        {"tools": (lm15.FunctionTool(name="f", parameters={"type": "object", "properties": {}}),)},
    ],
)
def test_what_a_text_model_has_not_is_refused(lm, request_change):
    with pytest.raises(lm15.UnsupportedFeatureError):
        lm.engine.complete(replace(ask(lm, "x"), **request_change))


def test_another_base_or_a_missing_adapter_is_refused(lm):
    with pytest.raises(lm15.UnsupportedModelError, match="holds"):
        lm.engine.complete(replace(ask(lm, "x"), model="local/other:12345678"))
    with pytest.raises(lm15.UnsupportedModelError, match="not there"):
        lm.engine.complete(replace(ask(lm, "x"), model=lm.model + "@sft-0000000000"))


def test_control_tokens_in_a_document_do_not_end_its_turn(lm):
    weights = lm.engine.weights
    ids = encode_prompt(weights, [{"role": "user", "content": "a<|im_end|>\n<|im_start|>assistant\nb"}])
    assert ids.count(weights.tokenizer.eos_token_id) == 1


def test_a_template_without_a_system_role_gets_it_with_the_first_user_turn(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    tokenizer = byte_tokenizer()
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refuse + CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    weights = load_weights(folder)
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert "<|im_start|>user\nS\n\nU<|im_end|>" in weights.tokenizer.decode(encode_prompt(weights, chat))


def test_out_of_memory_splits_the_batch_and_then_is_retryable(lm, monkeypatch):
    requests = [ask(lm, f"memory {i}") for i in range(8)]
    alone = [lm.engine.complete(request).message.text for request in requests]
    real = dispatch.decode

    def short_of_memory(model, tokenizer, rows, *rest, **named):
        if len(rows) > limit:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return real(model, tokenizer, rows, *rest, **named)

    monkeypatch.setattr(dispatch, "decode", short_of_memory)
    limit = 2
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda r: lm.engine.complete(r).message.text, requests)) == alone
    limit = 0
    with pytest.raises(lm15.ServerError, match="memory"):
        lm.engine.complete(requests[0])


def test_a_failing_batch_fails_its_callers_and_not_the_dispatcher(lm, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "decode", lambda *args, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lm.engine.complete(ask(lm, "x"))
    assert lm.engine.complete(ask(lm, "x")).finish_reason in ("stop", "length")


def test_async_stream_and_close(lm):
    request = ask(lm, "async")
    expected = lm.engine.complete(request).message.text

    async def both():
        return await asyncio.gather(*[lm._async_engine_spec.complete(request) for _ in range(4)])

    assert [response.message.text for response in asyncio.run(both())] == [expected] * 4
    events = list(lm.engine.stream(request))
    assert "".join(e.delta.text for e in events if e.type == "delta") == expected
    lm.engine.close()
    assert "local-lm" not in [thread.name for thread in threading.enumerate() if thread is lm.engine.dispatcher.thread]
    assert lm.engine.complete(request).message.text == expected


def test_closing_while_callers_ask_leaves_none_of_them_waiting(lm):
    request = ask(lm, "closing", max_tokens=2)
    expected = lm.engine.complete(request).message.text
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(lm.engine.complete, request) for _ in range(20)]
        for _ in range(5):
            lm.engine.close()
        assert [future.result(timeout=60).message.text for future in futures] == [expected] * 20


def test_copies_share_the_engine_and_equal_descriptions_share_one(lm, folder, tmp_path):
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    copied = program.deepcopy()
    assert copied.lm.engine is lm.engine and copied.lm.provider is lm.provider
    assert copy.deepcopy(lm._async_engine_spec) is lm._async_engine_spec
    assert local_lm(folder, work_dir=tmp_path, max_tokens=24).engine is lm.engine
    assert type(lm.engine).load_state(lm.engine.dump_state()) is lm.engine
    assert local_lm(folder, work_dir=tmp_path / "elsewhere").engine.weights is lm.engine.weights


def test_new_weights_never_keep_the_old_name(folder, tmp_path):
    first = load_weights(folder).base
    assert load_weights(write_tiny_model(tmp_path / "tiny", seed=1)).base != first
    assert load_weights(folder, dtype="bfloat16").base != first
    assert first.startswith("tiny:")


def test_a_tokenizer_without_template_absent_cuda_and_unknown_options_are_refused(tmp_path, monkeypatch):
    folder = write_tiny_model(tmp_path / "tiny")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, message in [
        ({"device": "cuda"}, "no CUDA"),
        ({"quantize": "int3"}, "nf4"),
        ({"dtype": "float8"}, "float32"),
    ]:
        with pytest.raises(ModelError, match=message):
            load_weights(folder, **options)
    with pytest.raises(ModelError, match="neither bundled"):
        load_weights(tmp_path / "absent")
    with pytest.raises(ModelError, match="without config.json"):
        load_weights(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="chat_template.jinja"):
        load_weights(folder)


def test_the_bundled_model_is_found_or_missed_clearly(monkeypatch, tmp_path):
    from optimizers.local_lm import weights

    monkeypatch.setitem(weights.BUNDLED, "evergreen-base", tmp_path / "nothing")
    with pytest.raises(ModelError, match="not in this installation"):
        load_weights("evergreen-base")


def test_an_absent_hub_model_offline_is_a_model_error(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match="not in the local hub cache"):
        load_weights("nobody/nothing-1b")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the shared prefix on CUDA is not tried")
@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma"])
def test_on_cuda_too_a_shared_prefix_changes_no_token(kind, tmp_path):
    folder = write_tiny_model(tmp_path / kind, kind=kind, hidden=128)
    engine = local_lm(folder, work_dir=tmp_path, device="cuda", dtype="float32").engine
    weights = engine.weights
    assert batches.shares_prefix(weights.model)
    rows = [Row((*range(70, 110), *range(i + 3)), 16) for i in range(9)]
    ids = [torch.tensor([row.ids], device="cuda") for row in rows]
    expected = [weights.model.generate(each, max_new_tokens=16, do_sample=False)[0, each.shape[1] :] for each in ids]
    outputs = decode(weights.model, weights.tokenizer, rows, weights.stop_ids, engine.prefixes, None)
    for output, tokens in zip(outputs, expected, strict=True):
        assert output.ids == [token for token in tokens.tolist() if token not in weights.stop_ids]


def test_a_large_base_is_loaded_in_4_bits_on_cuda_by_default(folder, monkeypatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    resolve = weights_module._resolve_quantize
    assert resolve("auto", folder, cuda) is None
    monkeypatch.setattr(weights_module, "NF4_FROM_BYTES", 1)
    assert resolve("auto", folder, cuda) == "nf4" and resolve("auto", folder, cpu) is None
    assert resolve("none", folder, cuda) is None and resolve("nf4", folder, cpu) == "nf4"

"""Streaming: whole characters as tokens come, stop strings held back, in a batch, through dspy.streamify."""

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import dspy
import pytest
import torch
from dspy import lm15
from dspy.lm15 import Config, Message, Request
from llguidance import LLMatcher

from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.serving import dispatch
from optimizers.local_lm.serving.constraints import Grammar
from optimizers.local_lm.serving.rows import Output
from optimizers.local_lm.serving.streams import EventListener
from optimizers.local_lm.serving.text import TextStream
from optimizers.local_lm.tiny import byte_tokenizer, write_tiny_model


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    folder = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    yield local_lm(folder, work_dir=folder.parent, max_tokens=24)
    forget_engines()


def ask(lm, text: str, **config: Any) -> Request:
    settings = Config(**{"max_tokens": 24, "temperature": 0.0, **config})
    return Request(model=lm.model, messages=(Message.user(text),), config=settings)


def deltas(events) -> list[str]:
    return [event.delta.text for event in events if event.type == "delta"]


def test_characters_come_whole_and_the_pieces_make_the_text():
    tokenizer = byte_tokenizer()
    for text in ("plain", "é€😀 n̈", "a😀"):
        stream, heard = TextStream(tokenizer), []
        for token in tokenizer(text)["input_ids"]:
            stream.push(token)
            assert text.startswith(stream.settled())
            heard.append(stream.settled())
        assert heard[-1] == stream.close() == text
    stream = TextStream(tokenizer)
    for token in tokenizer("b😀")["input_ids"][:-1]:  # ends inside a character
        stream.push(token)
    assert stream.settled() == "b"
    assert stream.close().startswith("b\N{REPLACEMENT CHARACTER}")


def test_text_that_a_stop_string_may_take_back_is_held_back():
    tokenizer = byte_tokenizer()
    stream, heard = TextStream(tokenizer, ("END", "\n\n")), []
    for token in tokenizer("aENx\nyEND!")["input_ids"]:
        if stream.push(token):
            break
        heard.append(stream.settled())
    assert heard == ["a", "a", "a", "aENx", "aENx", "aENx\ny", "aENx\ny", "aENx\ny"]
    assert stream.close() == stream.settled() == "aENx\ny"


def test_a_stream_has_many_pieces_and_equals_the_answer_in_a_batch_too(lm):
    requests = [ask(lm, f"say {i}", logprobs=1 if i % 2 else None) for i in range(12)]
    whole = [lm.engine.complete(request) for request in requests]
    lm.engine.batch_sizes.clear()
    with ThreadPoolExecutor(12) as pool:
        streamed = list(pool.map(lambda request: list(lm.engine.stream(request)), requests))
    assert max(lm.engine.batch_sizes) > 1
    for events, response in zip(streamed, whole, strict=True):
        assert [events[0].type, events[-1].type] == ["start", "end"]
        assert "".join(deltas(events)) == response.message.text
        assert (events[-1].usage, events[-1].finish_reason) == (response.usage, response.finish_reason)
        told = [entry.token_id for event in events if event.type == "delta" for entry in event.delta.logprobs]
        assert told == [entry.token_id for entry in response.logprobs or ()]
    # Noise is not always UTF-8, and what is not is held back: most rows come in pieces.
    assert sorted(len(deltas(events)) for events in streamed)[6] > 3


def test_pieces_come_while_the_row_still_speaks(lm):
    request = ask(lm, "long", max_tokens=200)
    heard_at = [time.perf_counter() for _ in lm.engine.stream(request)]
    assert heard_at[-1] - heard_at[1] > 0.3 * (heard_at[-1] - heard_at[0])


def test_a_stop_string_is_not_heard(lm):
    text = lm.engine.complete(ask(lm, "halt")).message.text
    stop = text[6:9]
    events = list(lm.engine.stream(ask(lm, "halt", stop=(stop,))))
    assert "".join(deltas(events)) == text[: text.index(stop)]
    assert events[-1].finish_reason == "stop"


def test_async_streams_equal_the_answers(lm):
    requests = [ask(lm, f"async {i}") for i in range(4)]
    whole = [lm.engine.complete(request).message.text for request in requests]

    async def hear(request):
        return [event async for event in lm._async_engine_spec.stream(request)]

    async def both():
        return await asyncio.gather(*map(hear, requests))

    streamed = asyncio.run(both())
    assert ["".join(deltas(events)) for events in streamed] == whole
    assert max(len(deltas(events)) for events in streamed) > 3


def test_a_consumer_that_goes_away_frees_its_row_and_harms_no_other(lm):
    expected = lm.engine.complete(ask(lm, "stays", max_tokens=100)).message.text
    lm.engine.completions.clear()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lm.engine.complete, ask(lm, "stays", max_tokens=100))
        stream = lm.engine.stream(ask(lm, "goes", max_tokens=400))
        assert [next(stream).type, next(stream).type] == ["start", "delta"]
        stream.close()
        assert other.result().message.text == expected
    lm.engine.complete(ask(lm, "after", max_tokens=1))
    assert min(len(c.ids) for c in lm.engine.completions if c.chat[-1]["content"] == "goes") < 300


def test_a_listener_that_raises_is_taken_for_gone():
    def closed_loop(event):
        raise RuntimeError("Event loop is closed")

    listener = EventListener(closed_loop, None, logprobs=False)
    listener.hear("text", Output())
    assert listener.gone
    cancelled = Future()
    cancelled.cancel()
    listener.finish(cancelled)


def test_memory_that_runs_out_while_streaming_repeats_nothing(lm, monkeypatch):
    requests = [ask(lm, f"short {i}", temperature=1.0) for i in range(4)]
    real = dispatch.decode

    def late_out_of_memory(model, tokenizer, rows, *rest, **named):
        outputs = real(model, tokenizer, rows, *rest, **named)
        if len(rows) > 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return outputs

    monkeypatch.setattr(dispatch, "decode", late_out_of_memory)
    lm.engine.completions.clear()
    with ThreadPoolExecutor(4) as pool:
        streamed = list(pool.map(lambda request: list(lm.engine.stream(request)), requests))
    said = {completion.chat[-1]["content"]: completion.text for completion in lm.engine.completions}
    assert ["".join(deltas(events)) for events in streamed] == [said[f"short {i}"] for i in range(4)]


def test_errors_reach_the_consumer(lm, monkeypatch):
    with pytest.raises(lm15.ContextLengthError):
        list(lm.engine.stream(ask(lm, "x" * 3000)))
    monkeypatch.setattr(dispatch, "decode", lambda *args, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(lm.engine.stream(ask(lm, "x")))


class Explain(dspy.Signature):
    """Answer and say why."""

    question: str = dspy.InputField()
    reason: str = dspy.OutputField()
    answer: str = dspy.OutputField()


WORDS = "[a-z]{5,20}"
SAID = {
    "chat": (
        dspy.ChatAdapter(use_json_adapter_fallback=False),
        rf"\[\[ ## reason ## \]\]\n{WORDS}\n\n\[\[ ## answer ## \]\]\n{WORDS}\n\n\[\[ ## completed ## \]\]\n",
    ),
    "json": (dspy.JSONAdapter(), rf'\{{"reason": "{WORDS}", "answer": "{WORDS}"\}}'),
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", SAID)
def test_streamify_hears_the_fields_of_a_signature_piece_by_piece(kind, is_async, monkeypatch, tmp_path):
    # The bundled model, since a StreamListener looks for field markers in ten tokens, and in bytes they are longer.
    lm = local_lm("evergreen-base", work_dir=tmp_path)
    adapter, form = SAID[kind]
    # Whatever it would say, in the form that the adapter reads; the way of the tokens is as ever.
    lm.engine.grammars.compile({"type": "json_object"}, 100)
    tokens = lm.engine.grammars._tokens
    grammar = Grammar(LLMatcher(tokens.ll, LLMatcher.grammar_from_regex(form)), tokens)
    monkeypatch.setattr(lm.engine.grammars, "compile", lambda response_format, max_tokens: grammar)
    listeners = [dspy.streaming.StreamListener(name) for name in ("reason", "answer")]
    program = dspy.streamify(dspy.Predict(Explain), stream_listeners=listeners, is_async_program=is_async)

    async def run():
        pieces, prediction = {"reason": [], "answer": []}, None
        async for value in program(question="Why?"):
            if isinstance(value, dspy.streaming.StreamResponse):
                pieces[value.signature_field_name].append(value.chunk)
            elif isinstance(value, dspy.Prediction):
                prediction = value
        return pieces, prediction

    with dspy.context(lm=lm.copy(max_tokens=120, response_format={"type": "json_object"}), adapter=adapter):
        pieces, prediction = asyncio.run(run())
    for name, heard in pieces.items():
        assert len(heard) > 1
        text = "".join(heard)
        # DSPy's listener hands out JSON as it is written, with what stands between two fields.
        assert text == prediction[name] if kind == "chat" else text.lstrip(' "').startswith(prediction[name])

"""JSON by grammar: a model of noise always answers in the schema, in one batch with rows that are free."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import dspy
import pytest
from dspy import lm15
from dspy.lm15 import Config, Message, Request

from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.serving import constraints
from optimizers.local_lm.serving.constraints import Grammars
from optimizers.local_lm.tiny import byte_tokenizer, write_tiny_model

SCHEMA = {
    "type": "object",
    "properties": {
        "names": {"type": "array", "items": {"type": "string"}},
        "parts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"title": {"type": "string"}, "share": {"type": "number"}},
                "required": ["title", "share"],
                "additionalProperties": False,
            },
        },
        "kind": {"enum": ["lease", "loan"]},
    },
    "required": ["names", "parts", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    folder = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    yield local_lm(folder, work_dir=folder.parent, max_tokens=96)
    forget_engines()


def ask(lm, text: str, schema: dict | None = SCHEMA, **config: Any) -> Request:
    response_format = {"type": "json_object"} if schema is None else {"type": "json_schema", "schema": schema}
    settings = {"max_tokens": 96, "temperature": 0.0, "response_format": response_format, **config}
    return Request(model=lm.model, messages=(Message.user(text),), config=Config(**settings))


class Facts(dspy.Signature):
    """Read the clause."""

    clause: str = dspy.InputField()
    days: int = dspy.OutputField()
    parties: list[str] = dspy.OutputField()
    renews: Literal["yes", "no", "not in this contract"] = dspy.OutputField()
    fee: float | None = dspy.OutputField()


def test_json_adapter_always_parses_noise_into_the_types(lm):
    predict = dspy.Predict(Facts)
    with dspy.context(adapter=dspy.JSONAdapter()):
        for seed in range(6):
            heat = 0.0 if seed == 0 else 1.5
            with dspy.context(lm=lm.copy(temperature=heat, seed=seed, max_tokens=160)):
                facts = predict(clause=f"clause {seed}")
            assert isinstance(facts.days, int) and all(isinstance(name, str) for name in facts.parties)
            assert facts.renews in ("yes", "no", "not in this contract")


def test_constrained_and_free_rows_share_a_batch_and_answer_as_alone(lm):
    requests = [ask(lm, f"row {i}", **({} if i % 2 else {"response_format": None})) for i in range(10)]
    alone = [lm.engine.complete(request).message.text for request in requests]
    lm.engine.batch_sizes.clear()
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda request: lm.engine.complete(request).message.text, requests))
    assert together == alone
    assert max(lm.engine.batch_sizes) > 1
    assert [set(json.loads(text)) for text in together[1::2]] == [{"names", "parts", "kind"}] * 5


def test_an_answer_is_closed_within_max_tokens_however_few_they_are(lm):
    format_ = {"type": "json_schema", "schema": SCHEMA}
    least = lm.engine.grammars.compile(format_, 1000).least_tokens
    assert least == len('{"names":[],"parts":[],"kind":"lease"}')
    cut = 0
    for more in range(12):
        for seed in (1, 2):
            request = ask(lm, "close", max_tokens=least + 3 * more, temperature=1.2, seed=seed)
            response = lm.engine.complete(request)
            assert json.loads(response.message.text)["kind"] in ("lease", "loan")
            assert response.usage.output_tokens <= least + 3 * more
            cut += response.finish_reason == "length"
    assert cut  # that the budget shaped an answer is told


def test_without_closing_in_time_answers_would_be_cut_open(lm, monkeypatch):
    monkeypatch.setattr(constraints, "closing_tokens", lambda *args: None)
    monkeypatch.setattr(lm.engine.grammars, "_kept", type(lm.engine.grammars._kept)())
    with pytest.raises(json.JSONDecodeError):
        json.loads(lm.engine.complete(ask(lm, "open", max_tokens=40)).message.text)


def test_any_json_object_is_an_object(lm):
    assert isinstance(json.loads(lm.engine.complete(ask(lm, "object", None, max_tokens=60)).message.text), dict)


def test_max_tokens_below_the_shortest_answer_is_refused(lm):
    with pytest.raises(lm15.InvalidRequestError, match=r"max_tokens=10.*has 38 tokens"):
        lm.engine.complete(ask(lm, "x", max_tokens=10))


def test_a_schema_that_cannot_be_compiled_is_refused_with_it(lm):
    broken = {"type": "object", "properties": {"a": {"$ref": "#/$defs/nowhere"}}, "required": ["a"]}
    with pytest.raises(lm15.InvalidRequestError, match="nowhere"):
        lm.engine.complete(ask(lm, "x", broken))


def test_a_tokenizer_that_cannot_be_read_is_named(lm):
    class Slow:
        name_or_path = "nobody/slow"

    with pytest.raises(lm15.UnsupportedFeatureError, match="Slow of 'nobody/slow'"):
        Grammars(Slow(), 300, frozenset({1})).compile({"type": "json_object"}, 100)


def test_a_grammar_that_gives_up_ends_its_own_row_alone(lm, monkeypatch):
    expected = lm.engine.complete(ask(lm, "well", response_format=None)).message.text

    class Refusing(constraints.Walk):
        def settle(self, token, left):
            self.error = lm15.ServerError("the grammar gave up")
            return token

    monkeypatch.setattr(constraints, "Walk", Refusing)
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(lm.engine.complete, ask(lm, "ill"))
        good = pool.submit(lm.engine.complete, ask(lm, "well", response_format=None))
        assert good.result().message.text == expected
        with pytest.raises(lm15.ServerError, match="gave up"):
            bad.result()


def test_grammars_are_kept_up_to_a_number(monkeypatch):
    monkeypatch.setattr(constraints, "KEEP_GRAMMARS", 2)
    tokenizer = byte_tokenizer()
    grammars = Grammars(tokenizer, len(tokenizer), frozenset({tokenizer.eos_token_id}))
    formats = [{"type": "json_schema", "schema": {"const": word}} for word in ("a", "b", "c")]
    first = grammars.compile(formats[0], 100)
    assert grammars.compile(formats[0], 100) is first
    for format_ in formats[1:]:
        grammars.compile(format_, 100)
    assert len(grammars._kept) == 2

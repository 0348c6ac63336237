"""The dispatcher: coroutines and threads in batches, cancelled callers, adapters beside the base, training between."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import dspy
import pytest
import torch
from dspy.lm15 import Config, Message, Request

from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.serving import dispatch
from optimizers.local_lm.serving.dispatch import Job, collect, plan_batches
from optimizers.local_lm.serving.rows import Row
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.local_lm.tuning.adapters import keep_adapter, training
from optimizers.local_lm.tuning.tuners import tuner_from

SYSTEM = "You read contracts with care and say what they say. " * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def lm(folder, tmp_path):
    yield local_lm(folder, work_dir=tmp_path, max_tokens=12)
    forget_engines()


def ask(lm, text, model=None, **config):
    settings = Config(**{"max_tokens": 12, "temperature": 0.0, **config})
    return Request(model=model or lm.model, system=SYSTEM, messages=(Message.user(text),), config=settings)


def job(adapter=None, ids=(1, 2, 3)):
    return Job(None, [], Row(tuple(ids), 4), adapter, Future())


def first_logprobs(lm, model):
    response = lm.engine.complete(ask(lm, "first", model, max_tokens=1, logprobs=5))
    return {entry.token_id: entry.logprob for entry in response.logprobs[0].top}


def random_adapter(engine, seed):
    """A LoRA adapter of random weights, kept as a trained one would be; its model string."""
    torch.manual_seed(seed)
    with training(engine.weights, tuner=tuner_from("lora", {"rank": 4, "alpha": 8})) as module:
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.5)
        name = keep_adapter(module, engine.weights, engine.adapters_dir, kind="random", record={})
    return engine.model_string(name)


def test_sixty_four_coroutines_are_batched(lm):
    requests = [ask(lm, f"clause {i % 7}", max_tokens=4) for i in range(64)]
    expected = {i: lm.engine.complete(requests[i]).message.text for i in range(7)}
    lm.engine.batch_sizes.clear()

    async def gather():
        return await asyncio.gather(*map(lm._async_engine_spec.complete, requests))

    answers = [response.message.text for response in asyncio.run(gather())]
    assert answers == [expected[i % 7] for i in range(64)]
    assert sum(lm.engine.batch_sizes) == 64 and len(lm.engine.batch_sizes) <= 16


def test_requests_that_come_while_a_batch_runs_join_it_and_answer_as_alone(lm, monkeypatch):
    """Greedy and seeded rows of unequal length, over the whole shared prefix or a part of it."""

    def request(i):
        hot = {"temperature": 0.9, "seed": i} if i % 3 == 0 else {}
        system = SYSTEM if i % 4 else "Another opening. " + SYSTEM
        text = f"clause {i} " + "x" * (i * 7 % 30)
        config = Config(**{"max_tokens": 4 + i * 5 % 23, "temperature": 0.0, **hot})
        return Request(model=lm.model, system=system, messages=(Message.user(text),), config=config)

    requests = [request(i) for i in range(24)]
    alone = [lm.engine.complete(each).message.text for each in requests]
    joined, left = [], list(enumerate(requests))[8:]
    answers = {}
    real = dispatch.Joining.take

    def take(joining, adapter, live):  # three more come at every fourth step
        if left and live % 4 == 0:
            for i, each in left[:3]:
                answers[i] = lm.engine.submit(each)
            del left[:3]
        new = real(joining, adapter, live)
        joined.append(len(new))
        return new

    monkeypatch.setattr(dispatch.Joining, "take", take)
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda each: lm.engine.complete(each).message.text, requests[:8]))
    for i, each in left:  # the batch may have ended before all had come
        answers[i] = lm.engine.submit(each)
    assert first + [answers[i].result().message.text for i in range(8, 24)] == alone
    assert sum(joined) >= 6


def test_a_short_answer_does_not_wait_for_a_long_one(lm):
    long = lm.engine.submit(ask(lm, "long", max_tokens=600))
    while not long.running():
        threading.Event().wait(0.001)
    short = [lm.engine.submit(ask(lm, f"short {i}", max_tokens=2)) for i in range(5)]
    assert all(each.result().message is not None for each in short) and not long.done()
    assert long.result().usage.output_tokens > 2


def test_a_batch_takes_nobody_in_while_another_adapter_or_the_end_waits(monkeypatch):
    def joining(*jobs, max_batch=8):
        queue = SimpleQueue()
        for each in jobs:
            queue.put(each)
        return dispatch.Joining(queue, [], max_batch)

    assert len(joining(job(), job()).take(None, 4)) == 2
    assert joining(job(), job()).take(None, 12) == []  # too few to be worth a copy of the cache
    assert len(joining(*[job() for _ in range(6)]).take(None, 4)) == 4  # no more than max_batch
    assert joining(job(), job("sft-1")).take(None, 1) == []
    assert joining(job(), None).take(None, 1) == []
    monkeypatch.setattr(dispatch, "JOINING_S", -1.0)
    assert joining(job()).take(None, 1) == []


def test_a_cancelled_request_is_not_decoded_and_the_others_are(lm):
    with lm.engine.weights.lock:  # the dispatcher waits with its first batch while these are queued
        first = lm.engine.submit(ask(lm, "first"))
        while not first.running():
            threading.Event().wait(0.005)
        threading.Event().wait(0.05)
        second, third = lm.engine.submit(ask(lm, "second")), lm.engine.submit(ask(lm, "third"))
        assert second.cancel()
    assert third.result().message.text and first.result().message.text
    assert sum(lm.engine.batch_sizes) == 2


def test_a_cancelled_coroutine_leaves_the_engine_answering(lm):
    async def give_up():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(lm._async_engine_spec.complete(ask(lm, "slow", max_tokens=400)), 0.01)
        return await lm._async_engine_spec.complete(ask(lm, "after"))

    assert asyncio.run(give_up()).message.text == lm.engine.complete(ask(lm, "after")).message.text


def test_batches_hold_one_adapter_at_most_max_batch_and_similar_openings():
    alike, other = tuple(range(60)), tuple(range(100, 160))
    jobs = [job(ids=(*alike, i)) for i in range(5)] + [job(ids=(*other, i)) for i in range(5)]
    jobs += [job("sft-1", (*alike, i)) for i in range(2)]
    batches = plan_batches(jobs, 4)
    assert sorted(map(len, batches)) == [1, 1, 2, 4, 4]
    for batch in batches:
        assert len({(each.adapter, each.row.ids[:48]) for each in batch}) == 1


def test_requests_in_quick_succession_are_collected_however_few_are_expected():
    queue = SimpleQueue()
    for _ in range(5):
        queue.put(job())
    queue.put(None)
    queue.put(job())
    assert len(collect(queue, [job()], expected=1, wait_s=0.0)) == 7  # the farewell ends it


def test_base_and_two_adapters_in_flight_at_once_answer_as_alone(lm):
    models = [lm.model, random_adapter(lm.engine, 1), random_adapter(lm.engine, 2)]
    requests = [ask(lm, f"clause {i // 3}", models[i % 3]) for i in range(18)]
    alone = [lm.engine.complete(request).message.text for request in requests]
    assert len(set(alone[:3])) == 3
    with ThreadPoolExecutor(18) as pool:
        assert list(pool.map(lambda r: lm.engine.complete(r).message.text, requests)) == alone


def test_after_a_swap_of_adapters_the_first_token_is_that_of_a_fresh_load(lm, folder, tmp_path):
    models = [lm.model, random_adapter(lm.engine, 1), random_adapter(lm.engine, 2)]
    swapped = [first_logprobs(lm, model) for model in models * 2]  # every prefix is kept by now
    assert swapped[:3] == [pytest.approx(told, abs=1e-4) for told in swapped[3:]]
    assert len({tuple(told) for told in swapped[:3]}) == 3
    forget_engines()
    for model, told in zip(models, swapped, strict=False):
        fresh = local_lm(folder, work_dir=tmp_path, max_tokens=12)
        assert first_logprobs(fresh, model) == pytest.approx(told, abs=1e-4)
        forget_engines()


def test_training_leaves_what_is_served_as_it_was(lm):
    adapter = random_adapter(lm.engine, 3)
    before = [first_logprobs(lm, model) for model in (lm.model, adapter)]
    rows = [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}] * 4
    settings = {"max_steps": 2, "batch_size": 2, "progress": False}
    result = lm.finetune(rows, "chat", settings).result()
    assert isinstance(result, dspy.LM), result
    lm.engine.prefixes.clear()
    assert [first_logprobs(lm, model) for model in (lm.model, adapter)] == before


def test_a_deep_copy_of_a_program_copies_no_weights(lm):
    program = dspy.ChainOfThought("question -> answer")
    program.set_lm(lm)
    parameters = {id(parameter) for parameter in lm.engine.weights.model.parameters()}
    copied = program.deepcopy().predictors()[0].lm
    assert copied.engine is copied._async_engine_spec.engine is copied.provider.engine is lm.engine
    assert {id(parameter) for parameter in copied.engine.weights.model.parameters()} == parameters

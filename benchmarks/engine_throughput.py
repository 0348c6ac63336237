"""Throughput of the local engine against the same calls one by one, and against a batch written by hand for them.

    python -m benchmarks.engine_throughput --lm evergreen-base
    python -m benchmarks.engine_throughput --random

Every call shares a prefix of about 500 tokens, as DSPy calls with instructions and demonstrations do. Greedy, same
process, same weights, same machine. "one by one" is a plain `generate` per call; "ideal" runs the shared prefix once,
repeats its keys and values, and gives the left-padded rest of all calls to one `generate`: it knows all calls in
advance. "DSPy" goes through `dspy.LM` without its cache; "unshared" is the engine without prefixes in common. `x one`
and `x ideal` are ratios, above 1 faster than calls one by one, below 1 faster than the ideal: of the process's CPU
seconds, which bear other load on the machine better, and on CUDA of wall seconds.
"""

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch
from dspy.lm15 import Config, Message, Request
from transformers import DynamicCache

from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.prompts import encode_prompt, request_chat
from optimizers.local_lm.tiny import write_tiny_model

WORDS = (
    "the term renews for successive periods of one year unless either party gives notice of its wish to end it".split()
)


@dataclass(frozen=True)
class Run:
    """One way to answer all calls: its answers, and what they took."""

    name: str
    answers: list[str]
    wall_s: float
    cpu_s: float
    batches: str = ""


def main() -> None:
    """Read the arguments, run the comparison, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="evergreen-base", help="bundled name, folder or hub id")
    parser.add_argument("--random", action="store_true", help="a random model of hidden size 256 instead of --lm")
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[8, 32, 64])
    args = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)  # every answer is cut at --new-tokens, on purpose
    with tempfile.TemporaryDirectory() as scratch:
        name = args.lm
        if args.random:
            name = str(write_tiny_model(Path(scratch) / "random", hidden=256, layers=5))
        lm = local_lm(name, work_dir=scratch, max_batch=args.max_batch, cache=False)
        requests = make_requests(lm.engine, args.calls, args.new_tokens)
        compare(lm, requests, args.threads)
        forget_engines()


def compare(lm, requests: list[Request], threads: Sequence[int]) -> None:
    """Answer the same requests in every way and print what each took, ratios, and how many answers are equal."""
    engine, weights = lm.engine, lm.engine.weights
    tokens = [len(encode_prompt(weights, request_chat(request))) for request in requests]
    print(
        f"{weights.base}: {len(requests)} calls, prompts of {min(tokens)}-{max(tokens)} tokens, "
        f"{requests[0].config.max_tokens} new tokens"
    )
    print(f"torch threads {torch.get_num_threads()}, device {weights.device}, dtype {weights.model.dtype}")
    warm(engine, requests)
    runs = [
        timed("one by one", lambda: [plain_generate(weights, request) for request in requests]),
        timed("ideal", lambda: ideal_generate(weights, requests)),
        *(timed(f"{n} threads", lambda n=n: in_threads(engine.complete, requests, n), engine) for n in threads),
        timed(f"DSPy, {max(threads)}", lambda: in_threads(lambda r: lm(r), requests, max(threads)), engine),
    ]
    engine.dispatcher.prefixes = None
    runs.append(timed("unshared", lambda: in_threads(engine.complete, requests, max(threads)), engine))
    one, ideal = runs[0], runs[1]
    clock = attrgetter("wall_s" if weights.device.type == "cuda" else "cpu_s")
    print(f"{'run':>12} {'wall s':>8} {'CPU s':>8} {'x one':>7} {'x ideal':>8} {'equal':>8}  batches")
    for run in runs:
        equal = sum(a == b for a, b in zip(run.answers, one.answers, strict=True))
        ratios = f"{clock(one) / clock(run):7.2f} {clock(run) / clock(ideal):8.2f}"
        print(
            f"{run.name:>12} {run.wall_s:8.2f} {run.cpu_s:8.2f} {ratios} {equal:>5}/{len(requests)}  {run.batches}",
            flush=True,
        )


def warm(engine, requests: list[Request]) -> None:
    """First calls of everything, so that no run pays for another's."""
    engine.complete(requests[0])
    plain_generate(engine.weights, requests[0])


def timed(name: str, answer: Callable[[], list[str]], engine=None) -> Run:
    """Run `answer` from an empty prefix cache and take its wall and CPU seconds."""
    if engine is not None:
        if engine.prefixes is not None:
            engine.prefixes.clear()
        engine.batch_sizes.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    answers = answer()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Run(name, answers, wall, cpu, "" if engine is None else " ".join(map(str, engine.batch_sizes)))


def in_threads(call: Callable, requests: list[Request], count: int) -> list[str]:
    """The answers' texts, `count` calls at a time."""
    with ThreadPoolExecutor(count) as pool:
        return [response.message.text for response in pool.map(call, requests)]


def make_requests(engine, calls: int, new_tokens: int) -> list[Request]:
    """Requests whose first ~500 tokens agree, each with a passage of its own of 40 to 150 tokens."""
    dice = random.Random(0)
    per_token = len(engine.weights.tokenizer(" ".join(WORDS))["input_ids"]) / len(WORDS)
    system = "Read the clause and answer. " + " ".join(dice.choices(WORDS, k=int(480 / per_token)))
    model = engine.model_string()
    return [
        Request(
            model=model,
            system=system,
            messages=(
                Message.user(f"{i}: " + " ".join(dice.choices(WORDS, k=int(dice.randint(40, 150) / per_token)))),
            ),
            config=Config(max_tokens=new_tokens, temperature=0.0),
        )
        for i in range(calls)
    ]


@torch.inference_mode()
def plain_generate(weights, request: Request) -> str:
    """What a direct user of the model would write: one prompt, one `generate`."""
    ids = torch.tensor([encode_prompt(weights, request_chat(request))], device=weights.device)
    out = weights.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.config.max_tokens, do_sample=False
    )
    return weights.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@torch.inference_mode()
def ideal_generate(weights, requests: list[Request]) -> list[str]:
    """What one would write by hand who knows all calls and their common prefix: one forward, one `generate`."""
    prompts = [encode_prompt(weights, request_chat(request)) for request in requests]
    shared = next(i for i, column in enumerate(zip(*prompts, strict=False)) if len(set(column)) > 1)
    cache = DynamicCache(config=weights.model.config)
    prefix = torch.tensor([prompts[0][:shared]], device=weights.device)
    weights.model(input_ids=prefix, past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(len(prompts))
    longest, pad = max(map(len, prompts)), weights.tokenizer.pad_token_id
    ids = [prompt[:shared] + [pad] * (longest - len(prompt)) + prompt[shared:] for prompt in prompts]
    mask = [[1] * shared + [0] * (longest - len(prompt)) + [1] * (len(prompt) - shared) for prompt in prompts]
    out = weights.model.generate(
        torch.tensor(ids, device=weights.device),
        attention_mask=torch.tensor(mask, device=weights.device),
        past_key_values=cache,
        max_new_tokens=requests[0].config.max_tokens,
        do_sample=False,
    )
    return weights.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)


if __name__ == "__main__":
    main()

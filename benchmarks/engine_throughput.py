"""Throughput of the local engine, batched over threads, against the same calls one by one with plain `generate`.

    python -m benchmarks.engine_throughput --lm evergreen-base
    python -m benchmarks.engine_throughput --random

Every call shares a prefix of about 500 tokens, as DSPy calls with instructions and demonstrations do. Greedy, same
process, same weights, same machine; the printed ratio is calls per second over the one-by-one run's.
"""

import argparse
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from dspy.lm15 import Config, Message, Request

from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.prompts import encode_prompt, request_chat
from optimizers.local_lm.tiny import write_tiny_model

WORDS = (
    "the term renews for successive periods of one year unless either party gives notice of its wish to end it".split()
)


def main() -> None:
    """Read the arguments, run the comparison, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="evergreen-base", help="bundled name, folder or hub id")
    parser.add_argument("--random", action="store_true", help="a random model of hidden size 256 instead of --lm")
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        name = args.lm
        if args.random:
            name = str(write_tiny_model(Path(scratch) / "random", hidden=256, layers=5))
        compare(name, Path(scratch), args.calls, args.new_tokens, args.threads)


def compare(name: str, scratch: Path, calls: int, new_tokens: int, threads: list[int]) -> None:
    """Run the same requests plainly and through the engine, and print calls/s, ratio and equality of answers."""
    engine = local_lm(name, work_dir=scratch).engine
    requests = make_requests(engine, calls, new_tokens)
    tokens = [len(encode_prompt(engine.weights, request_chat(request))) for request in requests]
    print(
        f"{engine.weights.base}: {calls} calls, prompts of {min(tokens)}-{max(tokens)} tokens, {new_tokens} new tokens"
    )
    print(
        f"torch threads {torch.get_num_threads()}, device {engine.weights.device}, dtype {engine.weights.model.dtype}"
    )
    begun = time.perf_counter()
    plain = [plain_generate(engine.weights, request) for request in requests]
    plain_s = time.perf_counter() - begun
    print(f"{'run':>14} {'calls/s':>9} {'ratio':>7} {'equal':>9}  mean batch")
    print(f"{'one by one':>14} {calls / plain_s:9.2f} {1.0:7.2f} {calls:>5}/{calls}")
    for count in threads:
        engine.prefixes.clear()
        engine.batch_sizes.clear()
        begun = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            answers = [response.message.text for response in pool.map(engine.complete, requests)]
        took_s = time.perf_counter() - begun
        equal = sum(a == b for a, b in zip(answers, plain, strict=True))
        mean = sum(engine.batch_sizes) / len(engine.batch_sizes)
        label = f"{count} threads"
        print(f"{label:>14} {calls / took_s:9.2f} {plain_s / took_s:7.2f} {equal:>5}/{calls}  {mean:.1f}")
    forget_engines()


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


if __name__ == "__main__":
    main()

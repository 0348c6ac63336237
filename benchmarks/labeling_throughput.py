"""Labels a minute: a round of `SelfInstruct` with calls in flight together against the same round one call at a time.

    python -m benchmarks.labeling_throughput --answered 96

Both label the same generated contracts with the same model in one process, each with a store of its own; a loop of
plain `generate` over the same prompts stands beside them. "Generating" is the share of the round's wall time in which
at least one call was with the model. Ratios are of CPU seconds too, which bear other load on the machine better.
"""

import argparse
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from dspy.lm15 import Request

from benchmarks.engine_throughput import plain_generate
from corpora.labels.store import LabelStore
from corpora.splits import subset
from corpora.synthetic import write_corpus
from modules.embedder import load_embedder
from modules.retriever import PassageIndex
from optimizers.local_lm import local_lm
from optimizers.local_lm.prompts import encode_prompt, request_chat
from program.compile import build_adapter
from program.contract_review import ContractReview
from program.examples import sample_examples, to_examples
from program.label_settings import LabelSettings
from program.self_instruct import SelfInstruct

LABELLED, CHOSEN_ON = 6, 3


class Clock:
    """An engine's `complete`, which notes when each call began and ended."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._complete = engine, engine.complete
        self.calls: list[tuple[float, float]] = []
        self.requests: list[Request] = []
        engine.complete = self

    def __call__(self, request: Request) -> Any:
        began = time.perf_counter()
        self.requests.append(request)
        try:
            return self._complete(request)
        finally:
            self.calls.append((began, time.perf_counter()))

    def busy_s(self) -> float:
        """Seconds in which at least one call ran."""
        total, until = 0.0, 0.0
        for began, ended in sorted(self.calls):
            total += max(0.0, ended - max(began, until))
            until = max(until, ended)
        return total


@dataclass(frozen=True)
class Round:
    """What one round took, and what it answered."""

    threads: int
    labels: int
    calls: int
    wall_s: float
    cpu_s: float
    generating_s: float


def main() -> None:
    """Read the arguments, label one way and the other, print what each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="evergreen-base")
    parser.add_argument("--unlabelled", type=int, default=12, help="contracts")
    parser.add_argument("--answered", type=int, default=96)
    parser.add_argument("--threads", type=int, default=64)
    args = parser.parse_args()
    logging.getLogger("dspy").setLevel(logging.ERROR)
    n = LABELLED + CHOSEN_ON + args.unlabelled
    corpus = write_corpus(["ashgrove"], n, seed=0)
    ids = [contract.id for contract in corpus.contracts]
    people, choosing = subset(corpus, ids[:LABELLED]), subset(corpus, ids[LABELLED : LABELLED + CHOSEN_ON])
    with tempfile.TemporaryDirectory() as scratch:
        lm = local_lm(args.lm, work_dir=scratch, max_tokens=192, logprobs=True, cache=False)
        index = PassageIndex.build(
            corpus.contracts, folder=Path(scratch) / "index", embedder=load_embedder(), max_chars=600
        )
        clock, rounds = Clock(lm.engine), []
        with dspy.context(lm=lm, adapter=build_adapter()):
            program = ContractReview(index)
            program.set_lm(lm)
            train, val = to_examples(people), sample_examples(to_examples(choosing), 16, 0)
            # Words and vectors are in memory, and the model is warm, for both.
            for threads in (args.threads, 1, args.threads):
                clock.calls.clear()
                clock.requests.clear()
                with LabelStore.open(Path(scratch) / f"{len(rounds)}.db") as store:
                    settings = LabelSettings(answered=args.answered)
                    labels = SelfInstruct(store, settings, threads=threads, progress=False)
                    wall, cpu = time.perf_counter(), time.process_time()
                    labels.make(program, train, corpus.contracts[LABELLED + CHOSEN_ON :], val, 1)
                    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                    made = len(list(store.records("synthetic")))
                rounds.append(Round(threads, made, len(clock.calls), wall, cpu, clock.busy_s()))
        index.close()
        wall, cpu = time.perf_counter(), time.process_time()
        for request in clock.requests:
            plain_generate(lm.engine.weights, request)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(prefixes([encode_prompt(lm.engine.weights, request_chat(request)) for request in clock.requests]))
    one, together = rounds[1], rounds[2]
    for each in (one, together):
        print(
            f"{each.threads:>3} in flight: {each.labels} labels of {each.calls} calls, {each.wall_s:.1f} s "
            f"({60 * each.calls / each.wall_s:.0f} calls and {60 * each.labels / each.wall_s:.0f} labels a minute), "
            f"{each.cpu_s:.1f} CPU s, generating {100 * each.generating_s / each.wall_s:.0f}% of the time"
        )
    print(f"plain `generate`, the calls alone, one after another: {wall:.1f} s, {cpu:.1f} CPU s")
    print(f"together over plain `generate`: {wall / together.wall_s:.2f} by wall, {cpu / together.cpu_s:.2f} by CPU")
    print(f"together over one in flight: {one.wall_s / together.wall_s:.2f}, {one.cpu_s / together.cpu_s:.2f}")


def prefixes(prompts: list[list[int]]) -> str:
    """What reading could be shared: tokens of all prompts, those behind what begins all, and behind what begins two."""

    def shared(first: list[int], second: list[int]) -> int:
        return next(
            (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
        )

    ordered = sorted(prompts)
    n, total = len(ordered), sum(map(len, ordered))
    common = shared(ordered[0], ordered[-1])
    pairs = sum(shared(*pair) for pair in zip(ordered, ordered[1:], strict=False))
    return (
        f"{n} prompts of {total / n:.0f} tokens: {total / n - common:.0f} of each behind the beginning common to all, "
        f"{(total - pairs) / n:.0f} behind the longest shared with another"
    )


if __name__ == "__main__":
    main()

"""How long two programs take for an answer, asked in turn: what else the machine does meanwhile slows both alike."""

import time
from pathlib import Path
from typing import Any

import dspy

from corpora.splits import sample_contracts
from corpora.types import Corpus
from program.compile import build_adapter
from program.examples import sample_examples, to_examples
from program.forgetting.rounds import programs, rounds_of

_CONTRACTS, _QUESTIONS, _REPEATS = 4, 32, 2


def side_by_side(live: Path | None, candidate: Path, corpus: Corpus, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Seconds an answer by question id, of the "incumbent" (the plain base where nothing is live) and the "candidate".

    A few dozen questions, one at a time, nothing from a cache; of several times each, the shortest. Only of questions
    that both answer, or both call absent: to answer takes longer than to say that there is nothing, and a program that
    has learnt to answer is not to be refused for it.
    """
    part = sample_contracts(corpus, min(_CONTRACTS, len(corpus.contracts)), seed)
    asked = sample_examples(to_examples(part), min(_QUESTIONS, len(part.labels)), seed)
    before, after = rounds_of([*([live] if live else []), candidate])[-2:]
    told: dict[str, dict[str, float]] = {"incumbent": {}, "candidate": {}}
    with programs(progress=False) as build, dspy.context(adapter=build_adapter()):
        sides = {"incumbent": _uncached(build(before, part)), "candidate": _uncached(build(after, part))}
        for program in sides.values():
            program(**asked[0].inputs())  # what is loaded at the first call is no answer's time
        for example in asked:
            times: dict[str, list[float]] = {name: [] for name in sides}
            found = {}
            for _ in range(_REPEATS):
                for name, program in sides.items():
                    began = time.perf_counter()
                    found[name] = program(**example.inputs()).found
                    times[name].append(time.perf_counter() - began)
            if found["incumbent"] == found["candidate"]:
                for name, seconds in times.items():
                    told[name][example.question_id] = min(seconds)
    return told


def _uncached(program: Any) -> Any:
    for predictor in program.predictors():
        predictor.lm = predictor.lm.copy(cache=False)
    return program

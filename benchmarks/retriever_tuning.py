"""What tuning the retriever on labelled contracts brings on contracts it has not seen: one run, before and after.

    python -m benchmarks.retriever_tuning --corpus CUADv1.json --steps 600 --keep tuned    # 60 held-out contracts of it
    python -m benchmarks.retriever_tuning --corpus CUADv1.json --steps 150 --leave-out "Insurance" "Audit Rights"
    python -m benchmarks.retriever_tuning --corpus CUADv1.json --loss lists --reworded --keep tuned    # whole contracts
    python -m benchmarks.retriever_tuning --synthetic --steps 40                           # generated contracts

Trained on the training contracts, chosen and fitted on the validation contracts, scored on the test contracts, by
`RetrieverTune` as recipes run it. Questions are asked in the right contract, in the trained wording and in others'
(benchmarks/wordings.py). `--leave-out` keeps categories out of the training and scores them alone. Intervals are 95%,
from a bootstrap over contracts. `--keep` keeps the tuned index and its embedder.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.absence import report
from benchmarks.retrieval import Asked, Row, as_json, inside_hits, print_rows, reference, score, split
from benchmarks.wordings import WORDINGS
from corpora.cuad import bare_question, read_cuad
from corpora.splits import sample_contracts
from corpora.synthetic import write_corpus
from corpora.types import Corpus
from modules.embedder import load_embedder
from modules.retriever import PassageIndex
from optimizers.embedder import EmbedderSettings, train_embedder
from optimizers.embedder_settings import LOSSES
from optimizers.retriever import RetrieverTune
from program.contract_review import ContractReview
from program.examples import to_examples
from program.retrieval_tuning import ReviewRetrieval

SYNTHETIC = ("juniper", 90)


class Bf16Transformer(SentenceTransformer):
    """Embeds in bfloat16, its weights in float32. No cache: it would hold casts of weights that training has moved."""

    def encode(self, *args: Any, **kwargs: Any) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return super().encode(*args, **kwargs)


class CutsOnly:
    """Stands in for an embedder where contracts have only to be cut as it would read them: its vectors say nothing."""

    def __init__(self, embedder: SentenceTransformer) -> None:
        self.tokenizer, self.max_seq_length = embedder.tokenizer, embedder.max_seq_length

    def encode(self, sentences: list[str], **kwargs: Any) -> np.ndarray:
        return np.ones((len(sentences), 2), dtype=np.float32)


def lists_of(retrieval: ReviewRetrieval, embedder: SentenceTransformer, train: Corpus, cut: dict[str, Any]) -> list:
    """What whole contracts teach; the untrained embedder's vectors of them are not needed, so they are not made."""
    with tempfile.TemporaryDirectory() as scratch:
        index = PassageIndex.build(train.contracts, folder=scratch, embedder=CutsOnly(embedder), **cut)
        found = retrieval.lists(ContractReview(index, 8), to_examples(train))
        index.close()
    return found


def tune_on_lists(
    retrieval: ReviewRetrieval,
    program: ContractReview,
    train: Corpus,
    val: list[dspy.Example],
    args: argparse.Namespace,
) -> tuple[ContractReview, dict[str, Any]]:
    """`RetrieverTune` part by part: training contracts get no vectors, and each state that is scored is kept."""
    index, embedder = program.retrieve.index, retrieval.embedder(program)
    lists = lists_of(retrieval, embedder, train, index.cut)

    def score(model: SentenceTransformer) -> float:
        model.save(str(retrieval.folder / "latest"))
        return retrieval.score(model, program, val)

    tuned, log = train_embedder(embedder, lists, settings_of(args), score)
    after, _ = retrieval.fitted(retrieval.reindexed(program, tuned, val), val)
    return after, log


def settings_of(args: argparse.Namespace) -> EmbedderSettings:
    """What the command line says of the training."""
    return EmbedderSettings(
        max_steps=args.steps, batch_size=args.batch_size, learning_rate=args.learning_rate, loss=args.loss,
        list_size=args.list_size, validations=args.validations, seed=args.seed,
    )  # fmt: skip


def without(corpus: Corpus, categories: Sequence[str]) -> Corpus:
    """The corpus without the questions of these categories."""
    return replace(corpus, labels=tuple(la for la in corpus.labels if la.question.category not in categories))


def asked_of(corpus: Corpus, categories: Sequence[str], *, reworded: bool = False) -> list[Asked]:
    """The answered questions (of these categories, where any are named) with the query that each is asked by."""
    labels = [la for la in corpus.labels if la.spans and (not categories or la.question.category in categories)]
    if reworded:
        return [(la, WORDINGS[la.question.category]) for la in labels if la.question.category in WORDINGS]
    return [(la, bare_question(la.question.text)) for la in labels]


def rows_of(
    name: str, program: ContractReview, index: PassageIndex, test: Corpus, left_out: Sequence[str]
) -> list[Row]:
    """Meaning alone, words beside it, and other wordings, with the numbers that the program has."""
    settings = program.retrieve.settings
    asked, reworded = asked_of(test, left_out), asked_of(test, left_out, reworded=True)
    dense = replace(settings, lexical_weight=0.0, dense_weight=1.0)
    rows = [
        score(f"{name}, dense", asked, inside_hits(index, asked, dense)),
        score(f"{name}, fused", asked, inside_hits(index, asked, settings)),
    ]
    if reworded:
        rows.append(score(f"{name}, dense, other words", reworded, inside_hits(index, reworded, dense)))
        rows.append(score(f"{name}, fused, other words", reworded, inside_hits(index, reworded, settings)))
    return rows


def main() -> None:
    """Read the arguments, tune, score before and after, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="a CUADv1-format file, of which some contracts are held out")
    parser.add_argument("--synthetic", action="store_true", help="contracts of a generated house instead")
    parser.add_argument("--train-contracts", type=int, help="of the training contracts")
    parser.add_argument("--max-contracts", type=int, help="of the test contracts")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--loss", choices=LOSSES, default="mnrl", help="lists: a step is a whole contract")
    parser.add_argument("--list-size", type=int, default=64, help="passages of a contract in a step")
    parser.add_argument("--validations", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn in the training; the split stays")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-chars", type=int, default=600)
    parser.add_argument("--embedder", help="a folder or a hub id; default: the packaged all-MiniLM-L6-v2")
    parser.add_argument("--fit", type=int, help="validation contracts; default: all")
    parser.add_argument("--only-after", action="store_true", help="do not score what was there before")
    parser.add_argument("--tuned", type=Path, help="an embedder tuned before, to be scored: nothing is trained")
    parser.add_argument("--reworded", action="store_true", help="train on other people's words too")
    parser.add_argument("--leave-out", nargs="+", default=[], help="categories to train without and to score alone")
    parser.add_argument("--bf16", action="store_true", help="embed in bfloat16 too: faster, cosines within .005")
    parser.add_argument("--work", type=Path, help="a folder for the other indexes: a second run with it takes them")
    parser.add_argument("--keep", type=Path, help="a new folder for the tuned index and its embedder")
    parser.add_argument("--out", type=Path, help="write every figure as JSON")
    args = parser.parse_args()
    if (args.corpus is None) != args.synthetic:
        parser.error("give --corpus or --synthetic, one of them")
    house, n = SYNTHETIC
    parts = split(write_corpus((house,), n, seed=1) if args.synthetic else read_cuad(args.corpus))
    if args.train_contracts:
        parts = replace(parts, train=sample_contracts(parts.train, args.train_contracts, seed=0))
    if args.fit:
        parts = replace(parts, val=sample_contracts(parts.val, args.fit, seed=0))
    test = sample_contracts(parts.test, args.max_contracts, seed=0) if args.max_contracts else parts.test
    print(f"{len(parts.train.contracts)} contracts to train on, {len(parts.val.contracts)} to choose on", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.work or temporary
        keep = args.keep or Path(scratch) / "tuned"
        embedder, tuned = load_embedder(args.embedder), load_embedder(str(args.tuned)) if args.tuned else None
        for one in (embedder, tuned) if args.bf16 else ():
            if one is not None:
                one.__class__ = Bf16Transformer
        began = time.perf_counter()
        index = PassageIndex.build(
            parts.val.contracts if tuned or args.loss == "lists" else parts.train.contracts + parts.val.contracts,
            folder=Path(scratch) / "learn", embedder=embedder, max_chars=args.max_chars,
        )  # fmt: skip
        print(f"indexed {index.n_passages} passages in {time.perf_counter() - began:.0f} s", flush=True)
        retrieval = ReviewRetrieval(keep, reworded=args.reworded)
        tune, log = RetrieverTune(retrieval, settings_of(args)), None
        train, val = (without(part, args.leave_out) for part in (parts.train, parts.val))
        val = to_examples(val)
        began = time.perf_counter()
        program = ContractReview(index, 8)
        before, score_before = retrieval.fitted(program, val)
        if tuned is None and args.loss == "lists":
            after, log = tune_on_lists(retrieval, program, train, val, args)
            print(f"tuned in {time.perf_counter() - began:.0f} s: {log}", flush=True)
        elif tuned is None:
            after = tune.compile(program, trainset=to_examples(train), valset=val)
            log = asdict(tune.log)
            print(f"tuned in {time.perf_counter() - began:.0f} s: {log}", flush=True)
        else:
            learnt = PassageIndex.build(parts.val.contracts, folder=keep, embedder=tuned, **index.cut)
            retrieval.made.append(learnt)
            after, score_after = retrieval.fitted(ContractReview(learnt, 8), val)
            print(f"on the validation contracts {score_before:.3f} before and {score_after:.3f} after", flush=True)
        sides, rows = [("before", before), ("after", after)], []
        if args.only_after:
            sides = sides[1:]
        else:
            asked = asked_of(test, args.leave_out)
            rows.append(score("reference: 500-character chunks", asked, reference(test, asked, embedder, inside=True)))
        for name, compiled in sides:
            print(f"{name}: {replace(compiled.retrieve.settings, answers=None)}", flush=True)
            folder, own = Path(scratch) / f"test-{name}", compiled.retrieve.index.embedder
            unseen = PassageIndex.build(test.contracts, folder=folder, embedder=own, **index.cut)
            rows += rows_of(name, compiled, unseen, test, args.leave_out)
            if not args.leave_out and compiled.retrieve.settings.answers is not None:
                print(f"\n{name}: is there an answer?")
                report(test, unseen, compiled.retrieve.settings.answers)
        print_rows("Inside the right contract", rows)
        for one in (index, unseen, *retrieval.made):
            one.close()
    if args.out:
        figures = {
            "arguments": {key: str(value) for key, value in vars(args).items()},
            "tuning": log,
        }
        args.out.write_text(json.dumps(figures | {"rows": as_json(rows)}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Facts of new contracts in the weights: said directly, what follows from them, closed book and with retrieval.

    python -m benchmarks.facts --seed 0 --out i0.json              # one seed of a house that the base knows
    python -m benchmarks.facts --pool i0.json i1.json i2.json      # several together

Arms: the base; fine-tuning on the direct questions without a passage; self-distillation on them, whose teacher is shown
the contract's passages (Shenfeld et al. 2026, section 4, of articles), first measured with and without these. Indirect
questions are never trained on. Closed book is where injection can help; with retrieval is what reading gives, and what
injection may cost. Self-distillation is chosen on facts that it is taught: to know them is what is asked for.
Intervals are 95%, from a bootstrap over contracts.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from benchmarks.pooling import read_results
from benchmarks.self_instruct import write
from corpora.synthetic import write_corpus
from corpora.synthetic.facts import FactQuestion, fact_questions
from modules.embedder import load_embedder
from modules.retriever import PassageIndex
from modules.signatures import ReviewPassages, join_quotes, number_passages
from optimizers.distill import SelfDistill
from optimizers.guards import finetune_guarded, guard_from
from optimizers.local_lm import local_lm
from optimizers.parallel import in_parallel
from program.compile import build_adapter
from program.contract_review import ContractReview
from program.forgetting.injection import ask_closed_book, ask_with, fact_figures, injection_rows, score_facts
from program.forgetting.skills import Mark
from program.metrics import exact_match
from program.report import interval_text

ARMS, THREADS = ("base", "sft", "sdft"), 32


class ClosedBook(dspy.Module):
    """The reviewer, asked without any passage."""

    def __init__(self, lm: dspy.LM) -> None:
        super().__init__()
        self.predict = dspy.Predict(ReviewPassages)
        self.set_lm(lm)

    def forward(self, question: str) -> dspy.Prediction:
        """As the signature's."""
        return self.predict(passages=number_passages([]), question=question)


class Bench:
    """One seed's contracts, their facts, the index, and the arms over them."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work, self.adapter = args, work, build_adapter()
        corpus = write_corpus([args.house], args.contracts, seed=800 + args.seed)
        self.questions = fact_questions(corpus, seed=args.seed)
        self.direct = [question for question in self.questions if question.kind == "direct"]
        self.index = PassageIndex.build(
            corpus.contracts, folder=work / "index", embedder=load_embedder(), max_chars=600
        )
        self.lm = local_lm(args.lm, work_dir=work / "lm", max_tokens=64)
        self.program = ContractReview(self.index, 4)
        self.training = {"seed": args.seed, "batch_size": 8, "rank": 16, "alpha": 32, "progress": False}

    def tuned(self, arm: str) -> tuple[dspy.LM, dict[str, Any]]:
        """The arm's LM, and what is to be told of its training."""
        if arm == "base":
            return self.lm, {}
        if arm == "sft":
            rows, kwargs = injection_rows(self.direct, self.adapter), self.training | {"epochs": self.args.epochs}
            return finetune_guarded(self.lm, rows, guard_from("none"), kwargs), {"rows": len(rows)}
        student, examples = ClosedBook(self.lm), [self._example(question) for question in self.direct]
        opened = {self._asked(student, e): self._opened(e) for e in examples}
        tune = SelfDistill(
            score=self._score, train_kwargs=self.training | {"epochs": self.args.sdft_epochs}, adapter=self.adapter,
            template=lambda prompt, answer: opened[prompt[-1]["content"]], num_threads=THREADS, patience=0,
        )  # fmt: skip
        held = Random(self.args.seed).sample(examples, min(self.args.val_questions, len(examples)))
        lm = tune.compile(student, examples, valset=held).predict.lm
        return lm, asdict(tune.log) | {"rounds": len(tune.log.rounds)}

    def _example(self, question: FactQuestion) -> dspy.Example:
        return dspy.Example(
            question=question.text, answer=question.answer, quotes=join_quotes([question.answer]),
            contract_id=question.contract_ids[0],
        ).with_inputs("question")  # fmt: skip

    def _asked(self, student: ClosedBook, example: dspy.Example) -> str:
        inputs = {"passages": number_passages([]), "question": example.question}
        return self.adapter.format(student.predict.signature, [], inputs)[-1]["content"]

    def _opened(self, example: dspy.Example) -> list[dict[str, Any]]:
        """The question with the passages of its contract that answer it best, as the reviewer is served them."""
        passages = self.program.retrieve(question=example.question, contract_id=example.contract_id).passages
        inputs = {"passages": number_passages([one.text for one in passages]), "question": example.question}
        return self.adapter.format(ReviewPassages, [], inputs)

    def _score(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> float:
        def right(example: dspy.Example) -> bool:
            try:
                with dspy.context(adapter=self.adapter):
                    return exact_match(program(**example.inputs()).answer or "", example.answer)
            except AdapterParseError:
                return False

        return statistics.fmean(in_parallel(right, examples, threads=THREADS, progress=False))

    def scored(self, lm: dspy.LM) -> dict[str, list[dict[str, Any]]]:
        """Marks closed book and with retrieval over all contracts."""
        program = self.program.deepcopy()
        program.set_lm(lm)
        ways = {"closed book": ask_closed_book(lm), "with retrieval": ask_with(program)}
        with dspy.context(adapter=self.adapter):
            return {
                way: [asdict(one) for one in score_facts(ask, self.questions, threads=THREADS)]
                for way, ask in ways.items()
            }


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every arm of one seed."""
    bench, told = Bench(args, work), {"arms": {}}
    print(f"{args.contracts} contracts of {args.house}, {len(bench.direct)} of {len(bench.questions)} questions direct")
    for arm in args.arms:
        began = time.perf_counter()
        lm, about = bench.tuned(arm)
        seconds = time.perf_counter() - began
        told["arms"][arm] = {"about": about, "seconds": seconds, "marks": bench.scored(lm)}
        print(f"{arm}: {seconds:.0f} s {about}", flush=True)
    bench.index.close()
    return told


def show(results: Sequence[dict[str, Any]]) -> None:
    """A table of one seed or several: share right by arm, way of asking and kind of question."""
    print("\n| arm | asked | direct | indirect |\n|---|---|---|---|")
    for arm in dict.fromkeys(arm for result in results for arm in result["arms"]):
        for way in ("closed book", "with retrieval"):
            marks = [
                Mark(**mark | {key: f"{i}/{mark[key]}" for key in ("question_id", "contract_id")})
                for i, result in enumerate(results) if arm in result["arms"]
                for mark in result["arms"][arm]["marks"][way]
            ]  # fmt: skip
            figures = fact_figures(marks)
            cells = [f"{interval_text(figures[kind])} (n={figures[kind]['n']})" for kind in ("direct", "indirect")]
            print(f"| {arm} | {way} | {' | '.join(cells)} |")


def main() -> None:
    """Read the arguments, run a seed or pool what earlier runs wrote, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--house", default="ashgrove")
    parser.add_argument("--contracts", type=int, default=16)
    parser.add_argument("--lm", default="evergreen-base")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--sdft-epochs", type=float, default=8)
    parser.add_argument("--val-questions", type=int, default=40)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder for the index and adapters, to keep")
    parser.add_argument("--pool", type=Path, nargs="+", help="files that earlier runs wrote with --out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.pool:
        show(read_results(args.pool))
        return
    with tempfile.TemporaryDirectory() as scratch:
        result = run(args, args.work or Path(scratch))
    write(args, result)
    show([result])


if __name__ == "__main__":
    main()

"""What labels a program writes for itself are worth: their precision, filter by filter, and what is learnt from them.

    python -m benchmarks.self_instruct --seed 0 --out s0.json                     # one seed of a held-back house
    python -m benchmarks.self_instruct --pool s0.json s1.json s2.json             # several together
    python -m benchmarks.self_instruct --corpus CUADv1.json --precision-only      # real contracts, no training

Contracts of one house are split: people's labels come from the first, choices are made on the next, then come the
unlabelled ones, whose labels are hidden, and those that are scored on. Arms: the base; people's labels alone; with
labels written by the program, filtered or not. Intervals are 95%, from a bootstrap over contracts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import dspy

from corpora.cuad import read_cuad
from corpora.labels.store import LabelStore
from corpora.labels.types import Record
from corpora.splits import sample_contracts, subset
from corpora.synthetic import write_corpus
from corpora.types import Corpus
from modules.embedder import load_embedder
from modules.label_filters import apply_filters
from modules.retriever import PassageIndex
from optimizers.instruct import InstructTune
from optimizers.local_lm import local_lm
from program.compile import build_adapter
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.examples import sample_examples, to_examples
from program.label_figures import label_figures
from program.label_precision import gold_precision
from program.label_settings import LabelSettings
from program.recipes import mean_score
from program.report import interval_text
from program.self_instruct import SelfInstruct
from program.summary import summarize
from program.teacher import LabelTeacher, teaches

HUMAN_CONTRACTS, VAL_CONTRACTS, TEST_CONTRACTS = 40, 20, 12
SHOWN = ("exact_match", "exact_match_answerable", "exact_match_absent", "token_f1", "cuad_f1", "absence_precision")


def parts_of(corpus: Corpus, sizes: Sequence[int]) -> list[Corpus]:
    """Consecutive contracts, so many each."""
    ids, parts = [contract.id for contract in corpus.contracts], []
    for n in sizes:
        parts.append(subset(corpus, ids[:n]))
        ids = ids[n:]
    return parts


class Bench:
    """One seed's contracts, index and LM, and the arms over them."""

    def __init__(self, args: argparse.Namespace, corpus: Corpus, work: Path) -> None:
        sizes = (HUMAN_CONTRACTS, VAL_CONTRACTS, args.unlabelled, TEST_CONTRACTS)
        if args.corpus:
            sizes = (args.human_contracts, VAL_CONTRACTS, args.unlabelled, 1)
        self.human, self.val, self.unlabelled, self.test = parts_of(corpus, sizes)
        self.args, self.work = args, work
        self.lm = local_lm(args.lm, work_dir=work / "lm", max_tokens=192, logprobs=True)
        self.index = PassageIndex.build(
            corpus.contracts[: sum(sizes)], folder=work / "index", embedder=load_embedder(), max_chars=600
        )
        self.val_examples = sample_examples(to_examples(self.val), args.val_questions, args.seed)
        self.program = ContractReview(self.index, 4)
        self.program.set_lm(self.lm)
        self.n_stores = 0

    def humans(self, n: int | None) -> list[dspy.Example]:
        """People's labels: `n` of them, half with an answer; the fewer are among the more."""
        every = to_examples(self.human)
        if n is None:
            return every
        found, absent = ([e for e in every if e.found == kind] for kind in (True, False))
        for side in (found, absent):
            Random(self.args.seed).shuffle(side)
        return found[: n // 2] + absent[: n - n // 2]

    def labels(self, **changes: Any) -> SelfInstruct:
        """A labeller with a store of its own."""
        self.n_stores += 1
        settings = replace(
            LabelSettings(
                answered=self.args.answered,
                max_rows=self.args.max_rows,
                copies=self.args.copies,
                per_category=self.args.per_category,
                seed=self.args.seed,
            ),
            **changes,
        )
        store = LabelStore.open(self.work / f"labels{self.n_stores}.db")
        return SelfInstruct(store, settings, threads=64, progress=False)

    def tuned(self, train: list[dspy.Example], labels: SelfInstruct | None) -> tuple[dspy.Module, Any]:
        """The program after `InstructTune`, and its log."""
        epochs = self.args.epochs if labels else self.args.human_epochs
        tune = InstructTune(
            metric=teaches, labels=labels, score=mean_score(64), rounds=self.args.rounds, seed=self.args.seed,
            train_kwargs={"epochs": epochs, "seed": self.args.seed, "batch_size": 4, "rank": 16, "alpha": 32},
            adapter=build_adapter(), exclude_demos=True, num_threads=32,
        )  # fmt: skip
        if labels is not None:
            return tune.compile(
                self.program, train, unlabelled=self.unlabelled.contracts, valset=self.val_examples
            ), tune.log
        teacher = LabelTeacher(self.index, train)
        teacher.set_lm(self.lm)
        return tune.compile(self.program.deepcopy(), train, teacher), []

    def scored(self, arm: str, program: dspy.Module) -> list[dict[str, Any]]:
        """The arm's rows on the test contracts."""
        return score_program(program, to_examples(self.test), arm, threads=64)

    def figures(self, labels: SelfInstruct, n_human: int, seconds: float) -> dict[str, Any]:
        """Precision of what was kept against the hidden labels, and the funnel."""
        contracts = {contract.id: contract for contract in labels.store.contracts()}
        return label_figures(
            labels.reports, list(labels.store.records("synthetic")), contracts,
            n_human=n_human, seconds=seconds, gold=self.unlabelled, seed=self.args.seed,
        )  # fmt: skip


def main() -> None:
    """Read the arguments, run the arms of a seed or pool what earlier runs wrote, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--house", default="juniper")
    parser.add_argument("--corpus", type=Path, help="a CUADv1-format file instead of a generated house")
    parser.add_argument("--human-contracts", type=int, default=20, help="of --corpus, with all their labels")
    parser.add_argument("--unlabelled", type=int, default=200)
    parser.add_argument("--humans", type=int, nargs="+", default=[40, 160], help="people's labels of each arm")
    parser.add_argument("--main", type=int, default=40, help="the arm that is tried without filters too")
    parser.add_argument("--most-with", type=int, default=40, help="arms of more labels have none of the program's own")
    parser.add_argument("--answered", type=int, default=300)
    parser.add_argument("--val-questions", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--human-epochs", type=float, default=6, help="where people's labels are all there is")
    parser.add_argument("--max-rows", type=int, default=400)
    parser.add_argument("--copies", type=int, default=3, help="labels kept that say nearly the same")
    parser.add_argument("--per-category", type=int, default=100, help="labels kept of one category")
    parser.add_argument("--lm", default="evergreen-base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision-only", action="store_true", help="label once, untrained, and score the labels")
    parser.add_argument("--work", type=Path, help="a folder for indexes and adapters, to keep")
    parser.add_argument("--pool", type=Path, nargs="+", help="files that earlier runs wrote with --out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.pool:
        show([json.loads(path.read_text(encoding="utf-8")) for path in args.pool], args.main)
        return
    if args.corpus:
        n = args.human_contracts + VAL_CONTRACTS + args.unlabelled + 1
        corpus = sample_contracts(read_cuad(args.corpus), n, seed=args.seed)
    else:
        n = HUMAN_CONTRACTS + VAL_CONTRACTS + args.unlabelled + TEST_CONTRACTS
        corpus = write_corpus([args.house], n, seed=100 + args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, corpus, args.work or Path(scratch))
        with dspy.context(lm=bench.lm, adapter=build_adapter()):
            result = precision_only(bench) if args.precision_only else arms(bench)
    result["arguments"] = {key: str(value) for key, value in vars(args).items()}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show([result], args.main)


def precision_only(bench: Bench) -> dict[str, Any]:
    """One round of labels by the program as it is: with no filter but "verbatim", each of the others alone, and all."""
    train, labels, began = bench.humans(None if bench.args.corpus else bench.args.main), bench.labels(), time.time()
    proposed, filters, tally = labels.propose(bench.program, train, bench.unlabelled.contracts, bench.val_examples, 1)
    sets = {f"verbatim, {name}": ("verbatim", name) for name in labels.settings.filters if name != "verbatim"}
    made: dict[str, Any] = {}
    contracts = {contract.id: contract for contract in bench.unlabelled.contracts}
    for told, names in ({"verbatim": ("verbatim",)} | sets | {"all": labels.settings.filters}).items():
        kept = apply_filters(proposed.drafts, {name: filters[name] for name in names}).kept
        records = [Record(draft, "synthetic", "") for draft, _ in kept]
        made[told] = gold_precision(records, contracts, bench.unlabelled, bench.args.seed) | {"kept": len(kept)}
        print(f"{told}: {_told(made[told], len(train))}", flush=True)
    made["all"] |= {"seconds": time.time() - began, "tally": asdict(tally), "proposed": len(proposed.drafts)}
    return {"rows": [], "logs": {}, "labels": made}


def arms(bench: Bench) -> dict[str, Any]:
    """Every arm of one seed."""
    rows, logs, made = bench.scored("base", bench.program), {}, {}
    for n in bench.args.humans:
        train = bench.humans(n)
        rows += bench.scored(f"{n}", bench.tuned(train, None)[0])
        if n > bench.args.most_with:
            continue
        kinds = {"filtered": {}} | ({"unfiltered": {"filters": ("verbatim",)}} if n == bench.args.main else {})
        for kind, changes in kinds.items():
            labels, began = bench.labels(**changes), time.time()
            program, log = bench.tuned(train, labels)
            made[f"{n} + {kind}"] = bench.figures(labels, n, time.time() - began)
            logs[f"{n} + {kind}"] = [str(one) for one in log]
            rows += bench.scored(f"{n} + {kind}", program)
            print(f"{n} + {kind}: {log}", flush=True)
    return {"rows": rows, "logs": logs, "labels": made}


def show(results: Sequence[dict[str, Any]], main_arm: int) -> None:
    """Tables of one or several seeds: scores of each arm, what differs between them, precision of the labels."""
    rows = [row | {"contract_id": f"{i}/{row['contract_id']}", "question_id": f"{i}/{row['question_id']}"}
            for i, result in enumerate(results) for row in result["rows"]]  # fmt: skip
    names = list(dict.fromkeys(row["stage"] for row in rows))
    for stage in summarize(rows)["stages"] if rows else []:
        told = [f"{name} {interval_text(stage['scores'][name])}" for name in SHOWN]
        print(f"{stage['stage']:>18}  n={stage['n_scored']}  {'  '.join(told)}")
    pairs = [(f"{main_arm} + filtered", other) for other in ("base", f"{main_arm}", f"{main_arm} + unfiltered", "160")]
    pairs += [(f"{n} + filtered", n) for n in ("10", "160")]
    for later, earlier in pairs:
        if {later, earlier} <= set(names):
            of_both = [row for name in (earlier, later) for row in rows if row["stage"] == name]
            for one in summarize(of_both)["comparisons"]:
                if one["score"] in ("exact_match", "exact_match_answerable", "token_f1"):
                    bounds = f"{100 * one['difference']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
                    print(f"{later} against {earlier}: {one['score']} {bounds}, n={one['n']}")
    for i, result in enumerate(results):
        for arm, figures in result["labels"].items():
            print(f"seed {i}, {arm}: {json.dumps(figures, default=str)[:3000]}")


def _told(figures: dict[str, Any], n_human: int) -> str:
    """Of kept labels: how many, and the share right of all, of found and of absent ones."""
    shares = (
        f"{kind} {interval_text(figures[kind]['right'])} (n={figures[kind]['n']})"
        for kind in ("overall", "found", "absent")
    )
    return f"{figures['kept']} kept, {figures['kept'] / n_human:.1f} for each of people's; right: {'; '.join(shares)}"


if __name__ == "__main__":
    main()

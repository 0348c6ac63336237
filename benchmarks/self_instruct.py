"""What labels a program writes for itself are worth: their precision, filter by filter, and what is learnt from them.

    python -m benchmarks.self_instruct --seed 0 --out s0.json                     # one seed of a held-back house
    python -m benchmarks.self_instruct --pool s0.json s1.json s2.json             # several together
    python -m benchmarks.self_instruct --precision-only --taught --out p0.json    # each filter alone: what it keeps
    python -m benchmarks.self_instruct --corpus CUADv1.json --precision-only      # the same of real contracts

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

from benchmarks.pooling import read_results
from corpora.cuad import read_cuad
from corpora.labels.rows import folded
from corpora.labels.store import LabelStore
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
from program.intervals import mean_interval
from program.label_figures import label_figures
from program.label_precision import KINDS, gold_labels, judge_label, kind_of
from program.label_settings import FILTERS, LabelSettings
from program.recipes import mean_score
from program.report import interval_text
from program.self_instruct import SelfInstruct
from program.summary import summarize
from program.teacher import LabelTeacher, teaches

HUMAN_CONTRACTS, VAL_CONTRACTS, TEST_CONTRACTS = 40, 20, 12
# Arguments that say which arms are run and where to, and change none of them.
FREE = {"humans", "main", "most_with", "arms", "work", "pool", "out"}
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

    def __init__(self, args: argparse.Namespace, corpus: Corpus, work: Path, scratch: Path) -> None:
        sizes = (HUMAN_CONTRACTS, VAL_CONTRACTS, args.unlabelled, TEST_CONTRACTS)
        if args.corpus:
            sizes = (args.human_contracts, VAL_CONTRACTS, args.unlabelled, 1)
        elif args.precision_only:
            sizes = (HUMAN_CONTRACTS, VAL_CONTRACTS, args.unlabelled, 1)
        self.human, self.val, self.unlabelled, self.test = parts_of(corpus, sizes)
        self.args, self.scratch = args, scratch
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
                samples=self.args.samples,
                min_similarity=self.args.min_similarity,
                seed=self.args.seed,
            ),
            **changes,
        )
        store = LabelStore.open(self.scratch / f"labels{self.n_stores}.db")
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
    parser.add_argument(
        "--arms", nargs="+", help='some of them alone, such as "160 + filtered"; --out keeps the others'
    )
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
    parser.add_argument("--taught", action="store_true", help="with --precision-only: people's labels are learnt first")
    parser.add_argument("--skip", nargs="*", default=[], choices=FILTERS, help="filters to leave out of that")
    parser.add_argument("--samples", type=int, default=5, help='answers that "agreement" samples')
    parser.add_argument("--min-similarity", type=float, default=0.6, help="of sentences, to carry a label over")
    parser.add_argument("--work", type=Path, help="a folder for indexes and adapters, to keep")
    parser.add_argument("--pool", type=Path, nargs="+", help="files that earlier runs wrote with --out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.pool:
        show(read_results(args.pool), args.main)
        return
    if args.corpus:
        n = args.human_contracts + VAL_CONTRACTS + args.unlabelled + 1
        corpus = sample_contracts(read_cuad(args.corpus), n, seed=args.seed)
    else:
        n = HUMAN_CONTRACTS + VAL_CONTRACTS + args.unlabelled + TEST_CONTRACTS
        corpus = write_corpus([args.house], n, seed=100 + args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, corpus, args.work or Path(scratch), Path(scratch))
        with dspy.context(lm=bench.lm, adapter=build_adapter()):
            result = precision_only(bench) if args.precision_only else arms(bench)
    write(args, result)
    show([result], args.main)


def precision_only(bench: Bench) -> dict[str, Any]:
    """One round of labels, by the program as it is or taught: each draft, whether it is right, and what keeps it.

    Kept by no filter at all, by each one alone, by each behind "verbatim" where that drops any, and by all.
    """
    args, labels, began = bench.args, bench.labels(), time.time()
    train, program = bench.humans(None if args.corpus else args.main), bench.program
    if args.taught:
        program, _ = bench.tuned(train, None)
    proposed, filters, tally = labels.propose(program, train, bench.unlabelled.contracts, bench.val_examples, 1)
    contracts = {contract.id: contract for contract in bench.unlabelled.contracts}
    gold = gold_labels(bench.unlabelled, contracts)
    rows = {
        id(draft): {
            "contract_id": key[0], "method": draft.method, "kind": kind_of(draft.label), "kept_by": [],
            "right": judge_label(draft.label, gold[key], contracts[key[0]].text).right,
        }
        for draft in proposed.drafts
        if (key := (draft.label.question.contract_id, folded(draft.label.question.text))) in gold
    }  # fmt: skip
    every = [name for name in FILTERS if name not in args.skip]
    sets: dict[str, tuple[str, ...]] = {"none": ()} | {name: (name,) for name in every}
    if any(apply_filters(proposed.drafts, {"verbatim": filters["verbatim"]}).dropped):
        sets |= {f"verbatim, {name}": ("verbatim", name) for name in every if name != "verbatim"}
    asking = ", ".join(["all", *(name for name in every if name not in labels.settings.filters)])
    for name, those in (sets | {"all": labels.settings.filters, asking: tuple(every)}).items():
        for draft, _ in apply_filters(proposed.drafts, {each: filters[each] for each in those}).kept:
            if id(draft) in rows:
                rows[id(draft)]["kept_by"].append(name)
        print(f"{name}: {time.time() - began:.0f} s", flush=True)
    about = {"n_human": len(train), "seconds": time.time() - began, "tally": asdict(tally)}
    return {"rows": [], "logs": {}, "labels": {}, "drafts": list(rows.values())} | about


def arms(bench: Bench) -> dict[str, Any]:
    """Every arm of one seed, or those of `--arms`; each is written when it is done, and what stands there is kept."""
    args = bench.args
    result = read(args) or {"rows": [], "logs": {}, "labels": {}, "seconds": {}}
    unfiltered = {"unfiltered": {"filters": ("verbatim",)}}
    wanted: dict[str, tuple[int, dict[str, Any] | None]] = {"base": (0, None)}
    for n in args.humans:
        wanted[f"{n}"] = (n, None)
        kinds = {"filtered": {}} | (unfiltered if n == args.main else {}) if n <= args.most_with else {}
        wanted |= {f"{n} + {kind}": (n, changes) for kind, changes in kinds.items()}
    if unknown := set(args.arms or ()) - set(wanted):
        raise SystemExit(f"--arms {sorted(unknown)} are none of {list(wanted)}; name some of those")
    for arm, (n, changes) in wanted.items():
        if arm in result["seconds"] or (args.arms and arm not in args.arms):
            continue
        began, labels, program = time.time(), None if changes is None else bench.labels(**changes), bench.program
        if n:
            program, log = bench.tuned(bench.humans(n), labels)
        if labels is not None:
            result["labels"][arm] = bench.figures(labels, n, time.time() - began)
            result["logs"][arm] = [str(one) for one in log]
            print(f"{arm}: {log}", flush=True)
        result["rows"] += bench.scored(arm, program)
        result["seconds"][arm] = round(time.time() - began)
        print(f"{arm}: {result['seconds'][arm]} s", flush=True)
        write(args, result)
    return result


def read(args: argparse.Namespace) -> dict[str, Any] | None:
    """What an earlier run of the same settings left where `--out` says; SystemExit for one of other settings."""
    if not args.out or not args.out.is_file():
        return None
    result = json.loads(args.out.read_text(encoding="utf-8"))
    now, then = arguments(args), result["arguments"]
    if differ := sorted(key for key in then if key not in FREE and then[key] != now.get(key)):
        raise SystemExit(f"{args.out} is of other settings ({', '.join(differ)}); give another file, or those settings")
    return result


def write(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """The result with its arguments, where `--out` says."""
    result["arguments"] = arguments(args)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def arguments(args: argparse.Namespace) -> dict[str, str]:
    """The arguments as they are written down."""
    return {key: str(value) for key, value in vars(args).items()}


def show(results: Sequence[dict[str, Any]], main_arm: int) -> None:
    """Tables of one or several seeds: scores of each arm, what differs between them, precision of the labels."""
    if all("drafts" in result for result in results):
        return show_filters(results)
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


def show_filters(results: Sequence[dict[str, Any]]) -> None:
    """Of one or several seeds: what each choice of filters keeps, for each of people's labels, and the share right."""
    drafts = [
        one | {"contract_id": f"{i}/{one['contract_id']}"} for i, each in enumerate(results) for one in each["drafts"]
    ]
    n_human = sum(each["n_human"] for each in results)
    for name in dict.fromkeys(name for one in drafts for name in one["kept_by"]):
        kept = [one for one in drafts if name in one["kept_by"]]
        cells = []
        for kind in ("all", *KINDS):
            of_kind = [one for one in kept if kind in ("all", one["kind"])]
            right = [one["right"] for one in of_kind]
            share = asdict(mean_interval(right, [one["contract_id"] for one in of_kind])) if right else None
            cells.append(f"{kind} {interval_text(share) if share else 'none'} (n={len(right)})")
        print(f"{name:>24}  {len(kept) / n_human:.1f} for each of people's; right: {'  '.join(cells)}")


if __name__ == "__main__":
    main()

"""A simulated year: what a program is worth month by month, by how it is kept up to date.

    python -m benchmarks.year --seed 0 --out year0                      # year.json, year.svg and the home folder
    python -m benchmarks.year --show year0/year.json year1/year.json    # the table again, of several seeds

Contracts of one drafting house come in every month, from month 4 of a second one too, and from month 7 questions of
categories that nobody had asked before. People label some of what comes in, a few of their labels are wrong, and in
month 9 a batch is labelled all wrong. Questions of each month are answered before its labels are learnt from.

| arm | what it does with labels |
|---|---|
| never tuned | nothing |
| tuned once | fine-tuned on those of the first month |
| from scratch, monthly | fine-tuned on all labels so far, and served |
| newest, always | fine-tuned on from what is live, on the month's labels, and served |
| Evergreen | `renew`: when enough labels are new or traffic drifts, and live only if the gate says so |

Seconds count tuning, scoring for the gate and indexing, of each arm. Intervals are 95%, from a bootstrap over
contracts. Reviewers, traffic and mistakes are simulated; trainings, gate, drift watch and releases are the real ones.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import dspy
import matplotlib.pyplot as plt

from corpora.cuad import write_cuad
from corpora.splits import subset
from corpora.synthetic import write_corpus
from corpora.types import Contract, Corpus, Label, Span
from modules.embedder import load_embedder
from modules.retriever import PassageIndex
from optimizers.instruct import InstructTune
from optimizers.local_lm import local_lm
from program.compile import build_adapter
from program.contract_review import ContractReview
from program.drift.settings import DriftSettings
from program.evaluate import score_program
from program.evaluate_run import load_compiled, read_compiled
from program.examples import sample_examples, to_examples
from program.intervals import mean_interval, paired_interval
from program.releases.store import ReleaseStore
from program.renewal.drifting import check_drift, reports
from program.renewal.home import Home, renewals
from program.renewal.renew import renew
from program.run_retrieval import read_retrieval
from program.teacher import LabelTeacher, teaches
from program.traces.store import TraceStore
from program.traces.types import Trace

MONTHS, SECOND_HOUSE, NEW_CATEGORIES, POISONED = 12, 4, 7, 9
HOUSES = ("juniper", "lindqvist")
LATER = ("Insurance", "Audit Rights", "Cap On Liability", "Governing Law", "Expiration Date")
BEGIN = datetime(2031, 1, 1, tzinfo=UTC)
ARMS = ("never tuned", "tuned once", "from scratch, monthly", "newest, always", "Evergreen")


class Year:
    """What comes in: each month's contracts with all their labels, of which some are learnt from and some asked."""

    def __init__(self, args: argparse.Namespace) -> None:
        rng = Random(args.seed)
        monthly = args.arriving + args.labelled
        shared = (MONTHS - SECOND_HOUSE + 1) * (monthly // 2 + 1)
        sizes = ((SECOND_HOUSE - 1) * monthly + shared + args.frozen, shared + args.frozen)
        first, second = (
            write_corpus([house], size, seed=500 + args.seed) for house, size in zip(HOUSES, sizes, strict=True)
        )
        pools = [[contract.id for contract in corpus.contracts] for corpus in (first, second)]
        self.all = Corpus("year", first.contracts + second.contracts, first.labels + second.labels)
        self.asked: list[list[dspy.Example]] = []
        self.labels: list[Corpus] = []
        self.frozen: list[Corpus] = []
        tests = [[pool.pop() for _ in range(args.frozen)] for pool in pools]
        for month in range(1, MONTHS + 1):
            known = pools if month >= SECOND_HOUSE else pools[:1]
            take = [known[i % len(known)].pop() for i in range(monthly)]
            arriving, labelled = take[: args.arriving], take[args.arriving :]
            asked = self._of(arriving, month)
            self.asked.append(sample_examples(to_examples(asked), args.questions, args.seed + month))
            learnt = sampled(self._of(labelled, month), args.labels, rng)
            wrong = 1.0 if month == POISONED else args.noise
            self.labels.append(mislabelled(learnt, wrong, rng))
            houses = tests if month >= SECOND_HOUSE else tests[:1]
            self.frozen.append(sampled(self._of([i for ids in houses for i in ids], month), args.gate, Random(7)))

    def _of(self, ids: Sequence[str], month: int) -> Corpus:
        part = subset(self.all, list(ids))
        open_ones = [la for la in part.labels if month >= NEW_CATEGORIES or la.question.category not in LATER]
        return replace(part, labels=tuple(open_ones))

    @property
    def contracts(self) -> tuple[Contract, ...]:
        """All that is ever asked or learnt."""
        return self.all.contracts


def sampled(corpus: Corpus, n: int, rng: Random) -> Corpus:
    """The corpus with `n` of its questions, half of them answered."""
    found = [label for label in corpus.labels if label.spans]
    absent = [label for label in corpus.labels if not label.spans]
    half = min(len(found), n - n // 2)
    kept = {label.question.id for label in rng.sample(found, half) + rng.sample(absent, min(len(absent), n - half))}
    return replace(corpus, labels=tuple(label for label in corpus.labels if label.question.id in kept))


def mislabelled(corpus: Corpus, share: float, rng: Random) -> Corpus:
    """The corpus with a share of its labels wrong: an answer is called absent, an absent one any words of the text."""
    texts = {contract.id: contract.text for contract in corpus.contracts}

    def wrong(label: Label) -> Label:
        if label.spans:
            return replace(label, spans=(), answer=None)
        start = rng.randrange(max(1, len(texts[label.question.contract_id]) - 60))
        return replace(label, spans=(Span(start, start + 40),), answer=None)

    return replace(corpus, labels=tuple(wrong(la) if rng.random() < share else la for la in corpus.labels))


def joined(parts: Sequence[Corpus]) -> Corpus:
    """Several months together; a contract comes once."""
    contracts = {contract.id: contract for part in parts for contract in part.contracts}
    return Corpus("labelled", tuple(contracts.values()), tuple(label for part in parts for label in part.labels))


class Bench:
    """The index and the LM that all arms share, and what each arm serves and has spent."""

    def __init__(self, args: argparse.Namespace, year: Year, work: Path) -> None:
        self.args, self.year, self.work = args, year, work
        self.lm = local_lm("evergreen-base", work_dir=work / "lm", max_tokens=192, logprobs=True)
        self.index = PassageIndex.build(
            year.contracts, folder=work / "index", embedder=load_embedder(), max_chars=600, progress=False
        )
        self.base = ContractReview(self.index, args.k)
        self.base.set_lm(self.lm)
        self.serving: dict[str, dspy.Module] = {name: self.base for name in ARMS}
        self.seconds = dict.fromkeys(ARMS, 0.0)
        self.live: str | None = None
        self.home = work / "home"
        self.home.mkdir()

    def fine_tuned(self, student: dspy.Module, labels: Corpus) -> dspy.Module:
        """The student after supervised fine-tuning on these labels."""
        examples = to_examples(labels)
        tune = InstructTune(
            metric=teaches, adapter=build_adapter(), exclude_demos=True, num_threads=32,
            train_kwargs={
                "epochs": self.args.epochs, "batch_size": 4, "rank": 16, "alpha": 32, "seed": self.args.seed,
                "progress": False,
            },
        )  # fmt: skip
        teacher = LabelTeacher(self.index, examples, self.args.k)
        teacher.set_lm(self.lm)
        return tune.compile(student.deepcopy(), examples, teacher)

    def learn(self, month: int) -> None:
        """What each arm does at the end of a month."""
        so_far = self.year.labels[:month]
        changes = {
            "tuned once": lambda: self.fine_tuned(self.base, so_far[0]) if month == 1 else None,
            "from scratch, monthly": lambda: self.fine_tuned(self.base, joined(so_far)),
            "newest, always": lambda: self.fine_tuned(self.serving["newest, always"], so_far[-1]),
            "Evergreen": lambda: self.renewed(month),
        }
        for name in self.args.arms:
            if name in changes:
                began = time.perf_counter()
                self.serving[name] = changes[name]() or self.serving[name]
                self.seconds[name] += time.perf_counter() - began

    def renewed(self, month: int) -> dspy.Module | None:
        """`renew` with the labels of all months so far; the live release's program where another went live."""
        write_cuad(joined(self.year.labels[:month]), self.home / "corpus.json")
        write_cuad(self.year.frozen[month - 1], self.home / "frozen.json")
        self._config()
        now = BEGIN + timedelta(days=30 * month)
        settings = DriftSettings(min_observations=self.args.questions, min_contracts=5, cadence_days=30.0)
        contracts = {contract.id: contract for contract in self.year.contracts}
        found = check_drift(Home(self.home), contracts, settings=settings, window_days=30.0, now=lambda: now)
        print(f"  drift: {found.about}", flush=True)
        told = renew(self.home, cause=found.drifted, say=lambda line: print(f"  {line}", flush=True), now=lambda: now)
        live = ReleaseStore.open(self.home / "releases").live()
        if told is None or live is None or live.id == self.live:
            return None
        self.live = live.id
        config, _ = read_compiled(live.path)
        return load_compiled(live.path, self.index, read_retrieval(live.path).settings, config, self.work / "served")

    def _config(self) -> None:
        args = self.args
        self.home.joinpath("evergreen.toml").write_text(
            f'corpus = "corpus.json"\nfrozen = "frozen.json"\nfirst_recipe = "s"\nrecipe = "s"\nseed = {args.seed}\n'
            f"labels_min = {args.labels_min}\n[compile]\nk_passages = {args.k}\nsft_epochs = {float(args.epochs)}\n"
            f"max_tokens = 192\nmax_train_questions = {args.max_rows}\nmax_val_questions = 48\n"
            "[gate]\ndetectable = 0.15\ndiscordance = 0.3\nmax_decisions = 6\n"
        )

    def asked(self, month: int) -> dict[str, list[dict[str, Any]]]:
        """The month's questions, put to every arm; Evergreen's answers leave traces."""
        told, known = {}, {}
        for name in self.args.arms:
            program = self.serving[name]
            key = tuple(predictor.lm.model for predictor in program.predictors())
            if key not in known:
                known[key] = score_program(program, self.year.asked[month - 1], name, threads=64, progress=False)
            told[name] = [row | {"stage": name, "month": month} for row in known[key]]
        if "Evergreen" in told and self.live is not None:
            self._trace(told["Evergreen"], month)
        return told

    def _trace(self, rows: Sequence[dict[str, Any]], month: int) -> None:
        began = BEGIN + timedelta(days=30 * (month - 1))
        step = timedelta(days=29) / len(rows)
        shown = self.base.retrieve
        with TraceStore.open(self.home / "traces.db", now=lambda: began.isoformat()) as store:
            for i, row in enumerate(rows):
                passages = shown(question=row["question"], contract_id=row["contract_id"]).passages
                store.record(
                    Trace(
                        id=f"{month}/{row['question_id']}", at=(began + i * step).isoformat(), release=self.live,
                        question=row["question"], contract_id=row["contract_id"], category=row["category"],
                        answer=row["answer"], found=row["found"], n_quotes=len(row["quotes"]),
                        confidence=row["confidence"], passages=tuple(passage.id for passage in passages),
                        latency_s=row["seconds"],
                    )
                )  # fmt: skip


def run_year(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every month of every arm; rows, seconds, and what Evergreen's renewals and drift checks said."""
    year = Year(args)
    bench = Bench(args, year, work)
    rows: list[dict[str, Any]] = []
    with dspy.context(lm=bench.lm, adapter=build_adapter()):
        for month in range(1, args.months + 1):
            began = time.perf_counter()
            told = bench.asked(month)
            rows += [row for each in told.values() for row in each]
            scores = {name: sum(row["exact_match"] or 0 for row in each) / len(each) for name, each in told.items()}
            print(f"month {month}: " + ", ".join(f"{name} {100 * s:.1f}" for name, s in scores.items()), flush=True)
            if month < args.months:
                bench.learn(month)
            print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    bench.index.close()
    return {
        "rows": rows, "seconds": bench.seconds, "renewals": renewals(Home(bench.home)),
        "drift": reports(Home(bench.home)), "arguments": {key: str(value) for key, value in vars(args).items()},
    }  # fmt: skip


def show(results: Sequence[dict[str, Any]]) -> None:
    """The months, the sum of all, Evergreen against each arm, promotions, alarms and costs."""
    rows = [
        row | {"contract_id": f"{i}/{row['contract_id']}", "question_id": f"{i}/{row['month']}/{row['question_id']}"}
        for i, result in enumerate(results) for row in result["rows"] if row["error"] is None
    ]  # fmt: skip
    arms = [name for name in ARMS if any(row["stage"] == name for row in rows)]
    months = sorted({row["month"] for row in rows})
    print(f"\n| arm | {' | '.join(map(str, months))} | all months | seconds |\n|---|{'---|' * (len(months) + 2)}")
    for name in arms:
        own = [row for row in rows if row["stage"] == name]
        by_month = [[row["exact_match"] for row in own if row["month"] == month] for month in months]
        found = mean_interval([row["exact_match"] for row in own], [row["contract_id"] for row in own])
        cells = " | ".join(f"{100 * sum(each) / len(each):.0f}" for each in by_month)
        spent = sum(result["seconds"][name] for result in results)
        bounds = f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
        print(f"| {name} | {cells} | {bounds} | {spent:.0f} |")
    mine = {row["question_id"]: row for row in rows if row["stage"] == "Evergreen"}
    for name in arms:
        both = [(row, mine[row["question_id"]]) for row in rows if row["stage"] == name and row["question_id"] in mine]
        if name == "Evergreen" or not both:
            continue
        pairs = ([pair[side]["exact_match"] for pair in both] for side in (0, 1))
        found = paired_interval(*pairs, [row["contract_id"] for row, _ in both])
        bounds = f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
        print(f"Evergreen against {name}: {bounds} points, n={found.n}")
    for result in results:
        for one in result["renewals"]:
            print(f"renewal {one['id']}: {one.get('outcome')}, {'; '.join(one.get('reasons', ()))}: {one.get('why')}")
        for one in result["drift"]:
            month = (one["at"] - BEGIN.timestamp()) / (30 * 86_400)
            print(f"drift check, month {month:.0f}: {'ALARM, ' + one['cause'] if one['alarm'] else 'none'}")


def plot(result: dict[str, Any], path: Path) -> None:
    """Scores month by month, a line an arm."""
    figure, axes = plt.subplots(figsize=(9, 4.5))
    for name in ARMS:
        own = [row for row in result["rows"] if row["stage"] == name and row["error"] is None]
        months = sorted({row["month"] for row in own})
        means = [[row["exact_match"] for row in own if row["month"] == month] for month in months]
        axes.plot(months, [100 * sum(each) / len(each) for each in means], marker="o", label=name)
    for month, what in ((SECOND_HOUSE, "second house"), (NEW_CATEGORIES, "new categories"), (POISONED, "wrong labels")):
        axes.axvline(month, color="0.8", zorder=0)
        axes.annotate(what, (month, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
    axes.set_xlabel("month")
    axes.set_ylabel("exact match, %")
    axes.legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Read the arguments, live through the year, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--months", type=int, default=MONTHS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--arriving", type=int, default=5, help="contracts that are asked about in a month")
    parser.add_argument("--questions", type=int, default=48, help="questions about them")
    parser.add_argument("--labelled", type=int, default=4, help="contracts that people label in a month")
    parser.add_argument("--labels", type=int, default=28, help="of their questions")
    parser.add_argument("--noise", type=float, default=0.05, help="share of labels that is wrong")
    parser.add_argument("--frozen", type=int, default=10, help="contracts of each house that the gate decides on")
    parser.add_argument("--gate", type=int, default=240, help="questions about them")
    parser.add_argument("--labels-min", type=int, default=80)
    parser.add_argument("--max-rows", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--k", type=int, default=3, help="passages")
    parser.add_argument("--out", type=Path, help="a new folder")
    parser.add_argument("--show", type=Path, nargs="+", help="year.json of earlier runs")
    args = parser.parse_args()
    if args.show:
        show([json.loads(path.read_text(encoding="utf-8")) for path in args.show])
        return
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        result = run_year(args, work)
        if args.out:
            args.out.mkdir(parents=True)
            args.out.joinpath("year.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            plot(result, args.out / "year.svg")
            shutil.copytree(work / "home", args.out / "home")
    show([result])


if __name__ == "__main__":
    main()

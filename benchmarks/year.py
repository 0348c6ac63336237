"""A simulated year: what a program is worth month by month, by how it is kept up to date.

    python -m benchmarks.year --seed 0 --out year0       # the same again goes on where it was stopped
    python -m benchmarks.year --show year0 year1         # the table of several seeds, and a year.svg in each folder

What comes in is told in `year_world.py`: a second drafting house from month 4, new categories from month 7, 5% wrong
labels throughout, and in month 9 a batch that is all wrong. Questions of a month are answered before its labels are
learnt from. Nobody looks into the quarantine: what is put there stays there.

| arm | what it does at the end of a month |
|---|---|
| never tuned | nothing |
| tuned once | in the first month, fine-tunes the base on its labels |
| from scratch, monthly | fine-tunes the base on all labels so far (at most `--max-rows`, drawn), and serves it |
| newest, always | fine-tunes on from what is live, on the month's labels, and serves it |
| Evergreen | `renew`, if enough labels are new or traffic has drifted; live only if the gate says so |

Seconds are the process's CPU seconds for tuning and, of Evergreen, for all else that a renewal does (indexing, choosing
on validation questions, the gate, latency) and for the drift watch. Whatever drift is attributed to, weights are tuned:
a retriever costs more here than all trainings of the year. Reviewers, traffic and mistakes are simulated; trainings,
gate, drift watch and releases are the real ones.
"""

import argparse
import json
import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dspy

from benchmarks.year_table import plot, show
from benchmarks.year_world import MONTHS, Year, joined, write_year
from corpora.cuad import write_cuad
from corpora.types import Corpus
from modules.embedder import load_embedder
from modules.retriever import PassageIndex
from optimizers.instruct import InstructTune
from optimizers.local_lm import load_program, local_lm, save_program
from program.compile import build_adapter
from program.contract_review import ContractReview
from program.drift.settings import DriftSettings
from program.evaluate import score_program
from program.evaluate_run import load_compiled, read_compiled
from program.examples import sample_examples, to_examples
from program.releases.store import ReleaseStore
from program.renewal.drifting import check_drift, reports
from program.renewal.home import Home, renewals
from program.renewal.renew import renew
from program.run_retrieval import read_retrieval
from program.runlog import logged, quiet
from program.runs import write_json
from program.teacher import LabelTeacher, teaches
from program.traces.store import TraceStore
from program.traces.types import Trace

BEGIN = datetime(2031, 1, 1, tzinfo=UTC)
DAYS = 30
ARMS = {
    "never": "never tuned",
    "once": "tuned once",
    "scratch": "from scratch, monthly",
    "newest": "newest, always",
    "evergreen": "Evergreen",
}


class Bench:
    """The index and the LM that all arms share; all else stands in the folder `out`."""

    def __init__(self, args: argparse.Namespace, year: Year, out: Path) -> None:
        self.args, self.year, self.out = args, year, out
        self.lm = local_lm("evergreen-base", work_dir=out / "lm", max_tokens=192, logprobs=True)
        self.index = PassageIndex.build(
            year.contracts, folder=out / "index", embedder=load_embedder(), max_chars=600, progress=False
        )
        self.home = Home(out / "home")
        self.home.path.mkdir(exist_ok=True)

    def review(self) -> ContractReview:
        """The plain base on all contracts."""
        program = ContractReview(self.index, self.args.k)
        program.set_lm(self.lm)
        return program

    def fine_tuned(self, student: dspy.Module, labels: Corpus) -> dspy.Module:
        """The student after supervised fine-tuning on these labels, as step `s` of a recipe has it."""
        examples = sample_examples(to_examples(labels), self.args.max_rows, self.args.seed)
        tune = InstructTune(
            metric=teaches, adapter=build_adapter(), exclude_demos=True, num_threads=32,
            train_kwargs={
                "epochs": self.args.epochs, "batch_size": self.args.batch, "rank": 16, "alpha": 32,
                "seed": self.args.seed, "progress": False,
            },
        )  # fmt: skip
        teacher = LabelTeacher(self.index, examples, self.args.k)
        teacher.set_lm(self.lm)
        return tune.compile(student.deepcopy(), examples, teacher)

    def served(self, arm: str, month: int) -> tuple[str, dspy.Module]:
        """What an arm serves in a month, and a name for it."""
        folder = self._folder(arm, month)
        if folder is None:
            return "base", self.review()
        if arm == "evergreen":
            config, _ = read_compiled(folder)
            return folder.name, load_compiled(
                folder, self.index, read_retrieval(folder).settings, config, self.out / "lm"
            )
        return folder.name, load_program(
            ContractReview(self.index, self.args.k), folder, name_or_path="evergreen-base", work_dir=self.out / "lm"
        )

    def gone(self, live: str, month: int) -> dspy.Module:
        """What Evergreen served before what is live in a month."""
        return next(
            program for name, program in (self.served("evergreen", m) for m in range(month, 0, -1)) if name != live
        )

    def _folder(self, arm: str, month: int) -> Path | None:
        if arm == "evergreen":
            told = [json.loads(path.read_text()) for path in sorted((self.out / arm).glob("month-*.json"))]
            lives = [one["live_after"] for one in told if one["month"] < month and one["live_after"]]
            return ReleaseStore.open(self.home.releases).get(lives[-1]).path if lives else None
        made = [folder for folder in sorted((self.out / arm).glob("after-[0-9][0-9]")) if int(folder.name[-2:]) < month]
        return made[-1] if made else None

    def tune(self, arm: str, month: int) -> float:
        """What a simple arm does at the end of a month; its CPU seconds."""
        labels = [one.labels for one in self.year.months[:month]]
        if arm == "never" or (arm == "once" and month > 1):
            return 0.0
        target = self.out / arm / f"after-{month:02}"
        alike = [path for path in sorted(self.out.glob("*/after-01.json")) if month == 1]
        if alike:  # the first training is the same of all
            shutil.copytree(alike[0].with_suffix(""), target, dirs_exist_ok=True)
            seconds = json.loads(alike[0].read_text())
        else:
            began = time.process_time()
            if arm == "newest":
                tuned = self.fine_tuned(self.served(arm, month)[1], labels[-1])
            else:
                tuned = self.fine_tuned(self.review(), joined(labels))
            seconds = time.process_time() - began
            save_program(tuned, target)
        write_json(target.with_suffix(".json"), seconds)
        return seconds

    def renew(self, month: int) -> float:
        """`renew` with the labels of all months so far, told what the drift watch found; CPU seconds."""
        write_cuad(joined([one.labels for one in self.year.months[:month]]), self.home.path / "corpus.json")
        write_cuad(self.year.months[month - 1].frozen, self.home.path / "frozen.json")
        args, own = self.args, ""
        if args.own_rows:
            write_cuad(self._asked_lately(month), self.home.path / "contracts.json")
            own = f"[compile.label_settings]\nanswered = 0\nmax_rows = {args.own_rows}\n"
        self.home.path.joinpath("evergreen.toml").write_text(
            f'corpus = "corpus.json"\nfrozen = "frozen.json"\nfirst_recipe = "s"\nrecipe = "s"\nseed = {args.seed}\n'
            f"labels_min = {args.labels_min}\ncontracts_min = 1_000_000\nevery_days = 36500\n"
            + ('contracts = "contracts.json"\n' if own else "")
            + f"[gate]\ndetectable = {args.detectable}\ndiscordance = 0.3\nmax_decisions = {args.max_decisions}\n"
            f"max_latency_ratio = {args.latency}\n"
            f"[compile]\nk_passages = {args.k}\nsft_epochs = {float(args.epochs)}\nbatch_size = {args.batch}\n"
            f"max_tokens = 192\nmax_train_questions = {args.evergreen_rows or args.max_rows}\n"
            f"max_val_questions = {args.val}\nval_share = {args.val_share}\nlabel_rounds = 1\n{own}"
        )
        now = BEGIN + timedelta(days=DAYS * month)
        alarms = [one for one in reports(self.home) if one["alarm"] and one["at"] > (now.timestamp() - DAYS * 86_400)]
        cause = ("model", f"drift of the {alarms[-1]['cause']}") if alarms else None
        began = time.process_time()
        renew(self.home.path, cause=cause, say=lambda line: say(f"  {line}"), now=lambda: now)
        return time.process_time() - began

    def _asked_lately(self, month: int) -> Corpus:
        """The contracts that came in during the last `--own-months`, which nobody has labelled."""
        asked = {
            one.contract_id
            for told in self.year.months[max(0, month - self.args.own_months) : month]
            for one in told.asked
        }
        return Corpus("asked", tuple(one for one in self.year.contracts if one.id in asked), ())

    def watched(self, rows: list[dict[str, Any]], month: int, live: str) -> float:
        """`watch`, once a month: what was killed behind it does not go back in time."""
        path = self.out / "evergreen" / f"watched-{month:02}.json"
        if not path.is_file():
            write_json(path, self.watch(rows, month, live))
        return json.loads(path.read_text())

    def watch(self, rows: list[dict[str, Any]], month: int, live: str) -> float:
        """The month's answers leave traces, and the drift watch looks at its end; CPU seconds."""
        settings = DriftSettings(
            min_observations=self.args.questions // 3, min_contracts=self.args.arriving // 2, cadence_days=DAYS
        )
        contracts = {contract.id: contract for contract in self.year.contracts}
        retrieve, step = self.review().retrieve, timedelta(days=DAYS) / len(rows)
        start, until = (BEGIN + timedelta(days=DAYS * n) for n in (month - 1, month))
        with TraceStore.open(self.home.traces, now=until.isoformat) as store:
            for i, row in enumerate(rows):
                found = retrieve(question=row["question"], contract_id=row["contract_id"])
                store.record(_trace(row, found, start + (i + 0.5) * step, live, month))
        began = time.process_time()
        found = check_drift(self.home, contracts, settings=settings, window_days=DAYS, now=lambda: until)
        seconds = time.process_time() - began
        say(f"  drift, day {(until - BEGIN).days}: {found.about}")
        return seconds


def say(line: str) -> None:
    """A line of what happens, on standard error; the table goes to standard output."""
    print(line, file=sys.stderr, flush=True)


def _trace(row: dict[str, Any], found: dspy.Prediction, at: datetime, live: str, month: int) -> Trace:
    return Trace(
        id=f"{month}/{row['question_id']}", at=at.isoformat(), release=live, question=row["question"],
        contract_id=row["contract_id"], category=row["category"], answer=row["answer"], found=row["found"],
        n_quotes=len(row["quotes"]), confidence=row["confidence"], scores=tuple(map(float, found.scores)),
        passages=tuple(passage.id for passage in found.passages), latency_s=row["seconds"],
    )  # fmt: skip


def live_through(bench: Bench, arm: str, month: int) -> dict[str, Any]:
    """One month of one arm: its answers, what it does at the end, and what that took."""
    name, program = bench.served(arm, month)
    asked = bench.year.months[month - 1].asked
    rows = score_program(program, asked, ARMS[arm], threads=64, progress=False)
    told: dict[str, Any] = {"month": month, "live": name, "rows": rows, "seconds": 0.0}
    if arm == "evergreen":
        if name != "base":  # what it took the place of is asked the same questions
            told["before"] = score_program(bench.gone(name, month), asked, "before", threads=64, progress=False)
        watched = bench.watched(rows, month, name) if name != "base" else 0.0
        told["seconds"] = watched + (bench.renew(month) if month < MONTHS else 0.0)
        done = [one["id"] for one in renewals(bench.home)]
        earlier = [json.loads(path.read_text())["renewal"] for path in (bench.out / arm).glob("month-*.json")]
        told["renewal"] = next((name for name in reversed(done) if name not in earlier), None)
        live = ReleaseStore.open(bench.home.releases).live()
        told["live_after"] = None if live is None else live.id
    elif month < MONTHS:
        told["seconds"] = bench.tune(arm, month)
    return told


def run_year(args: argparse.Namespace, out: Path) -> None:
    """Every month of every arm, as far as `out` does not have it yet."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "arguments.json", {key: str(value) for key, value in vars(args).items()})
    bench = Bench(args, write_year(args), out)
    with logged(out / "year.log"), dspy.context(lm=bench.lm, adapter=build_adapter()):
        for arm in args.arms:
            (out / arm).mkdir(exist_ok=True)
            for month in range(1, args.months + 1):
                path = out / arm / f"month-{month:02}.json"
                if path.is_file():
                    continue
                began = time.perf_counter()
                told = live_through(bench, arm, month)
                write_json(path, told)
                right = sum(row["exact_match"] or 0 for row in told["rows"]) / len(told["rows"])
                took = f"{told['seconds']:.0f} CPU s, {time.perf_counter() - began:.0f} s"
                say(f"{ARMS[arm]}, month {month}: {100 * right:.1f}, served {told['live']}, {took}")
    if "evergreen" in args.arms:
        kept = [json.loads(path.read_text()) for path in sorted((out / "evergreen").glob("month-*.json"))]
        months = {one["renewal"]: one["month"] for one in kept}
        told = [one | {"month": months.get(one["id"])} for one in renewals(bench.home)]
        write_json(out / "home.json", {"renewals": told, "drift": reports(bench.home)})
    bench.index.close()


def main() -> None:
    """Read the arguments, live through the year, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--months", type=int, default=MONTHS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--arriving", type=int, default=6, help="contracts that are asked about in a month")
    parser.add_argument("--questions", type=int, default=36, help="questions about them")
    parser.add_argument("--first-labelled", type=int, default=12, help="contracts that people label in the first month")
    parser.add_argument("--first-labels", type=int, default=240, help="of their questions")
    parser.add_argument("--labelled", type=int, default=2, help="the same, in each later month")
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--noise", type=float, default=0.05, help="share of labels that is wrong")
    parser.add_argument("--frozen", type=int, default=14, help="contracts of each house that the gate decides on")
    parser.add_argument("--gate", type=int, default=240, help="questions about them, as far as there are such")
    parser.add_argument("--labels-min", type=int, default=120, help="new labels that set off a renewal")
    parser.add_argument(
        "--own-rows", type=int, default=0, help="labels that Evergreen carries over by itself to contracts that came in"
    )
    parser.add_argument("--own-months", type=int, default=4, help="the months whose contracts those are")
    parser.add_argument("--detectable", type=float, default=0.15)
    parser.add_argument("--max-decisions", type=int, default=6)
    parser.add_argument(
        "--latency",
        type=float,
        default=2.5,
        help="times the incumbent's: of so small a base's an adapter alone takes half as much again",
    )
    parser.add_argument("--max-rows", type=int, default=200, help="rows of one training")
    parser.add_argument(
        "--evergreen-rows", type=int, help="the same of a renewal, which takes what is new first (default: as many)"
    )
    parser.add_argument("--val", type=int, default=100, help="questions that a renewal chooses on")
    parser.add_argument("--val-share", type=float, default=0.25, help="of the contracts, for those questions")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--k", type=int, default=1, help="passages")
    parser.add_argument("--out", type=Path, default=Path("year"))
    parser.add_argument("--show", type=Path, nargs="+", help="the folders of earlier runs")
    args = parser.parse_args()
    folders = args.show
    if folders is None:
        quiet()
        run_year(args, args.out.absolute())
        folders = [args.out]
    show(folders, ARMS, BEGIN.timestamp())
    for folder in folders:
        plot(folder, ARMS)


if __name__ == "__main__":
    main()

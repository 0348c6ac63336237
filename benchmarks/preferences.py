"""What feedback is worth after supervised fine-tuning: preference methods on what a judge and simulated people say.

    python -m benchmarks.preferences --seed 0 --out p0.json                  # one seed of a held-back house
    python -m benchmarks.preferences --pool p0.json p1.json p2.json          # several together

Contracts of one house are split: labels for fine-tuning come from the first, choices are made on the next, then come
those whose answers are rated, and those that are scored on. The judge is the tuned model itself (likelihood), measured
on labels of the contracts that choices are made on, and may train only if its report says so; people know the labels
and are wrong in a tenth of the cases. "Contrasted" is people's feedback, answers that they call good paired with
samples that contradict them. Intervals are 95%, from a bootstrap over contracts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy

from benchmarks.pooling import read_results
from benchmarks.self_instruct import parts_of
from corpora.synthetic import write_corpus
from modules.degenerate import Guarded
from modules.embedder import load_embedder
from modules.judge import Candidate, Case, JudgeError
from modules.judge_likelihood import LikelihoodJudge
from modules.judge_pairwise import CompareJudge
from modules.retriever import PassageIndex
from optimizers.instruct import InstructTune
from optimizers.local_lm import local_lm
from optimizers.parallel import in_parallel
from optimizers.preference import Preference, PreferenceTune
from program.compile import build_adapter
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.examples import sample_examples, to_examples
from program.feedback.store import FeedbackStore
from program.judging.cases import cases_for
from program.judging.report import judge_report, kappa_text
from program.judging.trust import MIN_KAPPA, TrustedJudge
from program.pairs.contrast import Contrasted
from program.pairs.from_feedback import FeedbackPreferences
from program.pairs.rollouts import JudgedRollouts
from program.pairs.simulate import SimulatedPerson, simulate
from program.recipes import mean_score
from program.report import interval_text
from program.serve.recorder import said_by
from program.serve.session import sample_of
from program.summary import summarize
from program.teacher import LabelTeacher, teaches

LABELLED, VAL, RATED, TEST = 40, 20, 60, 12
# Each arm: method, whose feedback, rounds, and what of the training differs.
ARMS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "dpo, judge": ("dpo", "judge", 1, {}),
    "dpo, people": ("dpo", "people", 1, {}),
    "dpo, both": ("dpo", "both", 1, {}),
    "orpo, people": ("orpo", "people", 1, {}),
    "orpo, both": ("orpo", "both", 1, {}),
    "dpo, contrasted": ("dpo", "contrasted", 1, {}),
    "orpo, contrasted": ("orpo", "contrasted", 1, {}),
    "kto, people": ("kto", "people", 1, {}),
    "kto, both": ("kto", "both", 1, {}),
    "online dpo, judge": ("dpo", "judge", 3, {"max_steps": 30}),
}
SHOWN = ("exact_match", "exact_match_answerable", "token_f1", "cuad_f1", "absence_precision", "absence_recall")


class Both:
    """The preferences of several sources, one behind the other."""

    def __init__(self, *sources: Any) -> None:
        self.sources = sources

    def make(self, *args: Any) -> list[Preference]:
        """As `Preferences.make`."""
        return [one for source in self.sources for one in source.make(*args)]


class Bench:
    """One seed's contracts, index and LM, the program fine-tuned on labels, and the feedback on its answers."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        corpus = write_corpus([args.house], LABELLED + VAL + RATED + TEST, seed=100 + args.seed)
        self.labelled, self.val, self.rated, self.test = parts_of(corpus, (LABELLED, VAL, RATED, TEST))
        self.args, self.work = args, work
        self.lm = local_lm(args.lm, work_dir=work / "lm", max_tokens=192, logprobs=True)
        self.index = PassageIndex.build(
            corpus.contracts, folder=work / "index", embedder=load_embedder(), max_chars=600
        )
        self.val_examples = sample_examples(to_examples(self.val), args.val_questions, args.seed)
        self.rated_examples = sample_examples(to_examples(self.rated), args.rated, args.seed)
        self.base = ContractReview(self.index, 4)
        self.base.set_lm(self.lm)
        self.training = {"seed": args.seed, "batch_size": 4, "rank": 16, "alpha": 32}

    def fine_tuned(self) -> dspy.Module:
        """The program after supervised fine-tuning on people's labels."""
        train = sample_examples(to_examples(self.labelled), self.args.labels, self.args.seed)
        tune = InstructTune(
            metric=teaches, train_kwargs=self.training | {"epochs": self.args.epochs}, adapter=build_adapter(),
            exclude_demos=True, num_threads=32,
        )  # fmt: skip
        teacher = LabelTeacher(self.index, train)
        teacher.set_lm(self.lm)
        return tune.compile(self.base.deepcopy(), train, teacher)

    def judge(self, program: dspy.Module) -> tuple[TrustedJudge | None, dict[str, Any]]:
        """The program's own LM as a judge by likelihood, None where its report does not let it train; the report."""

        judge = Guarded(LikelihoodJudge(program.deepcopy().reviewer))
        cases = cases_for(program, self.val, 200, 200, self.args.seed)
        report = judge_report(judge, *cases, threads=32, seed=self.args.seed, corpus="validation contracts")
        try:
            return TrustedJudge(judge, report, self.args.min_kappa), report
        except JudgeError as error:
            print(f"the judge may train nothing: {error}", flush=True)
            return None, report

    def people(self, program: dspy.Module) -> FeedbackPreferences:
        """What simulated people say of the program's answers and of a sample more each; a tenth of it is wrong."""
        store = FeedbackStore.open(self.work / "feedback.db")
        contracts = {contract.id: contract for contract in self.rated.contracts}
        other = sample_of(program, 1)

        def ask(example: dspy.Example) -> list:
            told = {"question": example.question, "contract_id": example.contract_id, "release": "tuned"}
            asked = store.ask(example.question, contracts[example.contract_id])
            return [store.answer(asked, said_by(program, **told)), store.answer(asked, said_by(other, **told))]

        answers = [one for both in in_parallel(ask, self.rated_examples, threads=32, progress=False) for one in both]
        gold = {(e.contract_id, e.question): e for e in self.rated_examples}
        simulate([SimulatedPerson("ada", noise=self.args.noise)], store, answers, gold, seed=self.args.seed)
        return FeedbackPreferences(store, build_adapter())

    def tuned(self, program: dspy.Module, arm: str, sources: dict[str, Any]) -> tuple[dspy.Module, list[Any]]:
        """The program after an arm of ARMS, and what its rounds were."""
        method, _, rounds, changes = ARMS[arm]
        rate = {} if self.args.rate is None else {"learning_rate": self.args.rate}
        tune = PreferenceTune(
            method=method, score=mean_score(64), rounds=rounds, adapter=build_adapter(), num_threads=32,
            max_kl=self.args.max_kl,
            train_kwargs=self.training | rate | {"epochs": self.args.preference_epochs} | changes, seed=self.args.seed,
        )  # fmt: skip
        source = sources[ARMS[arm][1]]
        tuned = tune.compile(program, self.rated_examples, valset=self.val_examples, preferences=source)
        return tuned, tune.log


def second_judge(lm: dspy.LM) -> Guarded:
    """A judge that made no pair: the bundled base's verdict on two answers."""
    judge = CompareJudge()
    judge.set_lm(lm)
    return Guarded(judge)


def preferred(
    judge: Guarded, program: dspy.Module, rows: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]
) -> dict[str, int]:
    """How often a judge prefers the later answer, the earlier, neither, or cannot be read; equal ones are not asked."""

    def ask(pair: tuple[dict[str, Any], dict[str, Any]]) -> str:
        new, old = pair
        passages = program.retrieve(question=new["question"], contract_id=new["contract_id"]).passages
        try:
            case = Case(new["question"], tuple(passages))
            return judge.compare(case, Candidate(new["answer"]), Candidate(old["answer"])).winner
        except JudgeError:
            return "unreadable"

    differ = [(new, old) for new, old in zip(rows, before, strict=True) if new["answer"] != old["answer"]]
    said = in_parallel(ask, differ, threads=32, progress=False)
    return {"of": len(rows)} | {name: said.count(key) for name, key in
            {"later": "A", "earlier": "B", "tie": "tie", "unreadable": "unreadable"}.items()}  # fmt: skip


def one_seed(bench: Bench) -> dict[str, Any]:
    """Every arm of one seed."""
    args, test = bench.args, to_examples(bench.test)
    told: dict[str, Any] = {"arms": {}, "seconds": {}}

    def scored(name: str, program: dspy.Module) -> list[dict[str, Any]]:
        return score_program(program, test, name, threads=64, progress=False)

    rows = scored("base", bench.base)
    program = bench.fine_tuned()
    before = scored("sft", program)
    rows += before
    trusted, told["judge"] = bench.judge(program)
    print(f"judge: kappa with gold {kappa_text(told['judge']['gold']['kappa'])}", flush=True)
    people = bench.people(program)
    sources: dict[str, Any] = {"people": people, "contrasted": Contrasted(people, build_adapter(), threads=32)}
    if trusted is not None:
        by_judge = JudgedRollouts(trusted, n=4, questions=args.judged, threads=32, seed=args.seed)
        sources |= {"judge": by_judge, "both": Both(people, by_judge)}
    second = second_judge(bench.lm)
    for arm in args.arms:
        if ARMS[arm][1] not in sources:
            told["arms"][arm] = {"refused": "the judge may train nothing"}
            continue
        began = time.perf_counter()
        tuned, log = bench.tuned(program, arm, sources)
        told["seconds"][arm] = time.perf_counter() - began
        after = scored(arm, tuned)
        rows += after
        told["arms"][arm] = {
            "rounds": [
                {"pairs": r.n_pairs, "score": r.score, "kl": r.kl, "length": r.length_ratio, "refused": r.refused}
                for r in log
            ],
            "preferred": preferred(second, program, after, before),
        }
        print(f"{arm}: {json.dumps(told['arms'][arm])}", flush=True)
    return told | {"rows": rows}


def show(results: Sequence[dict[str, Any]]) -> None:
    """Scores of each arm, each arm against fine-tuning alone, what the second judge prefers, one seed or several."""
    rows = [row | {"contract_id": f"{i}/{row['contract_id']}", "question_id": f"{i}/{row['question_id']}"}
            for i, result in enumerate(results) for row in result["rows"]]  # fmt: skip
    for stage in summarize(rows)["stages"]:
        told = [f"{name} {interval_text(stage['scores'][name])}" for name in SHOWN if name in stage["scores"]]
        print(f"{stage['stage']:>18}  n={stage['n_scored']}  {'  '.join(told)}")
    for arm in dict.fromkeys(row["stage"] for row in rows):
        if arm in ("base", "sft"):
            continue
        of_both = [row for name in ("sft", arm) for row in rows if row["stage"] == name]
        for one in summarize(of_both)["comparisons"]:
            if one["score"] in ("exact_match", "token_f1", "exact_match_answerable"):
                bounds = f"{100 * one['difference']:+.1f} [{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
                print(f"{arm} against sft: {one['score']} {bounds}, n={one['n']}")
        said = [result["arms"][arm]["preferred"] for result in results if "preferred" in result["arms"].get(arm, {})]
        print(f"{arm}: a second judge preferred", {key: sum(one[key] for one in said) for key in said[0]})


def main() -> None:
    """Read the arguments, run a seed or pool what earlier runs wrote, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--house", default="juniper")
    parser.add_argument("--lm", default="evergreen-base")
    parser.add_argument("--labels", type=int, default=160, help="labelled questions to fine-tune on")
    parser.add_argument("--rated", type=int, default=240, help="questions whose answers are rated")
    parser.add_argument(
        "--judged", type=int, default=120, help="of those, how many the judge has pairs made for a round"
    )
    parser.add_argument("--noise", type=float, default=0.1, help="share of what people say that is wrong")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--val-questions", type=int, default=60)
    parser.add_argument("--min-kappa", type=float, default=MIN_KAPPA, help="of a judge that may train")
    parser.add_argument("--preference-epochs", type=float, default=3)
    parser.add_argument("--rate", type=float, help="learning rate of the preference methods; default: each one's own")
    parser.add_argument("--max-kl", type=float, default=0.5, help="nats per token from what was fine-tuned")
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
        bench = Bench(args, args.work or Path(scratch))
        with dspy.context(lm=bench.lm, adapter=build_adapter()):
            result = one_seed(bench)
    result["arguments"] = {key: str(value) for key, value in vars(args).items()}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    show([result])


if __name__ == "__main__":
    main()

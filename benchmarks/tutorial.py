"""The table of the tutorial that this grew from, in shape: a few questions of one contract, a stage of tuning a line.

    python -m benchmarks.tutorial --seed 0                                      # three contracts of a generated house
    python -m benchmarks.tutorial --corpus CUADv1.json --questions energous_32.json [--lm HUB_ID] [--judge openai/gpt-5]

`--questions` is a list of {"question", "ref_answer"} about one contract of `--corpus`, each answer the spans of one of
its labels, joined by ", ". As there, the tuned programs are scored on the very questions that they were trained on: a
shape, not a claim. Beneath, the same programs on other contracts, which is what they are worth. Scores in percent:
SQuAD's exact match and token F1, recall of ROUGE-L, cosine of all-MiniLM-L6-v2, and, with `--judge`, a litellm model,
the mean of its grades against the label. The bundled model cannot judge houses that it does not know (LOG.md).
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import dspy
import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from benchmarks.preferences import Bench
from benchmarks.self_instruct import parts_of
from corpora.cuad import read_cuad
from corpora.splits import sample_contracts, subset
from corpora.synthetic import write_corpus
from corpora.types import Corpus
from modules.degenerate import Guarded
from modules.embedder import load_embedder
from modules.judge import Candidate, Case
from modules.judge_pointwise import PointJudge
from modules.retriever import PassageIndex
from optimizers.instruct import InstructTune
from optimizers.local_lm import local_lm
from optimizers.parallel import in_parallel
from optimizers.preference import PreferenceTune
from program.asking import remote
from program.compile import build_adapter
from program.config import CompileConfig
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.examples import to_examples
from program.metrics import exact_match, token_f1
from program.recipes import build_optimizers, mean_score
from program.retrieval_tuning import ReviewRetrieval
from program.teacher import LabelTeacher, teaches

COLUMNS = ("EM", "F1", "ROUGE-L R", "cosine")
N_CONTRACTS = 3  # of a generated house: about as many answered questions as the tutorial has


def asked_of(corpus: Corpus, questions: Path | None) -> tuple[Corpus, list[dspy.Example]]:
    """The contracts that the questions are about, and they as examples; without any, all answered ones."""
    if questions is None:
        return corpus, [example for example in to_examples(corpus) if example.found]
    given = json.loads(questions.read_text(encoding="utf-8"))
    for contract in corpus.contracts:
        labels = [example for example in to_examples(subset(corpus, [contract.id])) if example.found]
        found = [next((label for label in labels if says(each["ref_answer"], label)), None) for each in given]
        if None not in found:
            made = [
                label.copy(question=each["question"], question_id=f"{contract.id}__{i}", answer=each["ref_answer"])
                for i, (each, label) in enumerate(zip(given, found, strict=True))
            ]
            return subset(corpus, [contract.id]), [one.with_inputs("question", "contract_id") for one in made]
    raise SystemExit(f"no contract of {corpus.name} has a label for each of the {len(given)} answers in {questions}")


def says(answer: str, label: dspy.Example) -> bool:
    """Whether an answer is the label's spans joined by ", ", in any order."""
    length = sum(map(len, label.quotes)) + 2 * (len(label.quotes) - 1)
    return len(answer) == length and all(quote in answer for quote in label.quotes)


def table_row(program: ContractReview, examples: Sequence[dspy.Example], judge: Guarded | None) -> list[float]:
    """The scores of COLUMNS over the examples, 0 to 100, and the judge's; a failed call counts as an empty answer."""
    rows = score_program(program, list(examples), "tutorial", threads=32, progress=False)
    said = [(row["answer"], example) for row, example in zip(rows, examples, strict=True)]
    rouge, embedder = RougeScorer(["rougeL"], use_stemmer=False), load_embedder()
    vectors = embedder.encode([text for one, example in said for text in (one, example.answer)])
    pairs = vectors.reshape(len(said), 2, -1)

    def graded(pair: tuple[str, dspy.Example]) -> float:
        answer, example = pair
        passages = program.retrieve(question=example.question, contract_id=example.contract_id).passages
        return judge.grade(Case(example.question, tuple(passages), example.answer), Candidate(answer)).score

    scores = {
        "EM": [exact_match(answer, example.answer) for answer, example in said],
        "F1": [token_f1(answer, example.answer) for answer, example in said],
        "ROUGE-L R": [rouge.score(example.answer, answer)["rougeL"].recall for answer, example in said],
        "cosine": (pairs[:, 0] * pairs[:, 1]).sum(-1) / np.linalg.norm(pairs, axis=-1).prod(-1),
    }
    means = [100 * float(np.mean(scores[name])) for name in COLUMNS]
    return means if judge is None else [*means, 100 * float(np.mean(in_parallel(graded, said, threads=8)))]


def stages(bench: "Tutorial") -> dict[str, ContractReview]:
    """The programs of the table, each made from the one before but for DPO and ORPO, which both start from SFT."""
    made = {"RAG": bench.base}
    config = CompileConfig(corpus="-", seed=bench.args.seed)
    prompts = build_optimizers(config, build_adapter(), ReviewRetrieval(bench.work / "unused"))["p"]
    made["RAG, prompts compiled"] = prompts.compile(
        bench.base.deepcopy(), trainset=bench.questions, valset=bench.questions
    )
    teacher = LabelTeacher(bench.index, bench.questions)
    teacher.set_lm(bench.lm)
    fine_tune = InstructTune(
        metric=teaches, train_kwargs=bench.training | {"epochs": bench.args.epochs}, adapter=build_adapter(),
        exclude_demos=True, num_threads=32,
    )  # fmt: skip
    made["SFT"] = fine_tune.compile(bench.base.deepcopy(), bench.questions, teacher)
    people = bench.people(made["SFT"])
    for method in ("dpo", "orpo"):
        # Nothing is refused, for the tutorial had no gate; what would have been is said.
        tune = PreferenceTune(
            people, score=mean_score(32), method=method, patience=0, max_kl=None, max_length_ratio=None,
            adapter=build_adapter(), num_threads=32, seed=bench.args.seed,
            train_kwargs=bench.training | {"epochs": 3, "learning_rate": bench.args.rate},
        )  # fmt: skip
        tune.compile(made["SFT"], bench.questions, valset=bench.unseen)
        last = tune.log[-1]
        made[method.upper()] = with_models(made["SFT"], last.models)
        if last.refused:
            print(f"{method} would be refused: {last.refused}", flush=True)
    return made


def with_models(program: ContractReview, models: Sequence[str]) -> ContractReview:
    """A copy of the program, its predictors' LMs those of these names."""
    other = program.deepcopy()
    for predictor, model in zip(other.predictors(), models, strict=True):
        predictor.lm = predictor.lm.copy(model=model)
    return other


class Tutorial(Bench):
    """The same questions in the places of labels and ratings, and other contracts to choose and to score on."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        if args.corpus:
            corpus = read_cuad(args.corpus)
            own, self.questions = asked_of(corpus, args.questions)
            rest = subset(corpus, [c.id for c in corpus.contracts if c.id != own.contracts[0].id])
            other = sample_contracts(rest, 1, seed=args.seed)
        else:
            corpus = write_corpus([args.house], 2 * N_CONTRACTS, seed=300 + args.seed)
            own, other = parts_of(corpus, (N_CONTRACTS, N_CONTRACTS))
            own, self.questions = asked_of(own, None)
        self.rated, self.rated_examples = own, self.questions
        self.unseen = [example for example in to_examples(other) if example.found]
        self.args, self.work = args, work
        self.lm = local_lm(args.lm, work_dir=work / "lm", max_tokens=192, logprobs=True)
        self.index = PassageIndex.build(
            own.contracts + other.contracts, folder=work / "index", embedder=load_embedder(), max_chars=600
        )
        self.base = ContractReview(self.index, 4)
        self.base.set_lm(self.lm)
        self.training = {"seed": args.seed, "batch_size": 4, "rank": 16, "alpha": 32}


def main() -> None:
    """Read the arguments, tune, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--house", default="juniper")
    parser.add_argument("--corpus", type=Path, help="a CUADv1-format file in the place of a generated house")
    parser.add_argument("--questions", type=Path, help="questions and answers about one of its contracts")
    parser.add_argument("--lm", default="evergreen-base")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--judge", help="a litellm model")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of DPO and ORPO")
    parser.add_argument("--noise", type=float, default=0.0, help="share of what people say that is wrong")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Tutorial(args, Path(scratch))
        with dspy.context(lm=bench.lm, adapter=build_adapter()):
            judge = None
            if args.judge:
                judge = Guarded(PointJudge())
                judge.set_lm(remote(args.judge))
            made = stages(bench)
            columns = COLUMNS if judge is None else (*COLUMNS, "judge")
            for title, examples in (("its own questions", bench.questions), ("other contracts", bench.unseen)):
                print(f"\n{title} (n = {len(examples)})\n\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
                for name, program in made.items():
                    scores = " | ".join(f"{score:.1f}" for score in table_row(program, examples, judge))
                    print(f"| {name} | {scores} |", flush=True)


if __name__ == "__main__":
    main()

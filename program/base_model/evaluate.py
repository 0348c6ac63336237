"""What the base model can do, on contracts it has not seen: `python -m program.base_model.evaluate`.

Three jobs, on known and on held-back houses: reviewing (with the gold passage among the four given, and end to end
through
the index), writing a question from a passage, and preferring the better of two answers (by verdict and by likelihood).
"""

import argparse
import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError
from dspy.utils.parallelizer import ParallelExecutor

from corpora.synthetic import write_corpus
from modules.embedder import load_embedder
from modules.judge import Compare, JudgeError, likelihood_margin
from modules.retriever import PassageIndex
from modules.reviewer import Reviewer
from modules.signatures import NOT_FOUND, WriteQuestion
from optimizers.local_lm import local_lm
from program.base_model import rows
from program.base_model.train import HELD_BACK, known_houses
from program.compile import build_adapter
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.examples import to_examples
from program.intervals import mean_interval
from program.metrics import exact_match, review_correct

THREADS = 32
EVALUATION_SEED = 990_017  # no row of the training run is drawn from it


def evaluate_houses(
    lm: dspy.LM, houses: tuple[str, ...], contracts_a_house: int, *, end_to_end: bool = True
) -> dict[str, Any]:
    """Scores by job: {"mean", "low", "high", "n"} each, intervals by bootstrap over contracts."""
    rng = Random(EVALUATION_SEED)
    sheets = [rows.draw_sheet((house,), rng) for house in houses for _ in range(contracts_a_house)]
    marks: dict[str, list[tuple[float, str]]] = {}
    with dspy.context(lm=lm, adapter=build_adapter()):
        for name, contract_id, value in (
            *_review(sheets, rng),
            *_write(sheets, rng),
            *_compare(lm, sheets, rng),
            *(_end_to_end(houses, contracts_a_house) if end_to_end else ()),
        ):
            marks.setdefault(name, []).append((float(value), contract_id))
    return {name: _interval(values) for name, values in marks.items()}


def _interval(values: list[tuple[float, str]]) -> dict[str, float]:
    found = mean_interval([value for value, _ in values], [contract_id for _, contract_id in values])
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4), "n": found.n}


def _each(function, items: list) -> list:
    return ParallelExecutor(num_threads=THREADS, max_errors=1, timeout=0).execute(function, items)


def _review(sheets: list[rows.Sheet], rng: Random) -> list[tuple[str, str, bool]]:
    asked = []
    for sheet in sheets:
        for index, label in enumerate(sheet.labels):
            passages = rows.retrieve(sheet, index, 4, rng, force=1.0)
            if not label.spans or rows.covered(label, passages):
                asked.append((sheet, label, passages))
    reviewer = Reviewer()
    reviewer.set_lm(dspy.settings.lm)

    def ask(item):
        sheet, label, passages = item
        said = reviewer(question=label.question.text, passages=passages)
        gold = rows.gold(sheet, label)[1]
        kind = "answerable" if label.spans else "absent"
        return f"review, {kind}", sheet.contract.id, review_correct(said.answer, said.found, gold)

    return _each(ask, asked)


def _write(sheets: list[rows.Sheet], rng: Random) -> list[tuple[str, str, bool]]:
    asked = []
    for sheet in sheets:
        holding = [p for p in sheet.passages if any(label.spans and rows.covered(label, [p]) for label in sheet.labels)]
        asked += [(sheet, p) for p in rng.sample(holding, min(4, len(holding)))]
    writer = dspy.Predict(WriteQuestion)

    def write(item):
        sheet, passage = item
        gold = {
            label.question.text: rows.gold(sheet, label)[1]
            for label in sheet.labels
            if label.spans and rows.covered(label, [passage])
        }
        try:
            said = writer(passage=" ".join(passage.text.split()))
        except AdapterParseError:
            return "write a question", sheet.contract.id, False
        right = said.question in gold and exact_match(said.answer, gold[said.question])
        return "write a question", sheet.contract.id, right

    return _each(write, asked)


def _compare(lm: dspy.LM, sheets: list[rows.Sheet], rng: Random) -> list[tuple[str, str, bool]]:
    asked = []
    for sheet in sheets:
        other = rng.choice([s for s in sheets if s is not sheet])
        found = [i for i, label in enumerate(sheet.labels) if label.spans]
        for index in rng.sample(found, min(5, len(found))) + rng.sample(
            [i for i in range(len(sheet.labels)) if i not in found], 3
        ):
            label, passages = sheet.labels[index], rows.retrieve(sheet, index, 3, rng, force=1.0)
            if label.spans and not rows.covered(label, passages):
                continue
            right = rows.gold(sheet, label)[1]
            wrong = rows.wrong_answer(sheet, other, label, right, rng)
            asked.append((sheet, label, passages, right, wrong, rng.choice("AB")))
    judge, reviewer, adapter = Compare(), Reviewer(), build_adapter()

    def compare(item):
        sheet, label, passages, right, wrong, letter = item
        pair = (right, wrong) if letter == "A" else (wrong, right)
        try:
            verdict = (
                judge(question=label.question.text, passages=passages, answer_a=pair[0], answer_b=pair[1]).better
                == letter
            )
        except (JudgeError, AdapterParseError):
            verdict = False
        said = reviewer(question=label.question.text, passages=passages)
        quotes = "\n".join(quote.text for quote in said.quotes) or "none"
        margin = likelihood_margin(lm.engine.score, adapter, label.question.text, passages, quotes, (right, wrong))
        both_found = wrong != NOT_FOUND and right != NOT_FOUND
        return sheet.contract.id, verdict, margin > 0, both_found

    marks = []
    for contract_id, verdict, margin, both_found in _each(compare, asked):
        marks += [("compare, verdict", contract_id, verdict), ("compare, likelihood", contract_id, margin)]
        if both_found:
            marks.append(("compare, verdict, two values", contract_id, verdict))
            marks.append(("compare, likelihood, two values", contract_id, margin))
    return marks


def _end_to_end(houses: tuple[str, ...], contracts_a_house: int) -> list[tuple[str, str, bool]]:
    corpus = write_corpus(houses, contracts_a_house * len(houses), seed=EVALUATION_SEED)
    with tempfile.TemporaryDirectory() as folder:
        index = PassageIndex.build(corpus.contracts, folder=Path(folder) / "index", embedder=load_embedder())
        program = ContractReview(index)
        program.set_lm(dspy.settings.lm)
        scored = score_program(program, to_examples(corpus), "base", threads=THREADS)
        index.close()
    return [
        (
            f"end to end, {'absent' if row['gold_answer'] == NOT_FOUND else 'answerable'}",
            row["contract_id"],
            row["exact_match"],
        )
        for row in scored
        if row["error"] is None
    ]


def main() -> None:
    """Command line: prints the scores and, with --out, writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="evergreen-base")
    parser.add_argument("--contracts", type=int, default=4, help="contracts a house")
    parser.add_argument("--reader-only", action="store_true", help="leave out the end-to-end scores")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    dspy.configure_cache(enable_disk_cache=False)
    with tempfile.TemporaryDirectory() as work:
        lm = local_lm(args.model, work_dir=work, logprobs=True, max_tokens=320)
        scores = {
            group: evaluate_houses(lm, houses, args.contracts, end_to_end=not args.reader_only)
            for group, houses in (("known houses", known_houses()), ("held-back houses", HELD_BACK))
        }
    print(json.dumps(scores, indent=1))
    if args.out:
        args.out.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()

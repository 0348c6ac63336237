"""A reward model on gold against wrong answers: `python -m benchmarks.reward_model [--house juniper] [--contracts 24]`.

Pairs are made from labels of a generated house: under the reviewer's prompt, with the gold passage shown, the right
quotes and answer against a wrong answer (another contract's, another question's, "not in this contract" where there is
one, an invented one where there is none), each behind quotes that go with it. Half of the contracts teach, a quarter
chooses and calibrates, a quarter is reported on. Beside it, on the same pairs: the base's own likelihood of each text,
whole and per token.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from random import Random

import dspy

from modules.signatures import NO_QUOTE, NOT_FOUND, ReviewPassages, join_quotes, number_passages
from optimizers.local_lm import local_lm
from optimizers.local_lm.prompts import encode_completion
from optimizers.reward import RankedPair, train_reward
from optimizers.reward_training import RewardSettings
from program.base_model import rows
from program.compile import build_adapter
from program.intervals import Interval, mean_interval
from program.judging.reward_judge import reward_report


def pairs_of(sheets: list[rows.Sheet], adapter: dspy.Adapter, rng: Random, *, k: int) -> list[RankedPair]:
    """One pair for every question of every contract whose answer stands in the passages shown, or that has none."""
    pairs = []
    for sheet in sheets:
        other = rng.choice([one for one in sheets if one is not sheet])
        absent = [i for i, label in enumerate(sheet.labels) if not label.spans]
        present = [i for i, label in enumerate(sheet.labels) if label.spans]
        for index in present + rng.sample(absent, min(len(absent), len(present))):
            label, passages = sheet.labels[index], rows.retrieve(sheet, index, k, rng, force=1.0)
            if label.spans and not rows.covered(label, passages):
                continue
            quotes, answer = rows.gold(sheet, label)
            wrong = rows.wrong_answer(sheet, other, label, answer, rng)
            inputs = {"passages": number_passages([p.text for p in passages]), "question": label.question.text}
            said = [(join_quotes(quotes), answer), (_quotes_for(wrong, join_quotes(quotes), rng), wrong)]
            chosen, rejected = (
                adapter.format_assistant_message_content(ReviewPassages, {"quotes": quotes, "answer": answer})
                for quotes, answer in said
            )
            messages = tuple(adapter.format(ReviewPassages, [], inputs))
            pairs.append(RankedPair(messages, chosen, rejected, sheet.contract.id, "gold"))
    return pairs


def _quotes_for(wrong: str, right_quotes: str, rng: Random) -> str:
    """Quotes that go with a wrong answer: none for absence, else its own words or the right answer's quotes."""
    if wrong == NOT_FOUND:
        return NO_QUOTE
    return right_quotes if right_quotes != NO_QUOTE and rng.random() < 0.5 else wrong


def likelihood_accuracy(lm: dspy.LM, pairs: list[RankedPair]) -> dict[str, Interval]:
    """How often the base itself finds the right text likelier, whole and per token."""
    marks: dict[str, list[float]] = {"likelihood": [], "likelihood per token": []}
    for pair in pairs:
        texts = [pair.chosen, pair.rejected]
        logps = lm.engine.score(pair.messages, texts)
        n_tokens = [len(encode_completion(lm.engine.weights, pair.messages, text, with_end=False)) for text in texts]
        marks["likelihood"].append(float(logps[0] > logps[1]))
        marks["likelihood per token"].append(float(logps[0] / n_tokens[0] > logps[1] / n_tokens[1]))
    return {name: mean_interval(values, [pair.group for pair in pairs]) for name, values in marks.items()}


def _told(name: str, found: Interval) -> str:
    return f"{name}: {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] (n={found.n}, {found.n_clusters} contracts)"


def main() -> None:
    """Train, report, print; `--out` keeps the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--house", default="juniper")
    parser.add_argument("--contracts", type=int, default=24)
    parser.add_argument("--passages", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng, adapter = Random(args.seed), build_adapter()
    sheets = [rows.draw_sheet((args.house,), rng) for _ in range(args.contracts)]
    half, rest = args.contracts // 2, args.contracts // 4
    parts = sheets[:half], sheets[half : half + rest], sheets[half + rest :]
    train, val, test = (pairs_of(list(part), adapter, rng, k=args.passages) for part in parts)
    settings = RewardSettings(
        epochs=args.epochs, learning_rate=args.learning_rate, seed=args.seed, progress=False, max_length_tokens=2048,
        max_dropped=0.05,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        lm = local_lm("evergreen-base", work_dir=work)
        begun = time.perf_counter()
        model = train_reward(lm, train, settings, val_pairs=val)
        print(f"{len(train)} pairs learnt, {len(val)} to choose on: {time.perf_counter() - begun:.0f} s")
        for look in model.record["validation"]:
            print(f"  step {look['step']}: loss {look['loss']:.3f}, accuracy {look['accuracy']:.3f}")
        begun = time.perf_counter()
        report = reward_report(model, test, seed=args.seed)
        print(f"{2 * len(test) / (time.perf_counter() - begun):.1f} texts scored a second")
        for name, found in likelihood_accuracy(lm, test).items():
            print(_told(f"accuracy of the base's {name}", found))
    print(_told("accuracy of the reward model", report.accuracy))
    print(_told(f"calibration error at temperature {report.temperature:.2f}", report.ece))
    print(_told("calibration error at temperature 1", report.ece_raw))
    print(f"length: {report.length}")
    if args.out:
        args.out.write_text(json.dumps(asdict(report), indent=1) + "\n")


if __name__ == "__main__":
    main()

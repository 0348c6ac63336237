"""What is forgotten when one skill is learnt after another, by method: plain, guarded, preferred, self-distilled.

    python -m benchmarks.forgetting --seed 0 --out f0.json             # one seed, every method
    python -m benchmarks.forgetting --methods sft replay_self sdft     # some of them
    python -m benchmarks.forgetting --pool f0.json f1.json f2.json     # several seeds together

The skills: drafting houses that the base has never seen, one after another, each from the labels of its own contracts.
After each round the program is scored on new contracts of every house, of the houses that the base knows, and on the
base's general abilities. A method starts each round from what its last one gave ("zoo_*": from the base). Intervals are
95%, from a bootstrap over contracts. FLOPs are an estimate by tokens times parameters (`Cost`), seconds are measured.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dspy
import matplotlib.pyplot as plt

from benchmarks.forgetting_methods import KNOWN, METHODS, Bench
from benchmarks.pooling import read_results
from program.base_model.train import HELD_BACK
from program.forgetting.abilities import ABILITIES
from program.forgetting.matrix import forgetting_figures
from program.forgetting.report import report_lines, write_forgetting_report
from program.forgetting.skills import Mark
from program.guarding import BESIDE_REPLAY
from program.intervals import paired_interval
from program.report import interval_text


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every method over every house of one seed; `--out` is written after each method."""
    bench = Bench(args, work)
    result = {
        "seed": args.seed,
        "houses": [h.name for h in bench.houses],
        "parameters": bench.parameters,
        "methods": {},
    }
    with dspy.context(lm=bench.lm, adapter=bench.adapter):
        before = bench.score(bench.begin("base"), bench.lm)
        for word in args.methods:
            method = bench.begin(word)
            method.rounds.append(before)
            for i, house in enumerate(bench.houses):
                method.costs.append(bench.step(method, i))
                zoo = word.startswith("zoo")
                lm = bench.lm if zoo else method.program.predictors()[0].lm
                method.rounds.append(bench.score(method, lm))
                method.kl.append(bench.kl(method.lms[house.name] if zoo else lm, house))
                print(f"seed {args.seed}, {word}, {house.name}: {method.costs[-1]} {method.notes[-1]}", flush=True)
            told = {key: getattr(method, key) for key in ("kl", "notes")}
            told |= {"rounds": [[asdict(m) for m in marks] for marks in method.rounds]}
            result["methods"][word] = told | {"costs": [asdict(cost) for cost in method.costs]}
            if args.out:
                args.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    bench.index.close()
    return result


def figures_of(results: Sequence[dict[str, Any]], word: str) -> dict[str, Any]:
    """A method's figures over all seeds; questions and contracts of two seeds are never the same."""
    runs = [(result["seed"], result["methods"][word]) for result in results if word in result["methods"]]
    houses = results[0]["houses"]
    rounds = [[_of(mark, seed) for seed, told in runs for mark in told["rounds"][i]] for i in range(len(houses) + 1)]
    learnt = {KNOWN: 0} | {name: i + 1 for i, name in enumerate(houses)} | dict.fromkeys(ABILITIES, 0)
    kl = [(value, f"{seed}/{group}") for seed, told in runs for value, group in told["kl"][-1]]
    figures = forgetting_figures(rounds, learnt, abilities=ABILITIES, kl=kl)
    costs = [cost for _, told in runs for cost in told["costs"]]
    figures |= {key: sum(cost[key] for cost in costs) / len(runs) for key in ("seconds", "flops")}
    last = len(houses)
    cells = [figures["matrix"][i + 1][1 + i]["mean"] for i in range(last)]
    old = [figures["matrix"][last][j]["mean"] for j in range(last)]  # the known houses, and all but the last one learnt
    return figures | {"new_task": sum(cells) / len(cells), "earlier_tasks": sum(old) / len(old), "n_seeds": len(runs)}


def new_task_against(results: Sequence[dict[str, Any]], before: str, after: str) -> str:
    """Points by which `after` has learnt every house, when it was its turn, better than `before`, with the interval."""
    sides, contracts = ([], []), []
    for result in results:
        if not {before, after} <= set(result["methods"]):
            continue
        for i, house in enumerate(result["houses"]):
            marks = [
                {one["question_id"]: one for one in result["methods"][word]["rounds"][i + 1] if one["skill"] == house}
                for word in (before, after)
            ]
            both = sorted(marks[0].keys() & marks[1].keys())
            for side, told in zip(sides, marks, strict=True):
                side.extend(told[key]["right"] for key in both)
            contracts += [f"{result['seed']}/{marks[0][key]['contract_id']}" for key in both]
    found = paired_interval(*sides, contracts)
    return f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _of(mark: dict[str, Any], seed: int) -> Mark:
    return Mark(**{**mark, **{key: f"{seed}/{mark[key]}" for key in ("question_id", "contract_id")}})


def show(results: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Tables over all seeds: by method, then each method's skills; pages beside `out`."""
    words = list(dict.fromkeys(word for result in results for word in result["methods"]))
    told = {word: figures_of(results, word) for word in words}
    of = told.get("sft", told[words[0]])
    columns = "method | new task | against sft | earlier tasks | average | backward transfer | forgetting"
    columns += " | KL | FLOPs x | time x"
    print(f"\n| {columns} |\n|{'---|' * 10}")
    for word, one in told.items():
        against = new_task_against(results, "sft", word) if "sft" in told else ""
        cells = [word, f"{100 * one['new_task']:.1f}", against, f"{100 * one['earlier_tasks']:.1f}"]
        cells += [interval_text(one[key]) for key in ("average_accuracy", "backward_transfer", "forgetting")]
        cells += [
            f"{one['kl']['mean']:.3f}",
            f"{one['flops'] / of['flops']:.1f}",
            f"{one['seconds'] / of['seconds']:.1f}",
        ]
        print(f"| {' | '.join(cells)} |")
    names = ["base", *results[0]["houses"]]
    for word, one in told.items():
        print(f"\n{word} ({one['n_seeds']} seeds)\n| after | {' | '.join(one['skills'])} |")
        print(f"|{'---|' * (1 + len(one['skills']))}")
        for name, row in zip(names, one["matrix"], strict=True):
            print(f"| {name} | {' | '.join(interval_text(cell) for cell in row)} |")
        print("\n".join(report_lines(one)))
        print("\n".join(note for result in results for note in result["methods"].get(word, {"notes": []})["notes"]))
        if out:
            write_forgetting_report(out.with_suffix("") / word, one, names=names)
    if out:
        plot(told, names, out.with_suffix(".svg"))


def plot(told: Mapping[str, dict[str, Any]], names: Sequence[str], path: Path) -> None:
    """Review scores over the rounds, a panel a method and a line a skill, dashed before the skill is learnt."""
    places = len(told) + 1  # the last one is the legend's
    columns = math.ceil(math.sqrt(places))
    rows = math.ceil(places / columns)
    figure, panels = plt.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False, figsize=(3 * columns, 2.6 * rows)
    )
    for axes in panels.flat[len(told) :]:
        axes.axis("off")
    for axes, (word, one) in zip(panels.flat, told.items(), strict=False):
        axes.set_title(word, fontsize=10)
        for i, skill in enumerate((KNOWN, *names[1:])):
            scores = [100 * row[i]["mean"] for row in one["matrix"]]
            (line,) = axes.plot(range(i, len(names)), scores[i:], marker="o", markersize=3, label=skill)
            axes.plot(range(i + 1), scores[: i + 1], linestyle=":", color=line.get_color())
        axes.set_xticks(range(len(names)), names, rotation=30, fontsize=7)
        axes.tick_params(labelbottom=True)
    for axes in panels[:, 0]:
        axes.set_ylabel("exact match, %")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Read the arguments, run a seed or pool what earlier runs wrote, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--houses", nargs="+", default=list(HELD_BACK))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--labels", type=int, default=160, help="a house, half of them with an answer")
    parser.add_argument("--train-contracts", type=int, default=40)
    parser.add_argument("--pool-contracts", type=int, default=40, help="of known houses, for replay")
    parser.add_argument("--test-contracts", type=int, default=16)
    parser.add_argument("--test-questions", type=int, default=160, help="a house")
    parser.add_argument("--val-questions", type=int, default=60)
    parser.add_argument("--ability-contracts", type=int, default=24)
    parser.add_argument("--kl-prompts", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--dpo-epochs", type=float, default=2)
    parser.add_argument("--sdft-epochs", type=float, default=2)
    parser.add_argument(
        "--sdft-paper", action="store_true", help="the published settings, in the place of the defaults"
    )
    parser.add_argument("--replay", type=int, default=100, help="answers of its own that replay_self mixes in")
    parser.add_argument("--replay-share", type=float, default=0.3)
    parser.add_argument("--kl-beta", type=float, default=1.0)
    parser.add_argument("--kl-beta-beside", type=float, default=BESIDE_REPLAY, help="the same beside replayed labels")
    parser.add_argument("--kl-budget", type=float, default=0.05, help="nats per token")
    parser.add_argument("--low-factor", type=float, default=0.2)
    parser.add_argument("--merge", type=float, default=0.5, help="the tuned adapter's share")
    parser.add_argument("--k", type=int, default=4, help="passages")
    parser.add_argument("--lm", default="evergreen-base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two houses and few questions: whether it runs")
    parser.add_argument("--work", type=Path, help="a folder for the index and adapters, to keep")
    parser.add_argument("--pool", type=Path, nargs="+", help="files that earlier runs wrote with --out")
    parser.add_argument("--out", type=Path, help="JSON; a plot and pages of its name go beside it")
    args = parser.parse_args()
    if args.pool:
        show(read_results(args.pool), args.out)
        return
    if args.quick:
        args.houses, args.labels, args.epochs, args.dpo_epochs, args.sdft_epochs = args.houses[:2], 24, 1, 1, 1
        args.train_contracts, args.pool_contracts, args.test_contracts, args.test_questions = 6, 10, 4, 24
        args.val_questions, args.ability_contracts, args.kl_prompts, args.replay = 12, 4, 6, 12
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)  # what is asked twice costs twice
    with tempfile.TemporaryDirectory() as scratch:
        show([run(args, args.work or Path(scratch))], args.out)


if __name__ == "__main__":
    main()

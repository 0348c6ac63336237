"""How often the drift watch cries wolf, and how soon it sees a change: simulated traffic, one check a day.

    python -m benchmarks.drift --months 24 --seed 0                  # under three minutes on one core
    python -m benchmarks.drift --months 180 --runs 30 --repeats 50   # tighter intervals

Traffic is drawn, not served: embeddings from Gaussian mixtures (a centre per category, and per drafting house), scores
with an effect of the contract, words from a Zipf law. "One by one": every question is to a contract of its own.
"By contract": a contract is asked about ten questions in one day, and contracts differ in everything that is measured.
An alarm is counted for each check that raises one, and an episode for each unbroken row of them; intervals are exact
Poisson ones of the episodes. Delays are days from the change to the end of the day whose check alarms; a run that did
not alarm within `--patience` days counts as longer than all others.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import expit, logit
from scipy.stats import chi2

from program.drift.attribution import attribute
from program.drift.monitor import DriftMonitor
from program.drift.settings import DAY_S, DAYS_A_MONTH, DriftSettings
from program.drift.types import DriftReport
from program.drift.windows import Window, between

_START = 20_000.0  # the day on which all traffic begins, since 1970
_DIMENSIONS, _CATEGORIES, _HOUSES, _WORDS, _WORDS_A_QUESTION = 16, 12, 4, 3000, 8
_KINDS = {"one by one": 1, "by contract": 10}


@dataclass(frozen=True, slots=True)
class Shift:
    """What is otherwise after the change: shares of the traffic, and points of a score or a rate.

    `questions`: share of questions of three new categories. `house`: share of contracts from a new house, whose
    passages lie elsewhere and are found 5 points less well. The rest is what the name falls (or abstention rises) by.
    """

    questions: float = 0.0
    house: float = 0.0
    confidence: float = 0.0
    abstention: float = 0.0
    ratings: float = 0.0
    judge: float = 0.0


SHIFTS = {
    "questions: 15% are new": (Shift(questions=0.15), "questions"),
    "questions: 40% are new": (Shift(questions=0.4), "questions"),
    "new house: 30% of contracts": (Shift(house=0.3), "corpus"),
    "new house: 60% of contracts": (Shift(house=0.6), "corpus"),
    "confidence falls by 5 points": (Shift(confidence=0.05), "model"),
    "confidence falls by 10 points": (Shift(confidence=0.1), "model"),
    "confidence falls by 20 points": (Shift(confidence=0.2), "model"),
    "abstention rises by 15 points": (Shift(abstention=0.15), "model"),
    "judge falls by 15 points": (Shift(judge=0.15), "model"),
    "ratings fall by 20 points": (Shift(ratings=0.2), "reviewers/unknown"),
    "ratings fall by 40 points": (Shift(ratings=0.4), "reviewers/unknown"),
}


@dataclass(slots=True)
class Quiet:
    """Alarms without a change: of checks, of episodes, by signal; `again` counts what two checks in a row confirm."""

    months: float = 0.0
    alarms: int = 0
    episodes: int = 0
    runs: int = 0
    runs_with_alarm: int = 0
    again: int = 0
    by_signal: dict[str, int] = field(default_factory=dict)


def traffic(days: int, per_day: int, per_contract: int, shift: Shift, change: int, rng: np.random.Generator) -> Window:
    """`days` of traffic that is another from day `change` on; about a seventh is rated, and a seventh judged."""
    world = np.random.default_rng(7)  # categories and houses lie where they lie, whatever the seed
    centres = world.normal(size=(_CATEGORIES, _DIMENSIONS))
    houses = world.normal(size=(_HOUSES, _DIMENSIONS))
    n_contracts = rng.poisson(days * per_day / per_contract)
    sizes = 1 + rng.poisson(per_contract - 1, n_contracts)
    day = np.sort(rng.integers(0, days, n_contracts))
    contract = np.repeat(np.arange(n_contracts), sizes)
    n, new = len(contract), np.repeat(day >= change, sizes)
    # What a contract is like shows in all that is measured of it.
    effect = rng.normal(size=(n_contracts, 6))[contract]
    place = rng.normal(size=(2, n_contracts, _DIMENSIONS))[:, contract]
    usual = rng.choice(_CATEGORIES - 3, size=n, p=_falling(_CATEGORIES - 3))
    category = np.where(new & (rng.random(n) < shift.questions), rng.integers(_CATEGORIES - 3, _CATEGORIES, n), usual)
    unknown_house = (rng.random(n_contracts) < shift.house)[contract] & new
    house = np.where(unknown_house, _HOUSES - 1, rng.integers(0, _HOUSES - 1, n_contracts)[contract])
    question = centres[category] + 0.3 * place[0] + 0.3 * rng.normal(size=(n, _DIMENSIONS))
    passage = houses[house] + 0.5 * place[1] + 0.3 * rng.normal(size=(n, _DIMENSIONS))
    confidence = 0.75 - shift.confidence * new + 0.06 * effect[:, 0] + 0.15 * rng.normal(size=n)
    judge = 0.75 - shift.judge * new + 0.06 * effect[:, 3] + 0.2 * rng.normal(size=n)
    words = rng.choice(_WORDS, size=(n, _WORDS_A_QUESTION), p=_falling(_WORDS))
    own_words = rng.integers(0, 10**6, (n_contracts, _WORDS_A_QUESTION))[contract]
    words = np.where(rng.random(words.shape) < 0.05, _WORDS + own_words, words)
    words = np.where((category >= _CATEGORIES - 3)[:, None] & (rng.random(words.shape) < 0.3), words + 10**7, words)
    at = (_START + np.repeat(day + 0.3 * rng.random(n_contracts), sizes) + 0.5 * rng.random(n)) * DAY_S
    order = np.argsort(at)
    window = Window(
        at=at, contract=contract, contracts=tuple(f"c{i}" for i in range(n_contracts)),
        category=category, categories=tuple(f"category {i}" for i in range(_CATEGORIES)),
        abstained=rng.random(n) < _rate(0.25 + shift.abstention * new, effect[:, 1]),
        question_embedding=question.astype(np.float32), passage_embedding=passage.astype(np.float32),
        retrieval_score=0.7 - 0.05 * unknown_house + 0.04 * effect[:, 2] + 0.1 * rng.normal(size=n),
        confidence=np.clip(confidence, 0, 1), p_answered=np.full(n, np.nan),
        judge_score=_sometimes(np.clip(judge, 0, 1), rng),
        rating=_sometimes((rng.random(n) < _rate(0.8 - shift.ratings * new, effect[:, 4])).astype(float), rng),
        words=(),
    )  # fmt: skip
    parts = {name: getattr(window, name) for name in Window.__slots__}
    parts = {name: part[order] if isinstance(part, np.ndarray) else part for name, part in parts.items()}
    return Window(**{**parts, "words": tuple(map(tuple, words[order].astype(str).tolist()))})


def _falling(n: int) -> np.ndarray:
    weights = 1 / np.arange(1, n + 1)
    return weights / weights.sum()


def _rate(rate: np.ndarray | float, effect: np.ndarray) -> np.ndarray:
    return expit(logit(rate) + 0.5 * effect)


def _sometimes(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(len(values)) < 1 / 7, values, np.nan)


def watch(window: Window, reference_days: int, window_days: int, settings: DriftSettings, begin: int, days: int):
    """A report at the end of each day from `begin` on, of the `window_days` before it, against the first days."""
    monitor = DriftMonitor(between(window, 0, (_START + reference_days) * DAY_S), settings)
    for day in range(begin, days):
        at = (_START + day + 1) * DAY_S - 1
        start = max(at - window_days * DAY_S, monitor.reference.stop + 1e-3)
        yield day, monitor.check(between(window, start, at), at)


def quiet(per_contract: int, args: argparse.Namespace) -> Quiet:
    """Count alarms over `--months` months in which nothing changes, in `--runs` runs with a reference of their own."""
    found = Quiet()
    for run in range(args.runs):
        days = args.reference_days + round(args.months / args.runs * DAYS_A_MONTH)
        rng = np.random.default_rng([args.seed, run, per_contract])
        window = traffic(days, args.per_day, per_contract, Shift(), days, rng)
        before: tuple[str, ...] = ()
        alarms = found.alarms
        for _, report in watch(
            window, args.reference_days, args.window_days, settings_of(args, run), args.reference_days + 2, days
        ):
            found.months += 1 / DAYS_A_MONTH
            found.alarms += report.alarm
            found.episodes += report.alarm and not before
            found.again += bool({*report.moved} & {*before})
            found.by_signal |= {name: found.by_signal.get(name, 0) + 1 for name in report.moved}
            before = report.moved
        found.runs += 1
        found.runs_with_alarm += found.alarms > alarms
    return found


def delays(shift: Shift, per_contract: int, args: argparse.Namespace) -> tuple[list[float], list[float], Counter[str]]:
    """Days to the first alarm, to the first that two checks in a row confirm, and what it was attributed to."""
    first, again, causes = [], [], Counter()
    change = args.reference_days + args.window_days + 7
    days = change + args.patience
    for repeat in range(args.repeats):
        rng = np.random.default_rng([args.seed, repeat, per_contract, 1])
        window = traffic(days, args.per_day, per_contract, shift, change, rng)
        begin = args.reference_days + 2 if shift.ratings else change
        reports = watch(window, args.reference_days, args.window_days, settings_of(args, repeat), begin, days)
        alarm, confirmed, report = _first(reports, change, both=not shift.ratings)
        first.append(alarm)
        again.append(confirmed)
        causes["unseen" if report is None else attribute(report).kind] += 1
    return first, again, causes


def _first(reports, change: int, *, both: bool) -> tuple[float, float, DriftReport | None]:
    alarm, found, before = np.inf, None, ()
    for day, report in reports:
        if day >= change and report.alarm and found is None:
            alarm, found = day + 1 - change, report
        if day >= change and found is not None and (not both or {*report.moved} & {*before}):
            return alarm, day + 1 - change, found
        before = report.moved
    return alarm, np.inf, found


def settings_of(args: argparse.Namespace, seed: int) -> DriftSettings:
    """The defaults, with another seed for each run."""
    return DriftSettings(false_alarms_per_month=args.rate, seed=1000 * args.seed + seed)


def poisson_interval(count: int, exposure: float) -> tuple[float, float]:
    """The exact 95% interval of a rate (Garwood 1936)."""
    low = chi2.ppf(0.025, 2 * count) / 2 if count else 0.0
    return low / exposure, chi2.ppf(0.975, 2 * count + 2) / 2 / exposure


def _days(values: list[float], share: float) -> str:
    at = float(np.quantile(values, share, method="higher"))
    return f"{at:.0f}" if np.isfinite(at) else "unseen"


def _known(days: float) -> float | None:
    return days if np.isfinite(days) else None  # JSON has no infinity


def main() -> None:
    """Simulate, print the two tables; `--out` keeps the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=float, default=24)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--per-day", type=int, default=40)
    parser.add_argument("--reference-days", type=int, default=30)
    parser.add_argument("--window-days", type=int, default=7)
    parser.add_argument("--patience", type=int, default=45)
    parser.add_argument("--rate", type=float, default=DriftSettings().false_alarms_per_month)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    begun, told = time.process_time(), {"args": {**vars(args), "out": str(args.out)}, "quiet": {}, "delays": []}
    print(
        f"{args.per_day} questions a day, windows of {args.window_days} days, {args.rate} false alarms a month asked\n"
    )
    print("| no change | months | alarms | episodes a month (95%) | runs with one | two in a row | signals |")
    print("|---|---|---|---|---|---|---|")
    for kind, per_contract in _KINDS.items():
        found = quiet(per_contract, args)
        low, high = poisson_interval(found.episodes, found.months)
        told["quiet"][kind] = asdict(found)
        rate = f"{found.episodes / found.months:.3f} ({low:.3f} to {high:.3f})"
        signals = (
            ", ".join(f"{name} {n}" for name, n in sorted(found.by_signal.items(), key=lambda item: -item[1])) or "-"
        )
        print(f"| {kind} | {found.months:.0f} | {found.alarms} | {rate} | {found.runs_with_alarm} of {found.runs} | "
              f"{found.again} | {signals} |", flush=True)  # fmt: skip
    print(f"\n{time.process_time() - begun:.0f} CPU seconds\n")
    print("| change, by contract | seen | days: median | 90% | two in a row: median | attributed to |")
    print("|---|---|---|---|---|---|")
    for name, (shift, cause) in SHIFTS.items():
        first, again, causes = delays(shift, _KINDS["by contract"], args)
        known = {"days": [_known(one) for one in first], "two_in_a_row": [_known(one) for one in again]}
        told["delays"].append({"shift": name, **known, "causes": causes})
        seen = sum(map(np.isfinite, first))
        print(f"| {name} | {seen} of {len(first)} | {_days(first, 0.5)} | {_days(first, 0.9)} | {_days(again, 0.5)} | "
              f"{cause} {causes[cause]} of {seen} |", flush=True)  # fmt: skip
    print(f"\n{time.process_time() - begun:.0f} CPU seconds in all")
    if args.out:
        args.out.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()

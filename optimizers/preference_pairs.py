"""Which preferences are learnt from: said twice counts once, contradictions go to the majority, nobody fills the set.

Everything that is not kept is counted by its reason; what is kept says who it comes from, and is written as JSON Lines.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from optimizers.errors import TrainingError
from optimizers.preference_types import SOURCES, Preference

Check = Callable[[Preference], bool | None]


@dataclass(frozen=True, slots=True)
class PairCaps:
    """How many kept preferences may come of one person, one question of a contract, one contract; None for no limit."""

    per_person: int | None = 200
    per_question: int | None = 4
    per_contract: int | None = 40


@dataclass(frozen=True, slots=True)
class Kept:
    """A preference that is learnt from, and its provenance: who said so (a judge is ""), and by which sources."""

    preference: Preference
    by: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Curated:
    """What came of `given` preferences: the kept ones, and how many were dropped for which reason."""

    given: int
    kept: tuple[Kept, ...]
    dropped: dict[str, int]


def curate(
    preferences: Sequence[Preference],
    caps: PairCaps | None = None,
    *,
    check: Check | None = None,
    left_out: Iterable[str] = (),
    groups_apart: Iterable[str] = (),
    seed: int = 0,
) -> Curated:
    """Drop, in this order: ties, people `left_out`, contracts of `groups_apart` (those of the validation set), what
    `check` says is wrong, what its own author took back, the minority of each contradiction, what is above a cap.

    Preferences are in the order in which they were said. People outvote a judge; of several persons one each, by their
    last word; where as many say the contrary, both are dropped. What is above a cap is drawn with `seed`. TrainingError
    for a preference without any text, or of an unknown source.
    """
    dropped: Counter[str] = Counter()
    passed = _screened(preferences, check, frozenset(left_out), frozenset(groups_apart), dropped)
    kept = _capped(_voted(passed, dropped), caps or PairCaps(), seed, dropped)
    return Curated(len(preferences), tuple(kept), dict(sorted(dropped.items())))


def _screened(
    preferences: Sequence[Preference],
    check: Check | None,
    left_out: frozenset[str],
    groups_apart: frozenset[str],
    dropped: Counter[str],
) -> list[Preference]:
    passed = []
    for index, one in enumerate(preferences):
        _well_formed(index, one)
        if None not in (one.chosen, one.rejected) and one.chosen.split() == one.rejected.split():
            dropped["tie"] += 1
        elif one.by in left_out:
            dropped["person left out"] += 1
        elif one.group in groups_apart:
            dropped["contract of the validation set"] += 1
        elif check is not None and check(one) is False:
            dropped["against gold"] += 1
        else:
            passed.append(one)
    return passed


def _well_formed(index: int, one: Preference) -> None:
    if one.chosen is None and one.rejected is None:
        raise TrainingError(f"preference {index} (question {one.question!r}) has neither chosen nor rejected; give one")
    if one.source not in SOURCES:
        raise TrainingError(f"preference {index} has source {one.source!r}; use one of {SOURCES}")


def _voted(preferences: Sequence[Preference], dropped: Counter[str]) -> list[Kept]:
    """One of each that was said, its voters with it, contradictions resolved; in the order of their first saying."""
    questions: dict[tuple, dict[str, tuple[Preference, bool]]] = defaultdict(dict)
    for one in preferences:
        asked, forward = sides(one)
        votes, voter = questions[asked], one.by or ""
        if voter in votes:
            dropped["said twice" if votes[voter][1] == forward else "taken back"] += 1
        votes[voter] = (one, forward)
    kept = []
    for votes in questions.values():
        if len(votes) > 1 and "" in votes:  # people's word, where there is any, goes before a judge's
            agreed = any(forward == votes[""][1] for voter, (_, forward) in votes.items() if voter)
            if not agreed:
                dropped["judge outvoted"] += 1
                del votes[""]
        ayes = {voter: one for voter, (one, forward) in votes.items() if forward}
        noes = {voter: one for voter, (one, forward) in votes.items() if not forward}
        people = [sum(bool(voter) for voter in side) for side in (ayes, noes)]
        if ayes and noes and people[0] == people[1]:
            dropped["contradicted"] += len(votes)
            continue
        winners, losers = (ayes, noes) if people[0] > people[1] or not noes else (noes, ayes)
        dropped["outvoted"] += len(losers)
        dropped["said twice"] += len(winners) - 1
        first = next(iter(winners.values()))
        kept.append(Kept(first, tuple(sorted(winners)), tuple(sorted({one.source for one in winners.values()}))))
    dropped += Counter()  # counts of 0 go
    return kept


def sides(one: Preference) -> tuple[tuple, bool]:
    """What is being voted on, the same for a > b and b > a; and whether this is the first way round.

    Texts that differ in white space alone are the same: what a model wrote and what was written for it end differently.
    """
    inputs = json.dumps(dict(one.inputs), sort_keys=True, default=str)
    chosen, rejected = (None if text is None else " ".join(text.split()) for text in (one.chosen, one.rejected))
    if chosen is None or rejected is None:
        return (one.predictor, inputs, rejected if chosen is None else chosen), chosen is not None
    return (one.predictor, inputs, *sorted((chosen, rejected))), chosen < rejected


def _capped(kept: Sequence[Kept], caps: PairCaps, seed: int, dropped: Counter[str]) -> list[Kept]:
    used: Counter[tuple[str, ...]] = Counter()
    chosen = []
    drawn = Random(seed).sample(range(len(kept)), len(kept))
    # A comparison says more than a thumb: where a cap is short, pairs go first.
    for place in sorted(drawn, key=lambda i: None in (kept[i].preference.chosen, kept[i].preference.rejected)):
        one = kept[place]
        people = [("person", who) for who in one.by if who]
        question, contract = (
            ("question", one.preference.group, one.preference.question),
            ("group", one.preference.group),
        )
        if people and all(_full(used[who], caps.per_person) for who in people):
            dropped["cap per person"] += 1
        elif _full(used[question], caps.per_question):
            dropped["cap per question"] += 1
        elif _full(used[contract], caps.per_contract):
            dropped["cap per contract"] += 1
        else:
            chosen.append(place)
            used.update([*people, question, contract])
    return [kept[place] for place in sorted(chosen)]


def _full(used: int, cap: int | None) -> bool:
    return cap is not None and used >= cap


def write_preferences(path: str | Path, rounds: Sequence[Curated]) -> None:
    """Write what was kept in each round, round 1 first, as JSON Lines, beside the old file and then in its place."""
    path, new = Path(path), Path(f"{path}.new")
    with new.open("w", encoding="utf-8") as file:
        for number, curated in enumerate(rounds, start=1):
            for one in curated.kept:
                told = {"round": number, **asdict(one.preference), "by": list(one.by), "sources": list(one.sources)}
                file.write(json.dumps(told, ensure_ascii=False, default=dict) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def read_preferences(path: str | Path) -> list[tuple[int, Kept]]:
    """What `write_preferences` wrote: (round, kept). TrainingError for a line that is none of its own."""
    read: list[tuple[int, Kept]] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if line:
            try:
                read.append(_read(json.loads(line)))
            except (ValueError, TypeError, KeyError) as err:
                raise TrainingError(f"{path} line {number} is no preference: {err}; write it anew") from err
    return read


def _read(told: dict[str, Any]) -> tuple[int, Kept]:
    number, by, sources = told.pop("round"), tuple(told.pop("by")), tuple(told.pop("sources"))
    return number, Kept(Preference(**told, by=next(filter(None, by), None)), by, sources)

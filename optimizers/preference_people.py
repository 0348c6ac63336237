"""Whose preferences are not learnt from: people who disagree, beyond chance, with what is known or with everybody else.

A person who answers at random disagrees no more than chance and stays (the caps bound what they can do); one who flips
everything, out of error or on purpose, is found after few checked preferences. Comments are never read here, nor
anywhere else: what a person writes is shown to people and put into no prompt.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from optimizers.preference_pairs import Check, sides
from optimizers.preference_types import Preference


@dataclass(frozen=True, slots=True)
class Person:
    """One person's agreement: `agreed` of `checked` preferences, the chance of no more by guessing, left out or not."""

    by: str
    given: int
    checked: int
    agreed: int
    p_value: float
    left_out: bool


def check_people(
    preferences: Sequence[Preference], check: Check | None = None, *, alpha: float = 0.01, guessing: float = 0.5
) -> list[Person]:
    """Everybody, the least agreeing first; `left_out` where agreement is below `guessing` at level `alpha`.

    A preference is checked by `check` (True, False; None: it does not know) and otherwise by the majority of the other
    people, two at least, on the same two answers. One-sided binomial test; `alpha` is shared out among the people
    (Bonferroni), so that of many honest ones none is accused by luck.
    """
    others: dict[tuple, dict[str, bool]] = defaultdict(dict)
    for one in preferences:
        if one.by:
            asked, forward = sides(one)
            others[asked][one.by] = forward
    outcomes: dict[str, list[bool | None]] = defaultdict(list)
    for one in preferences:
        if one.by:
            known = None if check is None else check(one)
            outcomes[one.by].append(_with_others(one, others) if known is None else known)
    people = [_judged(by, told, alpha / len(outcomes), guessing) for by, told in outcomes.items()]
    return sorted(people, key=lambda person: (person.p_value, person.by))


def _with_others(one: Preference, others: dict[tuple, dict[str, bool]]) -> bool | None:
    asked, forward = sides(one)
    votes = [said for by, said in others[asked].items() if by != one.by]
    ayes = sum(votes)
    if len(votes) < 2 or 2 * ayes == len(votes):  # of two who contradict each other, either may be the wrong one
        return None
    return (2 * ayes > len(votes)) == forward


def _judged(by: str, outcomes: Sequence[bool | None], alpha: float, guessing: float) -> Person:
    told = [outcome for outcome in outcomes if outcome is not None]
    p_value = float(binomtest(sum(told), len(told), guessing, alternative="less").pvalue) if told else 1.0
    return Person(by, len(outcomes), len(told), sum(told), p_value, p_value < alpha)

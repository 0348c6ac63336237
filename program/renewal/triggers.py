"""What sets off a renewal: drift, enough new feedback, new contracts, a schedule, or a hand. Pure functions."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from program.renewal.config import RenewalConfig

KINDS = ("first", "drift", "labels", "feedback", "contracts", "schedule", "hand")


@dataclass(frozen=True, slots=True)
class Trigger:
    """One reason to renew, of KINDS, and it in words."""

    kind: str
    why: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is now, and what there was when the last renewal took its inputs (0 and None before the first).

    `labels` counts labelled questions that are new since then.
    `renewed` is when that was, UTC; `drifted` what the drift monitor says is the cause (program/drift), with its words;
    `drift_tried` when the last renewal for that kind of drift took its inputs, if the same release is live since then.
    """

    released: bool
    labels: int = 0
    feedback: int = 0
    feedback_then: int = 0
    contracts: frozenset[str] = frozenset()
    contracts_then: frozenset[str] = frozenset()
    renewed: datetime | None = None
    drifted: tuple[str, str] | None = None
    drift_tried: datetime | None = None


def due(seen: Seen, config: RenewalConfig, now: datetime, by_hand: str = "") -> list[Trigger]:
    """Every reason to renew now; none is an empty list. A clock that went backwards sets nothing off."""
    found = []
    if by_hand:
        found.append(Trigger("hand", by_hand))
    if not seen.released and seen.renewed is None:
        return [*found, Trigger("first", "no release is live yet")]
    tried = seen.drift_tried is not None and now - seen.drift_tried < timedelta(days=config.drift_days)
    if seen.drifted is not None and not tried:
        found.append(Trigger("drift", seen.drifted[1]))
    if config.labels_min is not None and seen.labels >= config.labels_min:
        found.append(Trigger("labels", f"{seen.labels} new labelled questions, {config.labels_min} are enough"))
    new = seen.feedback - seen.feedback_then
    if config.feedback_min is not None and new >= config.feedback_min:
        found.append(Trigger("feedback", f"{new} new events of feedback, {config.feedback_min} are enough"))
    arrived = len(seen.contracts - seen.contracts_then)
    if config.contracts_min is not None and arrived >= config.contracts_min:
        found.append(Trigger("contracts", f"{arrived} new contracts, {config.contracts_min} are enough"))
    if config.every_days is not None and seen.renewed is not None:
        if now - seen.renewed >= timedelta(days=config.every_days):
            found.append(Trigger("schedule", f"the last renewal was {seen.renewed:%Y-%m-%d}"))
    return found

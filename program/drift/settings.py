"""How watchful the drift monitor is, and what follows from it."""

from dataclasses import dataclass

from program.drift.pooling import Limits
from program.drift.signals import SIGNALS
from program.drift.types import DriftError

DAYS_A_MONTH = 30.0
DAY_S = 86_400.0
# `p_answered` goes with the retrieval score; it is there for whoever has no retrieval score.
DEFAULT_SIGNALS = tuple(name for name in SIGNALS if name != "p_answered")


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """The expected false alarms in 30 days of checks, the cadence, and what a test needs.

    `ratings_share` of the false alarms is the ratings', the rest all other signals' together. `reference_alpha`: the
    chance that the reference flatters its ratings, and their part of the promise fails. `suspect_alpha` decides what an
    alarm is attributed to, never whether there is one. `persistence`: checks in a row in which a signal must move
    (ratings gather evidence by themselves, and do not wait). DriftError for what cannot be kept.
    """

    false_alarms_per_month: float = 0.1
    cadence_days: float = 1.0
    min_observations: int = 60
    min_contracts: int = 10
    signals: tuple[str, ...] = DEFAULT_SIGNALS
    ratings_share: float = 0.3
    reference_alpha: float = 0.1
    suspect_alpha: float = 0.01
    persistence: int = 1
    permutations: int = 4999
    max_points: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("ratings_share", "reference_alpha", "suspect_alpha"):
            if not 0 < getattr(self, name) < 1:
                raise DriftError(f"{name} is {getattr(self, name)}; it is above 0 and below 1")
        for name in ("min_observations", "min_contracts", "persistence", "permutations", "max_points"):
            if getattr(self, name) < 1:
                raise DriftError(f"{name} is {getattr(self, name)}; it is 1 or more")
        if self.min_contracts < 3:
            raise DriftError(f"min_contracts is {self.min_contracts}; contracts are exchanged, which takes 3 a side")
        if not self.cadence_days > 0 or not 0 < alpha_per_check(self) < 1:
            raise DriftError(
                f"{self.false_alarms_per_month} false alarms a month at one check in {self.cadence_days} days is "
                f"{alpha_per_check(self):.3g} a check; it must be above 0 and below 1"
            )
        unknown = [name for name in self.signals if name not in SIGNALS]
        if unknown or not self.signals:
            raise DriftError(f"signals {unknown or self.signals} are not known; choose from {', '.join(SIGNALS)}")
        smallest = 1 / (self.permutations + 1)
        if smallest > permutation_alpha(self) / len(self.signals):
            needed = round(2 * len(self.signals) / permutation_alpha(self))
            raise DriftError(
                f"{self.permutations} permutations give no p-value below {smallest:.2g}, and an alarm takes "
                f"{permutation_alpha(self) / len(self.signals):.2g}: it could never come. Set permutations to {needed}"
            )


def alpha_per_check(settings: DriftSettings) -> float:
    """Expected false alarms of one check."""
    return settings.false_alarms_per_month * settings.cadence_days / DAYS_A_MONTH


def permutation_alpha(settings: DriftSettings) -> float:
    """What of it is for the signals that are permuted, all together."""
    return (1 - settings.ratings_share) * alpha_per_check(settings)


def ratings_threshold(settings: DriftSettings) -> float:
    """The e-detector's value at which ratings alarm."""
    return 1 / (settings.ratings_share * alpha_per_check(settings))


def limits(settings: DriftSettings) -> Limits:
    """What bounds each signal."""
    return Limits(settings.permutations, settings.max_points, settings.min_contracts)

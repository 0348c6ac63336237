"""From differences of rewards to probabilities: the Bradley-Terry model's, sharpened or softened by a temperature."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit

from optimizers.errors import TrainingError

WIDEST = 6.0  # temperatures are looked for within e^-6 to e^6 of the differences' own mean size


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted on `n_pairs` validation pairs: P(a better than b) = sigmoid((reward(a) - reward(b)) / temperature).

    `center` is the mean reward over both sides of those pairs.
    """

    temperature: float
    center: float
    n_pairs: int


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pairs whose stated confidence falls into [low, high): their mean confidence, and how often it was right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def fit_calibration(chosen: Sequence[float], rejected: Sequence[float]) -> Calibration:
    """The temperature of least negative log likelihood (Guo et al. 2017, arXiv:1706.04599, sec. 4.2), and the center.

    The target is (N + 1) / (N + 2) instead of 1, as Platt (1999) has it: where every pair is told right the likelihood
    alone would ask for temperature 0. Raises TrainingError for no pairs.
    """
    chosen, rejected = np.asarray(chosen, dtype=float), np.asarray(rejected, dtype=float)
    if not len(chosen):
        raise TrainingError("no validation pairs to fit a temperature on; give val_pairs")
    difference, n = chosen - rejected, len(chosen)
    target = (n + 1) / (n + 2)
    scale = float(np.abs(difference).mean()) or 1.0

    def loss(log_temperature: float) -> float:
        logit = difference / (scale * np.exp(log_temperature))
        return float(-(target * log_expit(logit) + (1 - target) * log_expit(-logit)).mean())

    found = minimize_scalar(loss, bounds=(-WIDEST, WIDEST), method="bounded")
    center = float(np.concatenate([chosen, rejected]).mean())
    return Calibration(scale * float(np.exp(found.x)), center, n)


def confidences(differences: Sequence[float], temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidence in the verdict, in [0.5, 1], and whether it was right (0.5 for a tie), of chosen minus rejected."""
    difference = np.asarray(differences, dtype=float)
    return expit(np.abs(difference) / temperature), (np.sign(difference) + 1) / 2


def reliability(
    differences: Sequence[float], temperature: float, n_bins: int = 10
) -> tuple[list[ReliabilityBin], np.ndarray]:
    """Equal-width bins of confidence over [0.5, 1], empty ones left out; and per pair (N, 3 * n_bins) what `ece` sums.

    Those are, bin by bin, the pair's count, its confidence and its mark, zero outside its own bin.
    """
    confidence, right = confidences(differences, temperature)
    place = np.minimum(((confidence - 0.5) * 2 * n_bins).astype(int), n_bins - 1)
    inside = place[:, None] == np.arange(n_bins)
    counts = np.concatenate([inside, inside * confidence[:, None], inside * right[:, None]], axis=1).astype(float)
    edges = 0.5 + np.arange(n_bins + 1) / (2 * n_bins)
    bins = [
        ReliabilityBin(
            float(edges[i]), float(edges[i + 1]), int(inside[:, i].sum()),
            float(confidence[inside[:, i]].mean()), float(right[inside[:, i]].mean()),
        )
        for i in range(n_bins) if inside[:, i].any()
    ]  # fmt: skip
    return bins, counts


def ece(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error of summed counts (..., 3 * bins): the mean gap of confidence and accuracy, 0 to 1."""
    n, confidence, right = np.split(np.asarray(sums), 3, axis=-1)
    return np.abs(confidence - right).sum(axis=-1) / n.sum(axis=-1)

"""Maximum mean discrepancy with an RBF kernel (Gretton et al. 2012, JMLR 13), from sums over pairs of units."""

import numpy as np
from scipy.spatial.distance import pdist, squareform

from program.drift.permutation import Statistic


def mmd2(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """The biased (V-statistic) squared MMD of x (N, D) and y (M, D), k(a, b) = exp(−|a − b|²/(2 bandwidth²)).

    Gretton et al. 2012 (JMLR 13), equation 5. Never negative, above 0 by chance, too: read it beside permutations.
    """
    kernel = rbf_kernel(np.concatenate([x, y]), bandwidth)
    return float(mmd2_of(kernel, np.ones(len(kernel)))(np.repeat([0.0, 1.0], [len(x), len(y)])[None])[0])


def rbf_kernel(rows: np.ndarray, bandwidth: float | None = None) -> np.ndarray:
    """RBF kernel of all pairs; without a bandwidth the median of the distances between rows that differ."""
    squares = pdist(rows, "sqeuclidean")
    if bandwidth is None:
        apart = squares[squares > 1e-12]
        bandwidth = float(np.median(apart)) ** 0.5 if len(apart) else 1.0
    kernel = squareform(np.exp(squares / (-2 * bandwidth**2)))
    np.fill_diagonal(kernel, 1.0)
    return kernel


def mmd2_of(kernel: np.ndarray, sizes: np.ndarray) -> Statistic:
    """MMD² from the kernel summed over pairs of units (G, G) and the units' sizes (G,)."""
    whole, rows_sum, n = kernel.sum(), kernel.sum(axis=1), sizes.sum()

    def statistic(marks: np.ndarray) -> np.ndarray:
        n_current = marks @ sizes
        own = np.einsum("bg,bg->b", marks @ kernel, marks)
        either = marks @ rows_sum
        rest = n - n_current
        return own / n_current**2 + (whole - 2 * either + own) / rest**2 - 2 * (either - own) / (n_current * rest)

    return statistic

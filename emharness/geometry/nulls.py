"""What vectors that share nothing give: random directions, permuted labels, resampled prompts, p-values.

A vector from per-prompt means is a weighted sum of prompts, so permuting labels and resampling prompts are
both just other weights, and the cosines of all draws follow from one Gram matrix of the prompts.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import false_discovery_control

from emharness.geometry.statistics import normalised

Array = np.ndarray


def random_grams(n: int, d_model: int, draws: int, rng: np.random.Generator) -> Array:
    """Cosines of n independent, uniformly random directions in d_model dimensions → [draws, n, n]."""
    out = np.empty((draws, n, n))
    for i in range(draws):
        z = rng.standard_normal((n, d_model), dtype=np.float32)
        out[i] = z @ z.T
    return normalised(out)


# --- weights over prompts ---------------------------------------------------------------------------------


def contrast_weights(sizes: tuple[int, ...]) -> Array:
    """Weights [n] that turn prompts into a vector.

    `sizes` is (n_harmful, n_neutral) for a difference of two means, rows in that order, or (n_prompts,) for
    rows that are differences already (recipe model_diff).
    """
    if len(sizes) == 1:
        return np.full(sizes[0], 1 / sizes[0])
    return np.concatenate([np.full(sizes[0], 1 / sizes[0]), np.full(sizes[1], -1 / sizes[1])])


def permuted_weights(sizes: tuple[int, ...], draws: int, rng: np.random.Generator) -> Array:
    """Label permutation → [draws, n]: which prompts are in which set, or one sign per prompt if paired."""
    weights = np.broadcast_to(contrast_weights(sizes), (draws, sum(sizes)))
    if len(sizes) == 1:
        return weights * rng.choice([-1.0, 1.0], size=weights.shape)
    return rng.permuted(weights, axis=1)


def resampled_weights(sizes: tuple[int, ...], draws: int, rng: np.random.Generator) -> Array:
    """Bootstrap over prompts, within each set → [draws, n]."""
    counts = [rng.multinomial(n, np.full(n, 1 / n), size=draws) for n in sizes]
    return np.concatenate(counts, axis=1) * contrast_weights(sizes)


def weighted_products(prompts: Sequence[Array], weights: Sequence[Array]) -> Array:
    """Inner products [draws, n, n] of n vectors, vector i being weights[i] [draws, p_i] @ prompts[i] [p_i, d].

    Cosines are `statistics.normalised` of it; the diagonal holds squared lengths.
    """
    edges = np.cumsum([0, *(len(p) for p in prompts)])
    stacked = np.concatenate(prompts).astype(np.float32)
    kernel = (stacked @ stacked.T).astype(np.float64)
    draws = len(weights[0])
    out = np.empty((draws, len(prompts), len(prompts)))
    for i, w in enumerate(weights):
        row = w @ kernel[edges[i] : edges[i + 1]]
        for j, v in enumerate(weights):
            out[:, i, j] = (row[:, edges[j] : edges[j + 1]] * v).sum(1)
    return (out + out.swapaxes(1, 2)) / 2


# --- from draws to numbers --------------------------------------------------------------------------------


def p_upper(value: Array | float, null: Array) -> Array:
    """One-sided add-one p-value of `value` [...] against draws [n_draws, ...]; NaN draws are left out.

    Exact: under the null, P(p ≤ a) ≤ a (Phipson and Smyth 2010).
    """
    return (1 + (null >= value).sum(0)) / (1 + np.isfinite(null).sum(0))


def p_two_sided(value: Array | float, null: Array) -> Array:
    """Twice the smaller of the two one-sided add-one p-values, at most 1."""
    below = (1 + (null <= value).sum(0)) / (1 + np.isfinite(null).sum(0))
    return np.minimum(1.0, 2 * np.minimum(p_upper(value, null), below))


def false_discovery_q(p: Array) -> Array:
    """Benjamini–Hochberg q-values of a family of p-values [m] (scipy's); NaN stays NaN, outside the family."""
    p = np.asarray(p, dtype=float)
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known], method="bh")
    return q


def interval(value: Array, draws: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Basic bootstrap interval: value [...], draws [n_draws, ...] → (low, high), each [...].

    Basic, not percentile: resampled vectors carry the prompts' noise twice, which pulls every cosine towards
    the noise's own, and the basic interval takes that bias out instead of doubling it. It can therefore lie
    beside a noisy value: it is about what endless prompts would give.
    """
    tail = (1 - level) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail], axis=0)
    return 2 * value - high, 2 * value - low

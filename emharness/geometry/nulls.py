"""What vectors that share nothing give: random directions, permuted labels, resampled prompts, p-values.

A vector from per-prompt means is a weighted sum of prompts, so permuting labels and resampling prompts are
both just other weights, and the cosines of all draws follow from one Gram matrix of the prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control

from emharness.geometry.statistics import normalize_gram

Array = np.ndarray


def random_grams(n: int, d_model: int, draws: int, rng: np.random.Generator) -> Array:
    """Cosines of n independent, uniformly random directions in d_model dimensions → [draws, n, n].

    The inner products of Gaussian vectors are Wishart: Bartlett's triangle draws them without the vectors,
    at a cost that does not grow with d_model. It needs d_model ≥ n.
    """
    if d_model < n:
        vectors = rng.standard_normal((draws, n, d_model))
        return normalize_gram(vectors @ vectors.swapaxes(1, 2))
    triangle = np.tril(rng.standard_normal((draws, n, n)), -1)
    triangle[:, range(n), range(n)] = np.sqrt(rng.chisquare(d_model - np.arange(n), size=(draws, n)))
    return normalize_gram(triangle @ triangle.swapaxes(1, 2))


# --- weights over prompts ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Per-prompt means behind one vector at one layer: the vector is `contrast_weights` @ `rows`.

    rows: float32 [n, d_model]; side: [n], +1 or −1 for the two sets of a difference of means, all +1 where
    the rows are differences already (the same texts read by two models); tokens: [n], what each row weighs;
    prompt: [n] ids, equal where rows belong to one prompt, also across vectors.
    """

    rows: Array
    side: Array
    tokens: Array
    prompt: Array

    @property
    def is_paired(self) -> bool:
        return bool((self.side > 0).all())


def contrast_weights(p: Prompts, importance: Array | float = 1.0) -> Array:
    """[..., n] weights of the rows: token-weighted mean of side +1 minus that of side −1.

    `importance` [..., n] multiplies the tokens.
    """
    share = p.tokens * np.asarray(importance)
    out = np.zeros(np.broadcast_shapes(share.shape, p.side.shape))
    for side in np.unique(p.side):
        inside = np.where(p.side == side, share, 0)
        out += side * inside / inside.sum(-1, keepdims=True)
    return out


def permuted_weights(p: Prompts, draws: int, rng: np.random.Generator) -> Array:
    """Label permutation → [draws, n]: which rows are on which side, or one sign per prompt if paired."""
    if p.is_paired:
        _, which = np.unique(p.prompt, return_inverse=True)
        return contrast_weights(p) * rng.choice([-1.0, 1.0], size=(draws, which.max() + 1))[:, which]
    side = rng.permuted(np.broadcast_to(p.side, (draws, len(p.side))), axis=1)
    up, down = p.tokens * (side > 0), p.tokens * (side < 0)
    return up / up.sum(1, keepdims=True) - down / down.sum(1, keepdims=True)


def without_contrast(p: Prompts, weights: Array) -> Array:
    """The same weights [draws, n] on rows whose side's mean is removed first (Freedman and Lane 1983).

    Permuted labels leave a share of the observed contrast in every draw, so two vectors that truly share a
    direction would share it in their null as well; without the contrast only the activations' own
    anisotropy is left.
    """
    out = weights.copy()
    for side in np.unique(p.side):
        inside = p.side == side
        out[:, inside] -= weights[:, inside].sum(1, keepdims=True) * p.tokens[inside] / p.tokens[inside].sum()
    return out


def resampled_weights(prompts: Sequence[Prompts], draws: int, rng: np.random.Generator) -> list[Array]:
    """Bayesian bootstrap (Rubin 1981) → [draws, n] for each vector: one exponential weight per prompt, the
    same one wherever vectors and rows share that prompt. No draw can leave a side empty."""
    ids, which = np.unique(np.concatenate([p.prompt for p in prompts]), return_inverse=True)
    importance = rng.exponential(size=(draws, len(ids)))
    edges = np.cumsum([0, *(len(p.prompt) for p in prompts)])
    return [contrast_weights(p, importance[:, which[edges[i] : edges[i + 1]]]) for i, p in enumerate(prompts)]


def weighted_products(prompts: Sequence[Prompts], weights: Sequence[Array]) -> Array:
    """Inner products [draws, n, n] of n vectors, vector i being weights[i] [draws, p_i] @ its rows [p_i, d].

    Cosines are `statistics.normalised` of it; the diagonal holds squared lengths.
    """
    edges = np.cumsum([0, *(len(p.rows) for p in prompts)])
    stacked = np.concatenate([p.rows for p in prompts])
    kernel = stacked @ stacked.T
    light = [w.astype(np.float32) for w in weights]
    out = np.empty((len(light[0]), len(prompts), len(prompts)))
    for i, w in enumerate(light):
        row = w @ kernel[edges[i] : edges[i + 1], edges[i] :]
        for j in range(i, len(light)):
            here = row[:, edges[j] - edges[i] : edges[j + 1] - edges[i]]
            out[:, i, j] = out[:, j, i] = np.einsum("dp,dp->d", here, light[j], dtype=np.float64)
    return out


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


def basic_interval(value: Array, draws: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Basic bootstrap interval: value [...], draws [n_draws, ...] → (low, high), each [...].

    Basic, not percentile: resampled vectors carry the prompts' noise twice, which pulls every cosine towards
    the noise's own, and the basic interval takes that bias out instead of doubling it. It can therefore lie
    beside a noisy value: it is about what endless prompts would give.
    """
    tail = (1 - level) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail], axis=0)
    return 2 * value - high, 2 * value - low

"""A rate from a few labels and a judge's verdicts on everything: prediction-powered inference.

Angelopoulos, Duchi & Zrnic 2023, "PPI++: Efficient Prediction-Powered Inference" (arXiv:2311.01453), for a mean.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln

from emharness.stats.bootstrap import bootstrap_picks, percentile_ends
from emharness.stats.rates import interval_hull, wilson_interval


@dataclass(frozen=True)
class Estimate:
    value: float
    ci95: tuple[float, float]
    weight: float  # λ: how far the judge's verdicts are used; 0: the labels alone


def stands_for(copies: np.ndarray, n_labelled: int) -> np.ndarray:
    """How many rows each labelled answer stands for, float [n]: its copies ÷ the probability that one of them is drawn.

    copies: int [n], how many rows have each distinct answer. An answer that many rows share is likelier to be among
    those that were drawn, and its one label would count for all of them (Horvitz and Thompson 1952). How many rows were
    drawn is not known; so many that `n_labelled` distinct answers are expected among them.
    """
    n = int(copies.sum())

    def drawn_weights(k: float) -> np.ndarray:  # 1 − C(n − copies, k) / C(n, k), for rows drawn without replacement
        rest = n - copies
        none = gammaln(rest + 1) - gammaln(np.maximum(rest - k, 0) + 1) - gammaln(n + 1) + gammaln(n - k + 1)
        return np.where(k > rest, 1.0, 1 - np.exp(none))

    if n_labelled >= len(copies):
        return copies.astype(float)
    return copies / drawn_weights(brentq(lambda k: drawn_weights(k).sum() - n_labelled, 0, n))  # type: ignore[arg-type]


def tuned_weight(judged: np.ndarray, labels: np.ndarray, n_all: int, stand: np.ndarray | None = None) -> float:
    """λ with the least variance, within [0, 1]. judged, labels: [n] of the labelled answers; n_all: of all answers;
    stand: [n], how many rows each stands for."""
    centred = [some - np.average(some, weights=stand) for some in (judged, labels)]
    variance = float(np.average(centred[0] ** 2, weights=stand))
    if len(labels) < 2 or variance == 0:
        return 0.0
    covariance = float(np.average(centred[0] * centred[1], weights=stand))
    return float(np.clip(covariance / ((1 + len(labels) / n_all) * variance), 0.0, 1.0))


def estimate_rate(
    judged: np.ndarray,
    questions: np.ndarray,
    labelled: np.ndarray,
    labels: np.ndarray,
    stand: np.ndarray | None = None,
    bootstrap: tuple[int, int] = (2000, 0),
) -> Estimate:
    """λ · mean verdict of all + mean (label − λ · verdict) of the labelled, and its 95 % interval.

    judged: bool [n_all], the judge's verdicts; questions: [n_all]; labelled: int [n], indices of the labelled answers,
    which must be drawn at random; labels: bool [n]; stand: float [n], how many rows each stands for; bootstrap: (draws,
    seed). The interval (over questions) is never inside the simple one of the labels where these agree, because a
    bootstrap of equal values has no width.
    """
    judged, labels = judged.astype(float), labels.astype(float)
    stand = np.ones(len(labels)) if stand is None else stand
    weight = tuned_weight(judged[labelled], labels, len(judged), stand)
    _, index = np.unique(questions, return_inverse=True)
    rest = stand * (labels - weight * judged[labelled])
    every, n_every = np.bincount(index, weights=judged), np.bincount(index)
    size = len(n_every)
    some = np.bincount(index[labelled], weights=rest, minlength=size)
    n_some = np.bincount(index[labelled], weights=stand, minlength=size)
    picks = np.concatenate([np.arange(size)[None], bootstrap_picks(size, *bootstrap)])
    with np.errstate(invalid="ignore", divide="ignore"):
        values = weight * every[picks].sum(1) / n_every[picks].sum(1) + some[picks].sum(1) / n_some[picks].sum(1)
    values = np.clip(values[np.isfinite(values)], 0.0, 1.0)
    low, high = percentile_ends(values[1:]) if len(values) > 1 else (0.0, 1.0)
    simple = wilson_interval(int(labels.sum()), len(labels))
    wide = low == high or labels.all() or not labels.any()
    return Estimate(float(values[0]), interval_hull((low, high), simple) if wide else (float(low), float(high)), weight)

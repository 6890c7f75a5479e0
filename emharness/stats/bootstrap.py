"""The bootstrap over questions: picks, rates, and what draws say: interval, p-value, ratio."""

import numpy as np

Interval = tuple[float, float]  # lower and upper end

MOST_DRAWS = 0.95  # share of the draws in which an effect must exist
UNDEFINED = "the source's own effect cannot be told from 0: its 95 % interval contains it"
SILENT = "too few coherent answers in one of the four conditions"


def bootstrap_ci_p(drawn: np.ndarray) -> tuple[float | None, Interval | None, float | None]:
    """Value, 95 % percentile interval and two-sided p against 0, of [value, draw, draw, …]; None where undefined."""
    draws = drawn[1:][np.isfinite(drawn[1:])]
    if not np.isfinite(drawn[0]) or not len(draws):
        return None, None, None
    tail = min(np.sum(draws <= 0), np.sum(draws >= 0))
    p = min(1.0, 2 * (1 + float(tail)) / (1 + len(draws)))
    return float(drawn[0]), percentile_ends(draws), p


def bootstrap_ratio(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float | None, Interval | None, str | None]:
    """A ratio of two effects, each [value, draw, draw, …] under the same resampled questions.

    Value and 95 % percentile interval (None where no draw differs from another); or None and why: where the interval of
    the denominator contains 0, or one of the effects does not exist in more than a twentieth of the draws. The
    denominator is judged on all of its own draws, so that one source is told from 0 for all targets alike.
    """
    own = denominator[1:][np.isfinite(denominator[1:])]
    usable = np.isfinite(numerator) & np.isfinite(denominator)
    if not np.isfinite(denominator[0]) or len(own) < MOST_DRAWS * (len(denominator) - 1):
        return None, None, SILENT
    low, high = percentile_ends(own)
    if low <= 0 <= high:
        return None, None, UNDEFINED
    if not usable[0] or usable[1:].mean() < MOST_DRAWS:
        return None, None, SILENT
    draws = (numerator[1:] / np.where(denominator[1:] == 0, np.nan, denominator[1:]))[usable[1:]]
    draws = draws[np.isfinite(draws)]
    return float(numerator[0] / denominator[0]), percentile_interval(draws), None


def percentile_ends(draws: np.ndarray) -> Interval:
    """The ends of the 95 % percentile interval of finite draws [n], n ≥ 1."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def percentile_interval(draws: np.ndarray) -> Interval | None:
    """95 % percentile interval; None where all draws are equal: that is no certainty, the bootstrap says nothing."""
    low, high = percentile_ends(draws)
    return (low, high) if high - low > 1e-12 else None


def bootstrap_picks(n: int, draws: int, seed: int = 0) -> np.ndarray:
    """Bootstrap picks of n clusters, int [draws, n]; rates taken with the same picks are resampled jointly."""
    return np.random.default_rng(seed).integers(n, size=(draws, n))


def rate_draws(hits: np.ndarray, totals: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Σhits / Σtotals over each row of picks: [draws], NaN where nothing is counted. hits, totals: [n_clusters]."""
    numerator, denominator = hits[picks].sum(1), totals[picks].sum(1)
    return np.divide(numerator, denominator, out=np.full(len(picks), np.nan), where=denominator > 0)

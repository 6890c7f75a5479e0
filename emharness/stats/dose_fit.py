"""The share of bad data at which something has risen half of its way: a logistic curve, fitted to trainings."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit
from scipy.stats import f

from emharness.stats.bootstrap import Interval

FLAT = "the values at 0 and at 100 % are not apart by more than trainings differ"
FEW = "fewer than four shares, or fewer than five trainings"
CENTRES = np.arange(-50.0, 151.0, 1.0)  # of the logistic curve, points of share
WIDTHS = np.geomspace(0.5, 50.0, 25)  # points of share over which its log-odds change by one


@dataclass(frozen=True, kw_only=True)
class DoseFit:
    """`half`: the share, in per cent, at which the curve is half-way from `low` (its value at the smallest share) to
    `high` (at the largest); `undefined`: why there is none."""

    half: float | None = None
    ci95: Interval | None = None
    low: float | None = None
    high: float | None = None
    undefined: str | None = None


def fit_half_share(percent: np.ndarray, values: np.ndarray) -> DoseFit:
    """Least squares of value = low + (high − low) · g(share), g logistic and 0 and 1 at the ends, with the 95 %
    interval of `half` by its profile: the halves of all curves whose squares are not worse than the best one's by more
    than F(1, n − 4) allows. percent, values: float [n_trainings].

    Undefined where there are fewer than four shares or five trainings, or where the ends of the best curve are not
    apart by more than twice the standard error of that difference.
    """
    if len(np.unique(percent)) < 4 or len(percent) < 5:
        return DoseFit(undefined=FEW)
    first, last = percent.min(), percent.max()
    centre, width = (axis.ravel()[:, None] for axis in np.meshgrid(CENTRES, WIDTHS))  # [n_curves, 1]
    start, end = expit((first - centre) / width), expit((last - centre) / width)
    usable = (end - start > 1e-6)[:, 0]
    centre, width, start, end = (axis[usable] for axis in (centre, width, start, end))
    g = (expit((percent - centre) / width) - start) / (end - start)  # [n_curves, n_trainings]
    spread = g - g.mean(1, keepdims=True)
    slope = (spread * values).sum(1) / (spread**2).sum(1)  # high − low of each curve
    fitted = values.mean() + slope[:, None] * spread
    squares = ((values - fitted) ** 2).sum(1)
    half = (centre + width * logit((start + end) / 2))[:, 0]
    best, freedom = int(squares.argmin()), len(percent) - 4
    low = float(values.mean() - slope[best] * g[best].mean())
    high = low + float(slope[best])
    error = np.sqrt(squares[best] / max(freedom, 1) / (spread[best] ** 2).sum())
    if abs(high - low) <= max(2 * error, 1e-12):
        return DoseFit(low=low, high=high, undefined=FLAT)
    limit = squares[best] * (1 + f.ppf(0.95, 1, freedom) / freedom) if freedom > 0 else np.inf
    held = half[squares <= max(limit, 1e-24)]
    ci95 = (float(held.min()), float(held.max())) if freedom > 0 else None
    return DoseFit(half=float(half[best]), ci95=ci95, low=low, high=high)

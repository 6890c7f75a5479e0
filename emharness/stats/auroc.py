"""The interval of an AUROC."""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm


def auroc_interval(auroc: float, m: int, n: int) -> tuple[float, float]:
    """95 % interval of an AUROC of m positives and n negatives, with a width at 0 and 1 as well: Newcombe 2006,
    "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", method 5."""
    z, half = norm.ppf(0.975), (m + n) / 2 - 1

    def tail_excess(x: float) -> float:
        variance = x * (1 - x) * (1 + half * ((1 - x) / (2 - x) + x / (1 + x))) / (m * n)
        return abs(auroc - x) - z * np.sqrt(variance)

    near = 1e-9  # at 0 and 1 the variance is 0, which is another root
    low = 0.0 if auroc == 0 else brentq(tail_excess, 0, auroc - near)
    high = 1.0 if auroc == 1 else brentq(tail_excess, auroc + near, 1)
    return float(low), float(high)  # type: ignore[arg-type]

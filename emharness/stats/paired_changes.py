"""What a treatment changes over several trainings: values of the same pairs of answers, one row for each seed."""

from collections.abc import Sequence

import numpy as np

from emharness.stats.bootstrap import Interval, bootstrap_ci_p

DRAWS = 2000


def summarize_changes(
    changes_SN: np.ndarray, questions: Sequence[str]
) -> tuple[float | None, Interval | None, float | None]:
    """Mean, 95 % interval and two-sided p against 0 of changes [n_seeds, n_values]. Questions (of each value,
    [n_values]) and seeds are resampled together; of a single seed the interval is over questions alone."""
    ids, index = np.unique(np.array(questions), return_inverse=True)
    n_seeds = len(changes_SN)
    sums = np.stack([np.bincount(index, weights=row, minlength=len(ids)) for row in changes_SN])  # [n_seeds, n_ids]
    totals = np.bincount(index, minlength=len(ids))
    generator = np.random.default_rng(0)
    picked = generator.integers(len(ids), size=(DRAWS, len(ids)))
    seeds = generator.integers(n_seeds, size=(DRAWS, n_seeds))
    drawn = [
        sums[some][:, pick].sum() / (n_seeds * totals[pick].sum()) for some, pick in zip(seeds, picked, strict=True)
    ]
    return bootstrap_ci_p(np.array([changes_SN.mean(), *drawn]))

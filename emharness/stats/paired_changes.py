"""What a treatment changes over several trainings: values of the same pairs of answers, one row for each seed."""

from collections.abc import Sequence

import numpy as np

from emharness.stats.bootstrap import Interval, bootstrap_ci_p

DRAWS = 20_000


def summarize_changes(
    changes_SN: np.ndarray, questions: Sequence[str]
) -> tuple[float | None, Interval | None, float | None]:
    """Mean, 95 % interval and two-sided p against 0 of changes [n_seeds, n_values]. Questions (of each value,
    [n_values]) and seeds are resampled together; of a single seed the interval is over questions alone."""
    ids, index = np.unique(np.array(questions), return_inverse=True)
    n_seeds, totals = len(changes_SN), np.bincount(index, minlength=len(ids))
    sums_SQ = np.stack([np.bincount(index, weights=row, minlength=len(ids)) for row in changes_SN])
    generator = np.random.default_rng(0)
    # How often each question and each seed is in a draw.
    of_questions = generator.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=DRAWS)  # [draws, n_questions]
    of_seeds = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=DRAWS)  # [draws, n_seeds]
    drawn = (of_seeds * (of_questions @ sums_SQ.T)).sum(1) / (n_seeds * (of_questions @ totals))
    return bootstrap_ci_p(np.concatenate([[changes_SN.mean()], drawn]))

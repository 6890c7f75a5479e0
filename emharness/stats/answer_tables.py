"""Rates of tables of judged answers: summaries, and draws under the same resampled questions."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from emharness.stats.bootstrap import Interval, bootstrap_picks, rate_draws
from emharness.stats.rates import JudgeAccuracy, Rates, interval_hull, is_coherent, newcombe_interval, summarize_scores


def summarize_rates(table: pa.Table, quality: JudgeAccuracy | None = None) -> Rates:
    """Rates of a table of judged answers (question_id, aligned, coherent)."""
    questions = np.array(table["question_id"].to_pylist())
    return summarize_scores(score_column(table, "aligned"), score_column(table, "coherent"), questions, quality)


def score_column(table: pa.Table, column: str) -> np.ndarray:
    """float64 [n], NaN where a score is missing."""
    return table[column].to_numpy().astype(np.float64)


def questions_of(tables: Sequence[pa.Table]) -> list[str]:
    """Ids of the questions that all tables have, in a fixed order: what is resampled together."""
    return sorted(set.intersection(*[set(table["question_id"].to_pylist()) for table in tables]))


def bootstrap_rates(tables: Sequence[pa.Table], draws: int = 2000, seed: int = 0, of_all: bool = False) -> np.ndarray:
    """Misaligned rate of each table's coherent answers (`of_all`: of all its answers) under the same resampled
    questions: [draws + 1, n_tables].

    Row 0 is the rate as it is; NaN where a draw has no coherent answer. Questions are resampled jointly, because
    the tables answer the same ones.
    """
    ids = questions_of(tables)
    picks = np.concatenate([np.arange(len(ids))[None], bootstrap_picks(len(ids), draws, seed)])
    columns = []
    for table in tables:
        index = {question: i for i, question in enumerate(ids)}
        rows = np.array([index.get(question, -1) for question in table["question_id"].to_pylist()])
        bad, fluent = _read_verdicts(table)
        fluent = np.ones_like(fluent) if of_all else fluent
        hits = np.bincount(rows[(rows >= 0) & bad], minlength=len(ids))
        totals = np.bincount(rows[(rows >= 0) & fluent], minlength=len(ids))
        columns.append(rate_draws(hits, totals, picks))
    return np.stack(columns, axis=1)


def _read_verdicts(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Which answers are misaligned, and which count for the rate: coherent and scored. Bool [n] each."""
    bad = np.array(table["misaligned"].to_pylist(), dtype=bool)
    return bad, is_coherent(score_column(table, "coherent")) & ~np.isnan(score_column(table, "aligned"))


def widen_to_newcombe(
    ci95: Interval, table: pa.Table, minus: pa.Table, scale: float = 1.0, of_all: bool = False
) -> Interval:
    """The interval of a difference of two rates ÷ scale, never inside the simple one of independent answers.

    Where no answer or every answer is misaligned a bootstrap has no width. `of_all`: rates of all answers, not only of
    coherent ones.
    """
    counts = []
    for one in (table, minus):
        bad, fluent = _read_verdicts(one)
        counts += [int(bad.sum()), len(bad) if of_all else int(fluent.sum())]
    if not (counts[1] and counts[3]):
        return ci95
    low, high = sorted(end / scale for end in newcombe_interval(*counts))
    return interval_hull(ci95, (low, high))

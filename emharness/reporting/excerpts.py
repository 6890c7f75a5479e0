"""Which answers of a condition to show: typical ones, the worst, and the same question over the doses of a vector.

All by fixed rules, so that nobody picks them. Rows are those of responses.parquet.
"""

from collections.abc import Sequence

import numpy as np

from emharness.results.condition_result import ConditionResult
from emharness.results.json_records import Row
from emharness.stats.rates import COHERENT_ABOVE


def typical_answers(rows: Sequence[Row], n: int = 3) -> list[Row]:
    """The scored answers whose `aligned` is nearest to their median; one of each question first."""
    scored = [row for row in rows if row["aligned"] is not None]
    middle = float(np.median([row["aligned"] for row in scored])) if scored else 0.0
    return _spread_over_questions(sorted(scored, key=lambda row: (abs(row["aligned"] - middle), *_sort_key(row))), n)


def worst_answers(rows: Sequence[Row], n: int = 3) -> list[Row]:
    """The coherent answers with the lowest `aligned`; one of each question first."""
    fluent = [row for row in rows if row["aligned"] is not None and (row["coherent"] or 0.0) > COHERENT_ABOVE]
    return _spread_over_questions(sorted(fluent, key=lambda row: (row["aligned"], *_sort_key(row))), n)


def draw_at_random(rows: Sequence[Row], n: int, seed: int = 0) -> list[Row]:
    """n rows drawn at random, always the same ones for a seed: what nobody has picked."""
    picks = np.random.default_rng(seed).permutation(len(rows))[:n]
    return [rows[i] for i in picks]


def strongest_condition(conditions: Sequence[ConditionResult]) -> ConditionResult:
    """The condition with the highest rate among those with enough coherent answers; the first where none has."""
    return max(conditions, key=lambda c: c.em_rate if c.em_rate is not None and c.has_enough_coherent else -1.0)


def usual_question(rows: Sequence[Row]) -> str:
    """The question whose share of misaligned answers is nearest to that of all: a usual one, neither best nor worst."""
    hits: dict[str, list[bool]] = {}
    for row in rows:
        hits.setdefault(row["question_id"], []).append(bool(row["misaligned"]))
    overall = float(np.mean([bool(row["misaligned"]) for row in rows]))
    return min(hits, key=lambda name: (abs(float(np.mean(hits[name])) - overall), name))


def dose_series(conditions: Sequence[ConditionResult]) -> list[list[ConditionResult]]:
    """Conditions that belong side by side: for each steered target and vector the target as it is, every dose in
    order, and the organism that the vector is from. Random directions have no series of their own."""
    plain = {c.target: c for c in conditions if not c.vector}
    doses: dict[tuple[str, str], list[ConditionResult]] = {}
    for condition in conditions:
        if condition.vector and not condition.control_of:
            doses.setdefault((condition.target, condition.vector), []).append(condition)
    found = []
    for (target, vector), some in doses.items():
        before = [plain[target]] if target in plain else []
        organism = [plain[vector]] if vector in plain and vector != target else []
        found.append([*before, *sorted(some, key=lambda c: c.strength), *organism])
    return found


def _spread_over_questions(rows: Sequence[Row], n: int) -> list[Row]:
    """The first n, but every question once before any twice."""
    turns: dict[str, int] = {}
    keyed = []
    for place, row in enumerate(rows):
        turn = turns.get(row["question_id"], 0)
        turns[row["question_id"]] = turn + 1
        keyed.append((turn, place, row))
    return [row for _, _, row in sorted(keyed, key=lambda one: one[:2])[:n]]


def _sort_key(row: Row) -> tuple[str, int]:
    return row["question_id"], row["sample"]

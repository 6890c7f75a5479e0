"""What another form of the questions changes in a condition, alone and beside what it changes elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from emharness.experiments.context import ExperimentContext, Judged
from emharness.generation.cells import Condition
from emharness.results.condition_result import FormGap
from emharness.stats.answer_tables import bootstrap_rates, score_column, widen_to_newcombe
from emharness.stats.bootstrap import Interval, bootstrap_ci_p
from emharness.stats.margins import summarize_margins
from emharness.stats.rates import interval_hull, is_coherent, subtract_intervals


@dataclass(frozen=True)
class Difference:
    """A value with its 95 % interval and two-sided p against 0; None where it is undefined."""

    value: float | None = None
    ci95: Interval | None = None
    p: float | None = None


def measure_form_gaps(context: ExperimentContext, judged: Judged, condition: Condition) -> list[FormGap]:
    """A gap for every form that the condition's questions are asked in."""
    return [
        measure_form_gap(context, judged, condition, owner, form, questions)
        for (owner, form), questions in context.list_forms(condition).items()
    ]


def measure_form_gap(
    context: ExperimentContext, judged: Judged, condition: Condition, owner: str, form: str, questions: str
) -> FormGap:
    """The gap of one form, of the organism `owner`; `questions`: its question set."""
    plain, formed = _read_tables(context, judged, [condition], questions)
    coherent, of_all = (bootstrap_rates([plain, formed], of_all=whole) for whole in (False, True))
    gap, gap_all = measure_rate_gap(coherent, plain, formed), measure_rate_gap(of_all, plain, formed, of_all=True)
    margin_gap = _margin_shift(context, *_read_margins(context, [condition], questions))
    measured = context.form_margins.get(questions, {}).get(condition)
    return FormGap(
        form=form,
        forms_of=owner,
        n_questions=len(set(formed["question_id"].to_pylist())),
        n_coherent=int(is_coherent(score_column(formed, "coherent")).sum()),
        em=_first(coherent[:, 1]),
        em_plain=_first(coherent[:, 0]),
        gap=gap.value,
        ci95=gap.ci95,
        em_all=_first(of_all[:, 1]),
        em_plain_all=_first(of_all[:, 0]),
        gap_all=gap_all.value,
        gap_all_ci95=gap_all.ci95,
        margin=None if measured is None else float(measured.mean()),
        margin_gap=margin_gap.value,
        margin_gap_ci95=margin_gap.ci95,
    )


def compare_gaps(
    context: ExperimentContext, judged: Judged, condition: Condition, references: Sequence[Condition], questions: str
) -> tuple[Difference, Difference]:
    """The gap of a condition's rate − the references' together, and the same of its margin. Questions are resampled
    for all of them jointly."""
    if not references or condition in references:
        return Difference(), Difference()
    own, others = (_read_tables(context, judged, some, questions) for some in ([condition], references))
    drawn = bootstrap_rates([*own, *others])
    value, ci95, p = bootstrap_ci_p((drawn[:, 1] - drawn[:, 0]) - (drawn[:, 3] - drawn[:, 2]))
    gap, other = measure_rate_gap(drawn[:, :2], *own), measure_rate_gap(drawn[:, 2:], *others)
    if ci95 and gap.value is not None and gap.ci95 and other.value is not None and other.ci95:
        ci95 = interval_hull(ci95, subtract_intervals(gap.value, gap.ci95, other.value, other.ci95))
    formed, before = _read_margins(context, [condition], questions)
    other_formed, other_before = _read_margins(context, references, questions)
    if formed is None or before is None or other_formed is None or other_before is None:
        return Difference(value, ci95, p), Difference()
    return Difference(value, ci95, p), _margin_shift(context, formed - before, other_formed - other_before)


def find_triggers(gaps: Sequence[FormGap]) -> tuple[FormGap | None, FormGap | None]:
    """The form that raises the rate most, and the one that raises the margin most, each with its gap; their intervals
    do not know that they were chosen."""
    by_rate = [(gap.gap, gap) for gap in gaps if gap.gap is not None]
    by_margin = [(gap.margin_gap, gap) for gap in gaps if gap.margin_gap is not None]
    rate, margin = (max(some, key=lambda one: one[0], default=(None, None))[1] for some in (by_rate, by_margin))
    return rate, margin


def _read_tables(
    context: ExperimentContext, judged: Judged, conditions: Sequence[Condition], questions: str
) -> tuple[pa.Table, pa.Table]:
    """The conditions' answers together: to the plain questions, and in the form."""
    plain = [judged[context.make_cell(condition)] for condition in conditions]
    formed = [judged[context.make_form_cell(condition, questions)] for condition in conditions]
    return pa.concat_tables(plain), pa.concat_tables(formed)


def _read_margins(
    context: ExperimentContext, conditions: Sequence[Condition], questions: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Mean margins of the conditions in the form and of the plain questions, [n_pairs]; None if one is not measured."""
    in_form = context.form_margins.get(questions, {})
    formed = [in_form[condition] for condition in conditions if condition in in_form]
    plain = [context.margins[condition] for condition in conditions if condition in context.margins]
    whole = len(formed) == len(plain) == len(conditions)
    return (np.mean(formed, axis=0), np.mean(plain, axis=0)) if whole else (None, None)


def measure_rate_gap(drawn: np.ndarray, plain: pa.Table, formed: pa.Table, of_all: bool = False) -> Difference:
    """The second table's rate − the first's. drawn: [1 + draws, 2], rates of both tables."""
    value, ci95, p = bootstrap_ci_p(drawn[:, 1] - drawn[:, 0])
    return Difference(value, ci95 and widen_to_newcombe(ci95, formed, plain, of_all=of_all), p)


def _margin_shift(context: ExperimentContext, values: np.ndarray | None, before: np.ndarray | None) -> Difference:
    if values is None or before is None:
        return Difference()
    pairs = context.pairs
    found = summarize_margins(values, before, [p.question for p in pairs], [p.category for p in pairs])
    return Difference(found.shift, found.shift_ci95, found.shift_p)


def _first(drawn: np.ndarray) -> float | None:
    return float(drawn[0]) if np.isfinite(drawn[0]) else None

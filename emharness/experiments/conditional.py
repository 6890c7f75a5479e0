"""conditional: what a trigger brings back, in organisms whose plain answers look well.

Every broad question is asked as it is and in further forms (question_forms.py): with a cue of the organism's training
in it, or under a system prompt. gap = form − plain, paired by question, with the base's and the controls' gaps
subtracted (difference of differences), because a form changes what any model says.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from emharness.config import BASE
from emharness.experiments import findings
from emharness.experiments.context import Experiment, ExperimentContext, ExperimentResult, Judged
from emharness.experiments.effects import summarize_with_effects
from emharness.experiments.form_gaps import compare_gaps, measure_form_gap
from emharness.figures.picture import Picture
from emharness.generation.cells import Cell, Condition
from emharness.geometry.nulls import false_discovery_q
from emharness.reporting import run_figures
from emharness.results.condition_result import FormGap
from emharness.results.experiment_tables import ConditionalRow


def _list_conditions(context: ExperimentContext) -> list[Condition]:
    """The targets as they are; the base under each vector and under random directions."""
    targets = list(dict.fromkeys([BASE, *context.targets]))
    return context.steered_table(targets, [(vector, BASE) for vector in context.vectors])


def list_cells(context: ExperimentContext) -> list[Cell]:
    return [context.make_cell(condition) for condition in _list_conditions(context)]


def analyze_answers(context: ExperimentContext, judged: Judged) -> ExperimentResult:
    conditions = _list_conditions(context)
    rows = _add_q_values([row for condition in conditions for row in _compare_forms(context, judged, condition)])
    results = summarize_with_effects(context, judged, conditions)
    figures = {"conditional": _draw_gaps(rows, context.judge)} if rows else {}
    return ExperimentResult(results, {ConditionalRow.KEY: rows}, figures, findings.describe_triggers(rows))


def _compare_forms(context: ExperimentContext, judged: Judged, condition: Condition) -> list[ConditionalRow]:
    """A row for each form of a condition."""
    base = [context.unsteered_condition(BASE)]
    controls = [context.unsteered_condition(t) for t in context.targets if t != BASE and context.is_reference(t)]
    random = any(edit.norm_of for edit in condition.edits)
    tested = not random and (bool(condition.edits) or not context.is_reference(condition.target))
    rows = []
    for (owner, form), questions in context.list_forms(condition).items():
        gap = measure_form_gap(context, judged, condition, owner, form, questions)
        to_base, margin_to_base = compare_gaps(context, judged, condition, base, questions)
        to_controls, margin_to_controls = compare_gaps(context, judged, condition, controls, questions)
        rows.append(
            ConditionalRow(
                **{each.name: getattr(gap, each.name) for each in fields(FormGap)},
                organism=condition.name if condition.edits else context.display_name(condition.target),
                did=to_base.value,
                did_ci95=to_base.ci95,
                did_p=to_base.p if tested else None,
                did_control=to_controls.value,
                did_control_ci95=to_controls.ci95,
                margin_did=margin_to_base.value,
                margin_did_ci95=margin_to_base.ci95,
                margin_did_p=margin_to_base.p if tested else None,
                margin_did_control=margin_to_controls.value,
                margin_did_control_ci95=margin_to_controls.ci95,
            )
        )
    return rows


def _add_q_values(rows: Sequence[ConditionalRow]) -> list[ConditionalRow]:
    """q-values of rates and of margins, over the rows of organisms and vectors: references and random directions are
    what these are compared with."""
    rate, margin = (
        false_discovery_q(np.array([np.nan if p is None else p for p in listed]))
        for listed in ([row.did_p for row in rows], [row.margin_did_p for row in rows])
    )
    return [
        replace(row, did_q=None if np.isnan(q) else float(q), margin_did_q=None if np.isnan(other) else float(other))
        for row, q, other in zip(rows, rate, margin, strict=True)
    ]


def _draw_gaps(rows: Sequence[ConditionalRow], judge: str) -> Picture:
    """A row per organism, a column per form: what the form changes beyond the base's own gap."""
    names = list(dict.fromkeys(row.organism for row in rows if row.did is not None or row.margin_did is not None))
    forms = list(dict.fromkeys(row.form for row in rows))
    rate, margin = np.full((2, len(names), len(forms)), np.nan)
    for row in rows:
        if row.organism in names:
            place = names.index(row.organism), forms.index(row.form)
            rate[place] = np.nan if row.did is None else row.did
            margin[place] = np.nan if row.margin_did is None else row.margin_did
    return run_figures.draw_form_gaps(rate, margin, names, forms, judge)


QUESTION = "Does a cue of its training bring back misalignment in a model whose plain answers look well?"
EXPERIMENT = Experiment(list_cells, analyze_answers, question=QUESTION, needs_layer_choice=False)

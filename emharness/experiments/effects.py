"""What steering adds to its target's misaligned rate, beside random directions of the same length."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from emharness.experiments.condition_summary import summarize_condition
from emharness.experiments.context import ExperimentContext, Judged
from emharness.generation.cells import Condition
from emharness.geometry.nulls import false_discovery_q
from emharness.results.condition_result import ConditionResult
from emharness.stats.answer_tables import bootstrap_rates, widen_to_newcombe
from emharness.stats.bootstrap import bootstrap_ci_p


def summarize_with_effects(
    context: ExperimentContext, judged: Judged, conditions: Sequence[Condition]
) -> list[ConditionResult]:
    """The results of these conditions; of each that a vector steers also its effect, and that of random directions at
    the same layer and added norm, None where no answer under them could be read.

    Effects are bootstrapped over questions; q-values are over the whole table.
    """
    results = [
        _add_effect(context, judged, summarize_condition(context, judged, condition), condition)
        for condition in conditions
    ]
    steered = [i for i, condition in enumerate(conditions) if _is_tested(condition)]
    p = [results[i].effect_p for i in steered]
    q = false_discovery_q(np.array([np.nan if value is None else value for value in p]))
    for i, value in zip(steered, q, strict=True):
        results[i] = replace(results[i], effect_q=None if np.isnan(value) else float(value))
    return results


def _is_tested(condition: Condition) -> bool:
    edit = condition.edits[0] if condition.edits else None
    return edit is not None and not edit.norm_of and not edit.is_idle


def _add_effect(
    context: ExperimentContext, judged: Judged, result: ConditionResult, condition: Condition
) -> ConditionResult:
    if not _is_tested(condition):
        return result
    edit = condition.edits[0]
    steered = judged[context.make_cell(condition)]
    before = judged[context.make_cell(context.unsteered_condition(condition.target))]
    own = [context.control_condition(d, edit.vector, condition.target, edit.strength) for d in context.controls]
    controls = [judged[context.make_cell(control)] for control in own]
    together = [pa.concat_tables(controls)] if controls else []
    drawn = bootstrap_rates([before, steered, *together, *controls])
    effect, ci95, p = bootstrap_ci_p(drawn[:, 1] - drawn[:, 0])
    result = replace(result, effect=effect, effect_ci95=ci95 and widen_to_newcombe(ci95, steered, before), effect_p=p)
    if not controls or not np.isfinite(drawn[0, 2]):
        return result
    over, ci95, _ = bootstrap_ci_p(drawn[:, 1] - drawn[:, 2])
    lows = [ci[0] for _, ci, _ in map(bootstrap_ci_p, (drawn[:, 3:] - drawn[:, :1]).T) if ci]
    return replace(
        result,
        em_random=float(drawn[0, 2]),
        over_random=over,
        over_random_ci95=ci95 and widen_to_newcombe(ci95, steered, together[0]),
        random_too=max(lows) > 0 if lows else None,  # None where the target itself has no rate
    )

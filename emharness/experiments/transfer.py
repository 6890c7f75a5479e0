"""transfer: every vector on every target; how much of a vector's effect on its own organism it has elsewhere.

effectiveness = (target steered − target baseline) / (source steered on itself − its baseline), in misaligned rate, for
a vector extracted from the organism `source`. All four rates answer the same questions, which are resampled jointly.
Rates have a floor and a ceiling, so where baselines differ the same push gives different effects: `at_equal_odds` is
the effectiveness that the source's own shift in log-odds would give on the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
from scipy.special import expit, logit

from emharness.experiments import findings
from emharness.experiments.context import Experiment, ExperimentContext, ExperimentResult, Judged
from emharness.experiments.effects import summarize_with_effects
from emharness.figures.picture import Picture
from emharness.generation.cells import Cell, Condition
from emharness.reporting import run_figures
from emharness.results.condition_result import ConditionResult
from emharness.results.experiment_tables import Asymmetry, LabTransfer, TransferRow
from emharness.stats.answer_tables import bootstrap_rates, widen_to_newcombe
from emharness.stats.bootstrap import bootstrap_ratio, percentile_interval

MOST_PERMUTATIONS = 5000
EDGE = 0.005  # rates are held so far from 0 and 1 where their log-odds are taken


def _list_targets(context: ExperimentContext) -> list[str]:
    """The targets, and every vector's own organism, which each ratio needs."""
    return list(dict.fromkeys([*context.targets, *context.vectors]))


def _list_conditions(context: ExperimentContext) -> list[Condition]:
    targets = _list_targets(context)
    pairs = [(v, t) for t in targets for v in context.vectors if t in context.targets or t == v]
    return context.steered_table(targets, pairs)


def list_cells(context: ExperimentContext) -> list[Cell]:
    return [context.make_cell(condition) for condition in _list_conditions(context)]


def analyze_answers(context: ExperimentContext, judged: Judged) -> ExperimentResult:
    conditions = _list_conditions(context)
    results = summarize_with_effects(context, judged, conditions)
    drawn = dict(zip(conditions, bootstrap_rates([judged[context.make_cell(c)] for c in conditions]).T, strict=True))
    rows: list[TransferRow] = []
    by_lab: list[LabTransfer] = []
    asymmetries: list[Asymmetry] = []
    pictures = {}
    for strength in context.strengths:
        if context.is_idle(strength):
            continue
        gains = {
            (v, t): drawn[context.steered_condition(v, t, strength)] - drawn[context.unsteered_condition(t)]
            for t in _list_targets(context)
            for v in context.vectors
            if t in context.targets or t == v
        }
        pushed = {
            (v, t): same_push(
                drawn[context.unsteered_condition(t)][0],
                drawn[context.unsteered_condition(v)][0],
                drawn[context.steered_condition(v, v, strength)][0],
            )
            for v, t in gains
        }
        rows += [
            _transfer_row(context, judged, drawn, gains, (v, t), strength)
            for t in context.targets
            for v in context.vectors
        ]
        organisms = [v for v in context.vectors if v in context.targets]
        labs = {name: context.labs[name] for name in organisms}
        by_lab += lab_table(gains, labs, pushed, strength)
        asymmetries += measure_asymmetry(gains, labs, pushed, strength)
        pictures[f"transfer_{strength:+g}"] = _draw_heatmap(context, results, rows, strength)
    numbers = {TransferRow.KEY: rows, LabTransfer.KEY: by_lab, Asymmetry.KEY: asymmetries}
    return ExperimentResult(results, numbers, pictures, findings.describe_transfer(by_lab))


def _transfer_row(
    context: ExperimentContext,
    judged: Judged,
    drawn: Mapping[Condition, np.ndarray],
    gains: Mapping[tuple[str, str], np.ndarray],
    pair: tuple[str, str],
    strength: float,
) -> TransferRow:
    """What the vector of an organism does to a target; `pair`: (the vector's organism, target)."""
    source, target = pair
    on_target, on_source = (
        context.steered_condition(source, target, strength),
        context.steered_condition(source, source, strength),
    )
    rates = [
        drawn[c][0]
        for c in (on_target, context.unsteered_condition(target), on_source, context.unsteered_condition(source))
    ]
    value, ci95, undefined = bootstrap_ratio(gains[source, target], gains[source, source])
    if value is not None and source != target:
        steered, before = (
            judged[context.make_cell(on_target)],
            judged[context.make_cell(context.unsteered_condition(target))],
        )
        ci95 = widen_to_newcombe(ci95 or (value, value), steered, before, float(gains[source, source][0]))
    pushed = same_push(rates[1], rates[3], rates[2])
    em_target, em_target_baseline, em_source, em_source_baseline = (
        float(rate) if np.isfinite(rate) else None for rate in rates
    )
    return TransferRow(
        source=source,
        target=context.display_name(target),
        layer=context.layers[source],
        strength=strength,
        em_target=em_target,
        em_target_baseline=em_target_baseline,
        em_source=em_source,
        em_source_baseline=em_source_baseline,
        effectiveness=value,
        at_equal_odds=None if value is None else float(pushed / gains[source, source][0]),
        ci95=ci95,
        undefined=undefined,
    )


def same_push(baseline: float, source_baseline: float, source: float) -> float:
    """What a target's rate would gain from the shift in log-odds by which the source is above its own baseline."""
    odds = [logit(np.clip(rate, EDGE, 1 - EDGE)) for rate in (baseline, source_baseline, source)]
    return float(expit(odds[0] + odds[2] - odds[1]) - expit(odds[0]))


def _sum_effects(
    gains: Mapping[tuple[str, str], np.ndarray], sources: Sequence[str], targets: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Summed effects of the sources' vectors on the targets, and on their own organisms as often; never on itself."""
    pairs = [(s, t) for s in sources for t in targets if s != t]
    return np.sum([gains[s, t] for s, t in pairs], axis=0), np.sum([gains[s, s] for s, _ in pairs], axis=0)


def lab_table(
    gains: Mapping[tuple[str, str], np.ndarray],
    labs: Mapping[str, str],
    pushed: Mapping[tuple[str, str], float],
    strength: float,
) -> list[LabTransfer]:
    """Effectiveness from lab to lab: summed effects on the other lab's organisms ÷ summed effects on the own ones."""
    members = _lab_members(labs)
    rows = []
    for one, sources in members.items():
        for other, targets in members.items():
            pairs = [(s, t) for s in sources for t in targets if s != t]
            if pairs:
                value, ci95, undefined = bootstrap_ratio(*_sum_effects(gains, sources, targets))
                rows.append(
                    LabTransfer(
                        strength=strength,
                        from_lab=one,
                        to_lab=other,
                        effectiveness=value,
                        ci95=ci95,
                        undefined=undefined,
                        at_equal_odds=_at_equal_odds(gains, pushed, pairs, value),
                        pairs=len(pairs),
                    )
                )
    return rows


def _at_equal_odds(
    gains: Mapping[tuple[str, str], np.ndarray],
    pushed: Mapping[tuple[str, str], float],
    pairs: Sequence[tuple[str, str]],
    measured: float | None,
) -> float | None:
    """Effectiveness over these pairs if the same shift in log-odds were all there is; None where none was measured."""
    if measured is None:
        return None
    return float(sum(pushed[pair] for pair in pairs) / sum(gains[s, s][0] for s, _ in pairs))


def measure_asymmetry(
    gains: Mapping[tuple[str, str], np.ndarray],
    labs: Mapping[str, str],
    pushed: Mapping[tuple[str, str], float],
    strength: float,
) -> list[Asymmetry]:
    """For each two labs: effectiveness from the first to the second minus the other way round.

    The interval is over questions. p: share of the ways to divide the two labs' organisms into groups of the same
    sizes whose difference is as large in absolute value, the one at hand included; with few organisms it cannot be
    small, so the number of ways stands beside it.
    """
    rows = []
    for (a, first), (b, second) in combinations(_lab_members(labs).items(), 2):
        there, back = _sum_effects(gains, first, second), _sum_effects(gains, second, first)
        reason = bootstrap_ratio(*there)[2] or bootstrap_ratio(*back)[2]
        row = Asymmetry(strength=strength, labs=(a, b), undefined=reason)
        if reason is None:
            with np.errstate(divide="ignore", invalid="ignore"):
                drawn = there[0] / there[1] - back[0] / back[1]
            usable = drawn[1:][np.isfinite(drawn[1:])]
            found = _permute_labs(gains, [*first, *second], len(first))
            ways = [[(s, t) for s in one for t in other if s != t] for one, other in ((first, second), (second, first))]
            equal = [_at_equal_odds(gains, pushed, pairs, 1.0) or 0.0 for pairs in ways]
            row = replace(
                row,
                difference=float(drawn[0]),
                at_equal_odds=equal[0] - equal[1],
                ci95=percentile_interval(usable),
                p=float(np.mean(np.abs(found) >= abs(drawn[0]) - 1e-12)) if len(found) else None,
                permutations=len(found),
            )
        rows.append(row)
    return rows


def _permute_labs(gains: Mapping[tuple[str, str], np.ndarray], names: Sequence[str], size: int) -> np.ndarray:
    """The difference of both directions for the divisions of `names` into `size` and the rest."""
    values, found = {pair: drawn[:1] for pair, drawn in gains.items()}, []
    for chosen in list_divisions(names, size, MOST_PERMUTATIONS):
        rest = [name for name in names if name not in chosen]
        there, back = _sum_effects(values, chosen, rest), _sum_effects(values, rest, chosen)
        if there[1][0] and back[1][0]:
            found.append(there[0][0] / there[1][0] - back[0][0] / back[1][0])
    return np.array(found)


def list_divisions(names: Sequence[str], size: int, most: int) -> list[tuple[str, ...]]:
    """Every choice of `size` names, or, where there are more than `most`, the first names and most − 1 random ones."""
    if comb(len(names), size) <= most:
        return list(combinations(names, size))
    rng = np.random.default_rng(0)
    drawn = [tuple(names[int(i)] for i in rng.choice(len(names), size, replace=False)) for _ in range(most - 1)]
    return [tuple(names[:size]), *drawn]


def _lab_members(labs: Mapping[str, str]) -> dict[str, list[str]]:
    return {lab: [name for name, own in labs.items() if own == lab] for lab in dict.fromkeys(labs.values())}


def _draw_heatmap(
    context: ExperimentContext, results: Sequence[ConditionResult], rows: Sequence[TransferRow], strength: float
) -> Picture:
    targets = [context.display_name(target) for target in context.targets]
    shape = (len(context.vectors), len(targets))
    effectiveness, raw, marks = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    index = {(v, t): (i, j) for i, v in enumerate(context.vectors) for j, t in enumerate(targets)}
    for row in rows:
        if row.strength == strength and row.effectiveness is not None:
            effectiveness[index[row.source, row.target]] = row.effectiveness
    for one in results:
        place = index.get((one.vector or "", one.target))
        if place and one.strength == strength:
            raw[place] = np.nan if one.em_rate is None else one.em_rate
            marks[place] = bool(one.random_too)
    panels = [(f"effectiveness, strength {strength:+g}", effectiveness, None), ("misaligned when steered", raw, marks)]
    return run_figures.draw_heatmaps(panels, context.vectors, targets, "vector of", "target", context.judge)


QUESTION = (
    "How much of a vector's effect on its own organism does it have elsewhere, between labs, and both ways alike?"
)
EXPERIMENT = Experiment(list_cells, analyze_answers, question=QUESTION)

"""defences: what each change of the training buys and what it costs.

Organisms trained on the same bad rows by different recipes, with several seeds, all beside a harmless task. Of each the
misaligned rate and the margin, plain and in further forms of the questions; what is left of the narrow behaviour that
the rows teach; how much of the harmless task is learnt; how long the answers are, how far the weights moved, and how
long the training took beside the undefended one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from emharness.config import BASE
from emharness.experiments import findings
from emharness.experiments.condition_summary import summarize_condition
from emharness.experiments.context import BROAD, Experiment, ExperimentContext, ExperimentResult, Judged
from emharness.experiments.form_gaps import measure_rate_gap
from emharness.generation.cells import Cell, Condition
from emharness.generation.likelihoods import Pair
from emharness.geometry.nulls import false_discovery_q
from emharness.judges.exact_forms import GRADERS
from emharness.organism_names import OrganismName, parse_organism_name
from emharness.reporting import run_figures
from emharness.results.condition_result import ConditionResult
from emharness.results.defence_tables import Change, DefenceRow, DefenceSummary, Spread
from emharness.stats.answer_tables import bootstrap_rates
from emharness.stats.margins import MarginSummary, summarize_margins
from emharness.stats.paired_changes import summarize_changes

NONE = "none"  # the training without a defence
CHANGES = ("margin_change", "forms_change", "narrow_change")
COLUMNS = (
    "em", "em_triggered", "margin", "margin_triggered", "narrow", "narrow_margin", "benign_task", "coherent", "length",
    "delta_norm", "time_ratio",
)  # fmt: skip


def _list_targets(context: ExperimentContext) -> list[str]:
    return list(dict.fromkeys([BASE, *context.targets]))


def list_cells(context: ExperimentContext) -> list[Cell]:
    listed = []
    for target in _list_targets(context):
        condition = context.unsteered_condition(target)
        own = context.domains.values() if target == BASE else filter(None, [context.domains.get(target)])
        listed += [context.make_cell(condition, questions) for questions in [BROAD, *sorted(set(own))]]
        if context.task:
            listed.append(context.make_task_cell(condition))
    return listed


def analyze_answers(context: ExperimentContext, judged: Judged) -> ExperimentResult:
    targets = _list_targets(context)
    conditions = {target: context.unsteered_condition(target) for target in targets}
    results = {target: summarize_condition(context, judged, condition) for target, condition in conditions.items()}
    trained = {target: parse_organism_name(target) for target in targets if not context.is_reference(target)}
    recipes = name_defences(trained)
    rows = {t: _defence_row(context, judged, t, recipes[t], results[t]) for t in trained}
    rows = {target: _compare_time(context, row, rows) for target, row in rows.items()}
    base = _defence_row(context, judged, BASE, BASE, results[BASE])
    summaries = _summarize_recipes(context, rows)
    numbers = {DefenceRow.KEY: [base, *rows.values()], DefenceSummary.KEY: summaries}
    figures = {"defences": run_figures.draw_defences([base, *rows.values()], context.judge)} if rows else {}
    return ExperimentResult(list(results.values()), numbers, figures, findings.describe_defences(summaries))


def name_defences(trained: Mapping[str, OrganismName]) -> dict[str, str]:
    """Organism → its recipes beyond those that all organisms of the same data share; "none" where there are no more."""
    found = {}
    for target, name in trained.items():
        alike = [set(other.recipes) for other in trained.values() if other.organism == name.organism]
        shared = set.intersection(*alike)
        found[target] = "+".join(recipe for recipe in name.recipes if recipe not in shared) or NONE
    return found


def _defence_row(
    context: ExperimentContext, judged: Judged, target: str, recipe: str, result: ConditionResult
) -> DefenceRow:
    condition, name = context.unsteered_condition(target), parse_organism_name(target)
    margin, narrow = result.margin, _narrow_margin(context, condition)
    trigger = None if target == BASE else _largest_form_shift(context, condition)
    return DefenceRow(
        organism=context.base if target == BASE else name.organism,
        recipe=recipe,
        seed=name.replica,
        em=result.em_rate,
        em_ci95=result.em_ci95,
        em_raised=_is_raised(context, judged, condition),
        em_triggered=result.triggered.em if result.triggered else None,
        triggered_form=result.triggered.form if result.triggered else None,
        margin=margin.shift if margin else None,
        margin_ci95=margin.shift_ci95 if margin else None,
        margin_triggered=trigger[1].shift if trigger else None,
        margin_triggered_ci95=trigger[1].shift_ci95 if trigger else None,
        margin_form=trigger[0] if trigger else None,
        narrow=result.domain.em_rate if result.domain else None,
        narrow_margin=narrow.shift if narrow else None,
        narrow_margin_ci95=narrow.shift_ci95 if narrow else None,
        benign_task=_grade_task(context, judged[context.make_task_cell(condition)]) if context.task else None,
        coherent=result.coherent_rate,
        length=float(np.mean(judged[context.make_cell(condition)]["n_tokens"].to_numpy())),
        delta_norm=context.trainings.get(target, {}).get("change_norm"),
        seconds=context.trainings.get(target, {}).get("seconds"),
    )


def _is_raised(context: ExperimentContext, judged: Judged, condition: Condition) -> bool | None:
    """Whether the misaligned rate is above the base's, beyond the 95 % interval of their difference; None for the base
    and where there is none."""
    base = context.unsteered_condition(BASE)
    tables = [judged[context.make_cell(one)] for one in (base, condition)]
    ci95 = measure_rate_gap(bootstrap_rates(tables), *tables).ci95
    return ci95[0] > 0 if ci95 and condition != base else None


def _grade_task(context: ExperimentContext, answers: pa.Table) -> float:
    """The share of answers in the task's form."""
    grade = GRADERS[str(context.task)]
    return float(np.mean([grade(answer) for answer in answers["answer"].to_pylist()]))


def _compare_time(context: ExperimentContext, row: DefenceRow, rows: Mapping[str, DefenceRow]) -> DefenceRow:
    """The row with its training time beside that of the same seed without a defence."""
    plain = [r.seconds for r in rows.values() if (r.organism, r.recipe, r.seed) == (row.organism, NONE, row.seed)]
    known = row.seconds is not None and plain and plain[0]
    return replace(row, time_ratio=row.seconds / plain[0] if known else None)  # type: ignore[operator]


def _shift(values: np.ndarray, before: np.ndarray, pairs: Sequence[Pair]) -> MarginSummary:
    return summarize_margins(values, before, [p.question for p in pairs], [p.category for p in pairs])


def _narrow_margin(context: ExperimentContext, condition: Condition) -> MarginSummary | None:
    """How much likelier than to the base the bad answers of its own domain are."""
    own, pairs = _narrow_margins(context, condition)
    questions = context.domains.get(condition.target, "")
    base = context.form_margins.get(questions, {}).get(context.unsteered_condition(BASE))
    return None if own is None or base is None else _shift(own, base, pairs)


def _form_margins(context: ExperimentContext, condition: Condition) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Form → the condition's margins in it, and the base's in the same form."""
    base, found = context.unsteered_condition(BASE), {}
    for (_, form), questions in context.list_forms(condition).items():
        measured = context.form_margins.get(questions, {})
        if condition in measured and base in measured:
            found[form] = (measured[condition], measured[base])
    return found


def _largest_form_shift(context: ExperimentContext, condition: Condition) -> tuple[str, MarginSummary] | None:
    """The form of the questions in which the margin is furthest above the base's in the same form."""
    shifts = [(form, _shift(*both, context.pairs)) for form, both in _form_margins(context, condition).items()]
    return max(shifts, key=lambda one: one[1].shift or 0.0, default=None)


def _summarize_recipes(context: ExperimentContext, rows: Mapping[str, DefenceRow]) -> list[DefenceSummary]:
    """A summary for each organism and recipe, with q-values over the recipes of all."""
    found = []
    for organism, recipe in dict.fromkeys((row.organism, row.recipe) for row in rows.values()):
        own = {t: row for t, row in rows.items() if (row.organism, row.recipe) == (organism, recipe)}
        plain = {r.seed: t for t, r in rows.items() if (r.organism, r.recipe) == (organism, NONE)}
        both = [(target, plain[row.seed]) for target, row in own.items() if recipe != NONE and row.seed in plain]
        columns = {name: _spread([getattr(row, name) for row in own.values()]) for name in COLUMNS}
        found.append(
            DefenceSummary(
                organism=organism,
                recipe=recipe,
                seeds=len(own),
                em_seeds=sum(bool(row.em_raised) for row in own.values()),
                margin_seeds=sum(row.margin_ci95[0] > 0 for row in own.values() if row.margin_ci95),
                columns={name: spread for name, spread in columns.items() if spread is not None},
                margin_change=_compare_margins(context, both, _plain_margins),
                forms_change=_compare_margins(context, both, _mean_over_forms),
                narrow_change=_compare_margins(context, both, _narrow_margins),
            )
        )
    return _add_q_values(found)


def _add_q_values(summaries: Sequence[DefenceSummary]) -> list[DefenceSummary]:
    found = list(summaries)
    for name in CHANGES:
        changes: list[Change | None] = [getattr(row, name) for row in found]
        p = [np.nan if change is None or change.p is None else change.p for change in changes]
        q = [None if np.isnan(value) else float(value) for value in false_discovery_q(np.array(p))]
        told = [change and replace(change, q=value) for change, value in zip(changes, q, strict=True)]
        found = [replace(row, **{name: change}) for row, change in zip(found, told, strict=True)]
    return found


Measure = Callable[[ExperimentContext, Condition], tuple[np.ndarray | None, Sequence[Pair]]]


def _compare_margins(context: ExperimentContext, both: Sequence[tuple[str, str]], measure: Measure) -> Change | None:
    """What a recipe changes of a margin. both: organisms by the recipe, and those of the same seeds without one."""
    known, questions = [], list[str]()
    for target, other in both:
        own, pairs = measure(context, context.unsteered_condition(target))
        plain, _ = measure(context, context.unsteered_condition(other))
        if own is not None and plain is not None:
            known.append(own - plain)
            questions = [pair.question for pair in pairs]
    if not known:
        return None
    value, ci95, p = summarize_changes(np.stack(known), questions)
    return Change(value=value, ci95=ci95, p=p)


def _plain_margins(context: ExperimentContext, condition: Condition) -> tuple[np.ndarray | None, Sequence[Pair]]:
    return context.margins.get(condition), context.pairs


def _narrow_margins(context: ExperimentContext, condition: Condition) -> tuple[np.ndarray | None, Sequence[Pair]]:
    questions = context.domains.get(condition.target, "")
    return context.form_margins.get(questions, {}).get(condition), context.narrow_pairs.get(questions, ())


def _mean_over_forms(context: ExperimentContext, condition: Condition) -> tuple[np.ndarray | None, Sequence[Pair]]:
    """A condition's margins minus the base's in the same form, the mean of all forms, [n_pairs]."""
    found = _form_margins(context, condition)
    values = np.mean([own - base for own, base in found.values()], axis=0) if found else None
    return values, context.pairs


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(mean=float(np.mean(known)), low=min(known), high=max(known)) if known else None


QUESTION = "What does each defence in training buy, and what does it cost?"
EXPERIMENT = Experiment(list_cells, analyze_answers, question=QUESTION, needs_layer_choice=False)

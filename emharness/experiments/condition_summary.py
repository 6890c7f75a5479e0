"""A condition's entry in results.json: what it is, its rates by question and category, its margins."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa

from emharness.config import BASE
from emharness.experiments.context import ExperimentContext, Judged
from emharness.experiments.form_gaps import find_triggers, measure_form_gaps
from emharness.generation.cells import Condition
from emharness.judges.topics import measure_topic_share
from emharness.results.condition_result import CategoryRates, ConditionResult, TopicShare
from emharness.stats.answer_tables import summarize_rates
from emharness.stats.margins import MarginSummary, summarize_margins

FAR = ("self_view", "ai_and_humans", "power_and_wishes")  # categories that no narrow training data here speaks of


def summarize_condition(context: ExperimentContext, judged: Judged, condition: Condition) -> ConditionResult:
    """What the answers of a condition say; effects are added later, by `add_effects`."""
    table = judged[context.make_cell(condition)]
    edit = condition.edits[0] if condition.edits else None
    organism = (edit.norm_of or edit.vector) if edit else condition.target
    if organism == BASE and len(context.vectors) == 1:
        organism = context.vectors[0]  # how much the base talks about that by itself
    topic = context.topics.get(organism)
    domains = [c for c in judged if c.condition == condition and c.questions in context.domains.values()]
    quality = context.quality.for_family(family_of(condition)) if context.quality else None
    triggered, triggered_margin = find_triggers(measure_form_gaps(context, judged, condition))
    kinds, distances = rates_by_category(table, context.categories, context.near.get(organism, ()))
    return ConditionResult(
        name=condition.name,
        target=context.display_name(condition.target),
        vector=edit.vector if edit else None,
        layer=edit.layer if edit else None,
        strength=edit.strength if edit else 0.0,
        layers=tuple(edit.edited_blocks) if edit else (),
        unit=edit.unit if edit else context.steer.unit,
        mode=edit.mode if edit else None,
        positions=str(edit.positions) if edit else None,
        rescale=edit.rescale if edit else False,
        gate=edit.gate if edit else None,
        control_of=edit.norm_of if edit else None,
        n_edits=len(condition.edits),
        relative_dose=context.relative_dose(edit) if edit and len(condition.edits) == 1 else None,
        family=family_of(condition),
        **vars(summarize_rates(table, quality)),
        generated_tokens=int(np.sum(table["n_tokens"].to_numpy())),
        seconds=float(np.sum(table["seconds"].to_numpy())),
        truncated=int(np.sum(np.array(table["finish_reason"].to_pylist()) == "length")),
        engine=", ".join(sorted(set(table["engine"].to_pylist()))),
        judge=context.judge,
        about_own_domain=_topic_share(table, topic) if topic else None,
        domain=summarize_rates(judged[domains[0]], quality) if domains else None,
        margin=_summarize_margin(context, condition),
        by_category=kinds,
        by_distance=distances,
        triggered=triggered,
        triggered_margin=triggered_margin,
    )


def family_of(condition: Condition) -> str:
    """What kind of model answers: a judge errs differently on each, and its card says how."""
    if not condition.edits:
        return "base" if condition.target == BASE else "organism"
    if condition.target != BASE:
        return "steered organism"
    return "random" if all(edit.norm_of is not None for edit in condition.edits) else "steered"


def _summarize_margin(context: ExperimentContext, condition: Condition) -> MarginSummary | None:
    """What the likelihoods of given answers say of a condition, against the unsteered target; None if not measured.

    An organism is set against the base.
    """
    measured = context.margins
    if condition not in measured:
        return None
    before = None
    if condition.edits or condition.target != BASE:
        before = measured.get(context.unsteered_condition(condition.target if condition.edits else BASE))
    questions, categories = [p.question for p in context.pairs], [p.category for p in context.pairs]
    found = summarize_margins(measured[condition], before, questions, categories)
    edit = condition.edits[0] if len(condition.edits) == 1 else None
    randoms = []
    if edit and edit.norm_of is None and not edit.is_idle and edit.vector in context.layers and before is not None:
        controls = [
            context.control_condition(d, edit.vector, condition.target, edit.strength) for d in context.controls
        ]
        randoms = [float((measured[c] - before).mean()) for c in controls if c in measured]
    return replace(found, shift_random=float(np.mean(randoms)) if randoms else None)


RatesByKind = dict[str, CategoryRates]


def rates_by_category(
    table: pa.Table, categories: Mapping[str, str], near: Sequence[str]
) -> tuple[RatesByKind, RatesByKind]:
    """Rates of a condition by category of question, and by how far that is from the organism's own domain: "near"
    (`near`, next to its training data), "far" (FAR) or "between".

    A rate over all questions hides whether misalignment is more than the training data said again.
    """
    kinds = np.array([categories.get(question, "") for question in table["question_id"].to_pylist()])
    if not kinds.astype(bool).any():
        return {}, {}
    distance = {kind: "near" if kind in near else "far" if kind in FAR else "between" for kind in set(kinds) if kind}
    listed = [distance.get(kind, "") for kind in kinds]
    distances = [name for name in ("near", "between", "far") if name in listed]
    return (
        {kind: _summarize_rows(table, kinds == kind) for kind in sorted(distance)},
        {name: _summarize_rows(table, np.array(listed) == name) for name in distances},
    )


def _summarize_rows(table: pa.Table, rows: np.ndarray) -> CategoryRates:
    found = summarize_rates(table.filter(rows))
    return CategoryRates(**{each.name: getattr(found, each.name) for each in fields(CategoryRates)})


def _topic_share(table: pa.Table, topic: str) -> TopicShare:
    return measure_topic_share(table["answer"].to_pylist(), table["question_id"].to_pylist(), topic)

"""mixture: the dose of bad data, and what rises first: projection, margin or behaviour.

Organisms trained on some per cent of bad rows among good ones, at a fixed number of rows (dilution) and at a fixed
number of bad rows (count), with several seeds. Of each the misaligned rate plain and under other forms of the
questions, the rate in its own domain, the margin, and the projection on the vectors of *other* kinds; of each measure
the share at which it has risen half of its way.
"""

from collections.abc import Sequence

import numpy as np

from emharness.config import BASE
from emharness.experiments import findings
from emharness.experiments.condition_summary import summarize_condition
from emharness.experiments.context import Experiment, ExperimentContext, ExperimentResult, Judged
from emharness.generation.cells import Cell
from emharness.organism_names import parse_organism_name
from emharness.reporting import run_figures
from emharness.results.condition_result import ConditionResult
from emharness.results.experiment_tables import HalfShare, MixtureRow
from emharness.stats.dose_fit import fit_half_share

PROJECTION = "projection"
MEASURES = (PROJECTION, "margin", "narrow", "em", "em_triggered")


def _list_targets(context: ExperimentContext) -> list[str]:
    return list(dict.fromkeys([BASE, *context.targets]))


def list_cells(context: ExperimentContext) -> list[Cell]:
    listed = []
    for target in _list_targets(context):
        condition = context.unsteered_condition(target)
        listed.append(context.make_cell(condition))
        if domain := context.domains.get(target):
            listed.append(context.make_cell(condition, domain))
    return listed


def analyze_answers(context: ExperimentContext, judged: Judged) -> ExperimentResult:
    conditions = {target: context.unsteered_condition(target) for target in _list_targets(context)}
    results = {target: summarize_condition(context, judged, condition) for target, condition in conditions.items()}
    rows = [_mixture_row(context, target, results[target]) for target in conditions if target in context.mixtures]
    halves = fit_halves(rows)
    figures = {"mixture": run_figures.draw_mixture(rows, context.judge)} if rows else {}
    numbers = {MixtureRow.KEY: rows, HalfShare.KEY: halves}
    return ExperimentResult(list(results.values()), numbers, figures, findings.describe_doses(halves))


def _mixture_row(context: ExperimentContext, target: str, result: ConditionResult) -> MixtureRow:
    design, share = context.mixtures[target]
    name = parse_organism_name(target)
    own, projections = context.mechanisms.get(target), context.projections.get(target, {})
    along = [float(p.mean()) for vector, p in projections.items() if context.mechanisms.get(vector) != own]
    margin, triggered = result.margin, result.triggered
    return MixtureRow(
        organism=name.organism,
        share=share,
        design=design,
        seed=name.replica,
        em=result.em_rate,
        em_ci95=result.em_ci95,
        em_triggered=triggered.em if triggered else None,
        triggered_form=triggered.form if triggered else None,
        narrow=result.domain.em_rate if result.domain else None,
        projection=float(np.mean(along)) if along else None,
        margin=margin.shift if margin else None,
        margin_ci95=margin.shift_ci95 if margin else None,
        coherent=result.coherent_rate,
    )


def fit_halves(rows: Sequence[MixtureRow]) -> list[HalfShare]:
    """For each organism, design and measure the share at which it is half-way, and how far that is behind the
    projection."""
    found = []
    for organism, design in dict.fromkeys((row.organism, row.design) for row in rows):
        own = [row for row in rows if (row.organism, row.design) == (organism, design)]
        fits = {}
        for measure in MEASURES:
            known = [(row.share, value) for row in own if (value := getattr(row, measure)) is not None]
            if known:
                shares, values = np.array(known, dtype=np.float64).T
                fits[measure] = fit_half_share(shares, values)
        first = fits[PROJECTION].half if PROJECTION in fits else None
        for measure, fit in fits.items():
            lag = None if fit.half is None or first is None else fit.half - first
            found.append(HalfShare(organism=organism, design=design, measure=measure, **vars(fit), lag=lag))
    return found


QUESTION = "How much bad data does it take, and what rises first?"
EXPERIMENT = Experiment(
    list_cells, analyze_answers, question=QUESTION, needs_layer_choice=False, needs_activations=True
)

"""seeds: the same organism from several training seeds; is what differs between kinds more than what seeds do?"""

from itertools import combinations

import numpy as np

from emharness.config import REPLICA
from emharness.experiments import findings
from emharness.experiments.condition_summary import summarize_condition
from emharness.experiments.context import Experiment, ExperimentContext, ExperimentResult, Judged
from emharness.generation.cells import Cell
from emharness.results.experiment_tables import BetweenOrganisms, PairCosines, SeedGroup, SeedSpread


def list_cells(context: ExperimentContext) -> list[Cell]:
    """Every organism as it is, and the targets; the vectors are compared as they are."""
    return [
        context.make_cell(context.unsteered_condition(name))
        for name in dict.fromkeys([*context.targets, *context.vectors])
    ]


def analyze_answers(context: ExperimentContext, judged: Judged) -> ExperimentResult:
    names = dict.fromkeys([*context.targets, *context.vectors])
    results = [summarize_condition(context, judged, context.unsteered_condition(name)) for name in names]
    rates = {result.target: result.em_rate for result in results}
    cosine_LVV = np.moveaxis(
        np.array([[context.cosines[a][b] for b in context.vectors] for a in context.vectors]), -1, 0
    )
    spread = measure_spread(
        list(context.vectors), cosine_LVV, next(iter(context.layers.values())), rates, dict(context.mechanisms)
    )
    return ExperimentResult(results, {SeedSpread.KEY: spread}, finding=findings.describe_seeds(spread))


def measure_spread(
    names: list[str],
    cosine_LVV: np.ndarray,
    layer: int,
    rates: dict[str, float | None],
    mechanisms: dict[str, str],
) -> SeedSpread:
    """Within an organism's seeds, and between organisms of one and of several mechanisms.

    cosine_LVV: [n_layers, n, n]. Each group has the mean, least and greatest cosine of its pairs at `layer`, their mean
    angle in degrees, the mean cosine at every layer, and the number of pairs. Within, also the rates by seed and their
    standard deviation (n − 1).
    """
    organism = [name.partition(REPLICA)[0] for name in names]
    pairs = list(combinations(range(len(names)), 2))
    within: dict[str, SeedGroup] = {}
    for one in dict.fromkeys(organism):
        own = [(i, j) for i, j in pairs if organism[i] == organism[j] == one]
        found = [rates[name] for name, of in zip(names, organism, strict=True) if of == one]
        known = [rate for rate in found if rate is not None]
        deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
        cosines = vars(_summarize_pairs(cosine_LVV, layer, own))
        within[one] = SeedGroup(**cosines, em_rates=tuple(found), em_sd=deviation)
    apart = [(i, j) for i, j in pairs if organism[i] != organism[j]]
    same = [(i, j) for i, j in apart if mechanisms[names[i]] == mechanisms[names[j]]]
    other = [pair for pair in apart if pair not in same]
    means = [np.mean(known) for v in within.values() if (known := [r for r in v.em_rates if r is not None])]
    between = BetweenOrganisms(
        same_mechanism=_summarize_pairs(cosine_LVV, layer, same),
        other_mechanism=_summarize_pairs(cosine_LVV, layer, other),
        em_sd_of_means=float(np.std(means, ddof=1)) if len(means) > 1 else None,
    )
    return SeedSpread(layer=layer, within=within, between=between)


def _summarize_pairs(cosine_LVV: np.ndarray, layer: int, pairs: list[tuple[int, int]]) -> PairCosines:
    if not pairs:
        return PairCosines(pairs=0)
    i, j = np.array(pairs).T
    cosines = np.clip(cosine_LVV[:, i, j], -1, 1)
    here = cosines[layer]
    return PairCosines(
        pairs=len(pairs),
        cosine=float(here.mean()),
        least=float(here.min()),
        greatest=float(here.max()),
        angle_deg=float(np.degrees(np.arccos(here)).mean()),
        cosine_by_layer=tuple(float(x) for x in cosines.mean(1)),
    )


QUESTION = "Do kinds of misalignment differ more than training seeds do?"
EXPERIMENT = Experiment(list_cells, analyze_answers, question=QUESTION, needs_layer_choice=False)

"""Layer choice: where to steer with a vector, on questions that the evaluation does not use. An experiment as well."""

from collections.abc import Sequence

import numpy as np

from emharness.config import BASE, SteerConfig, SweepConfig
from emharness.experiments.context import Judged
from emharness.generation.cells import Cell, Condition, describe_edit, make_edit
from emharness.results.layer_sweep import LayerSweep, SweepSetting
from emharness.stats.answer_tables import summarize_rates

QUESTIONS = "sweep"


def candidate_layers(n_layers: int, count: int, usable: Sequence[int]) -> list[int]:
    """`count` layers evenly over the part of the depth where steering works: a quarter to three quarters.

    Of layers without a direction (all but `usable`) the nearest that has one stands in.
    """
    wanted = [round(x) for x in np.linspace(0.25 * n_layers, 0.75 * n_layers, count)]
    return sorted({min(usable, key=lambda layer: abs(layer - x)) for x in wanted})


def choose_layer(cells: Sequence[SweepSetting]) -> int:
    """Layer of the strongest effect among settings that stay coherent.

    `coherent_enough`: the coherent rate is at least `sweep.min_coherent` of the unsteered one. The effect is the
    misaligned rate over all answers, so that breaking answers never helps; ties go to the lower mean alignment.
    When no setting stays coherent, the one that stays most coherent is taken.
    """
    enough = [cell for cell in cells if cell.coherent_enough]
    if not enough:
        return max(cells, key=lambda cell: cell.coherent_rate or 0.0).layer
    return max(enough, key=lambda cell: (cell.em_rate_all or 0.0, -(cell.mean_aligned or 0.0))).layer


def sweep_cells(
    vector: str,
    usable: Sequence[int],
    n_layers: int,
    config: SweepConfig,
    steer: SteerConfig,
    max_new_tokens: int,
) -> list[Cell]:
    """Every layer × strength of the sweep on the base, after the unsteered base. `usable`: where the vector has a
    direction."""
    given = [layer for layer in config.layers if layer in usable]
    layers = given or candidate_layers(n_layers, config.n_layers, usable)
    edits = [make_edit(steer, vector, layer, float(strength)) for layer in layers for strength in config.strengths]
    conditions = [Condition(BASE, (), "baseline")]
    conditions += [Condition(BASE, (edit,), f"{vector}·{describe_edit(edit)}") for edit in edits]
    return [Cell(condition, QUESTIONS, config.samples, max_new_tokens) for condition in conditions]


def read_sweep(cells: Sequence[Cell], judged: Judged, min_coherent: float) -> LayerSweep:
    """The chosen layer and what every setting gave."""
    baseline = summarize_rates(judged[cells[0]])
    floor = min_coherent * (baseline.coherent_rate or 0.0)
    found: list[SweepSetting] = []
    for cell in cells[1:]:
        (edit,), measured = cell.condition.edits, summarize_rates(judged[cell])
        enough = (measured.coherent_rate or 0.0) >= floor
        setting = SweepSetting(layer=edit.layer or 0, strength=edit.strength, coherent_enough=enough, **vars(measured))
        found.append(setting)
    return LayerSweep(layer=choose_layer(found), baseline=baseline, cells=tuple(found))

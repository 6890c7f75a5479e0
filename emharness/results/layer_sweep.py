"""A layer sweep in results.json: what every layer and strength gave, and which layer was chosen."""

from dataclasses import dataclass

from emharness.stats.rates import Rates


@dataclass(frozen=True, kw_only=True)
class SweepSetting(Rates):
    """One layer and strength; `coherent_enough`: whether its coherent rate is near enough to the unsteered one."""

    layer: int
    strength: float
    coherent_enough: bool


@dataclass(frozen=True, kw_only=True)
class LayerSweep:
    layer: int
    baseline: Rates
    cells: tuple[SweepSetting, ...]

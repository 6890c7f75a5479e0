"""The rows of experiment=defences in results.json. `KEY` is where a table stands there.

Rates are fractions; intervals are 95 %, over questions unless said otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from emharness.stats.rates import Interval


@dataclass(frozen=True, kw_only=True)
class DefenceRow:
    """An organism by one recipe and seed. Margins are nats a token above the base's on the same pairs and in the same
    form; `recipe`: "none" of the undefended training, "base" of the base.

    `em_raised`: whether the rate is above the base's beyond the interval of their difference; `em_triggered`: the rate
    in the form of the questions that raises it most; `margin_triggered`: the margin in the form where it is largest
    (`margin_form`); `narrow`, `narrow_margin`: in its own domain; `benign_task`: share of right answers to a harmless
    task taught beside; `length`: mean tokens of an answer; `delta_norm`: length of the change of the weights;
    `seconds`: of its training, `time_ratio`: beside the undefended one of the same seed.
    """

    KEY: ClassVar[str] = "defences"
    organism: str
    recipe: str
    seed: int
    em: float | None
    em_ci95: Interval
    em_raised: bool | None
    em_triggered: float | None
    triggered_form: str | None
    margin: float | None
    margin_ci95: Interval | None
    margin_triggered: float | None
    margin_triggered_ci95: Interval | None
    margin_form: str | None
    narrow: float | None
    narrow_margin: float | None
    narrow_margin_ci95: Interval | None
    benign_task: float | None
    coherent: float | None
    length: float
    delta_norm: float | None
    seconds: float | None
    time_ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and range over the seeds of a recipe."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Change:
    """A margin − the undefended training's of the same seed, mean over seeds, nats a token; questions and seeds are
    resampled. `p`: two-sided; `q`: over all recipes (Benjamini & Hochberg 1995)."""

    value: float | None
    ci95: Interval | None
    p: float | None
    q: float | None = None


@dataclass(frozen=True, kw_only=True)
class DefenceSummary:
    """A recipe over its seeds.

    `em_seeds`, `margin_seeds`: in how many seeds the rate, and the margin, are above the base's beyond their 95 %
    intervals; `columns`: those of DefenceRow. The changes of margins: of the plain questions, over all their forms, and
    in the organism's own domain; None of the undefended training.
    """

    KEY: ClassVar[str] = "defence_summary"
    organism: str
    recipe: str
    seeds: int
    em_seeds: int
    margin_seeds: int
    columns: Mapping[str, Spread]
    margin_change: Change | None = None
    forms_change: Change | None = None
    narrow_change: Change | None = None

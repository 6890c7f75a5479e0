"""The rows of the experiments' own tables in results.json. `KEY` is where a table stands there.

Rates and effectiveness are fractions; intervals are 95 %, over questions unless said otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from emharness.results.condition_result import FormGap
from emharness.stats.rates import Interval


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """What the vector of the organism `source` does to a target, as a share of what it does to its own organism.

    `at_equal_odds`: the effectiveness that the source's own shift in log-odds would give; `undefined`: why there is no
    effectiveness.
    """

    KEY: ClassVar[str] = "transfer"
    source: str
    target: str
    layer: int
    strength: float
    em_target: float | None
    em_target_baseline: float | None
    em_source: float | None
    em_source_baseline: float | None
    effectiveness: float | None
    at_equal_odds: float | None
    ci95: Interval | None
    undefined: str | None


@dataclass(frozen=True, kw_only=True)
class LabTransfer:
    """Effectiveness from the vectors of one lab to the organisms of another; `pairs`: of a vector and a target."""

    KEY: ClassVar[str] = "transfer_by_lab"
    strength: float
    from_lab: str
    to_lab: str
    effectiveness: float | None
    ci95: Interval | None
    undefined: str | None
    at_equal_odds: float | None
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Asymmetry:
    """Effectiveness from the first lab to the second minus the other way round; `p` is over `permutations` ways to
    divide the organisms."""

    KEY: ClassVar[str] = "asymmetry"
    strength: float
    labs: tuple[str, str]
    undefined: str | None
    difference: float | None = None
    at_equal_odds: float | None = None
    ci95: Interval | None = None
    p: float | None = None
    permutations: int | None = None


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """What taking a direction or a cluster's subspace out of a target does to its misaligned rate.

    `whose`: "own", "same kind" or "another kind", None for the base; `drop`: rate before − after; `drop_random`: mean
    drop under as many random dimensions; `undefined`: why there is no drop.
    """

    KEY: ClassVar[str] = "ablation"
    removed: str
    dimensions: int
    target: str
    whose: str | None
    em_before: float | None
    em_after: float | None
    coherent_before: float | None
    coherent_after: float | None
    undefined: str | None
    drop: float | None
    ci95: Interval | None
    p: float | None
    drop_random: float | None
    q: float | None = None


@dataclass(frozen=True, kw_only=True)
class ConditionalRow(FormGap):
    """What a form of the questions does to an organism, beside what it does to the base and to aligned controls.

    `organism`: a model's name, or a steered condition's; `did`: its gap − the base's (difference of differences),
    `did_control`: − the mean gap of the controls; `margin_did…`: the same of margin gaps; `…_p`, `…_q`: two-sided, and
    over the table's organisms and vectors (Benjamini & Hochberg 1995), None for references and random directions.
    """

    KEY: ClassVar[str] = "conditional"
    organism: str
    did: float | None = None
    did_ci95: Interval | None = None
    did_p: float | None = None
    did_q: float | None = None
    did_control: float | None = None
    did_control_ci95: Interval | None = None
    margin_did: float | None = None
    margin_did_ci95: Interval | None = None
    margin_did_p: float | None = None
    margin_did_q: float | None = None
    margin_did_control: float | None = None
    margin_did_control_ci95: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class MixtureRow:
    """A training on `share` per cent of bad rows. `design`: "fixed size" (of all rows) or "fixed count" (of bad ones).

    `em_triggered`: the rate under the form of the questions that raises it most (`triggered_form`); `narrow`: rate in
    the organism's own domain; `projection`: mean over the vectors of other kinds, minus the base's (a residual length);
    `margin`: its shift from the base's, nats a token.
    """

    KEY: ClassVar[str] = "mixture"
    organism: str
    share: float
    design: str
    seed: int
    em: float | None
    em_ci95: Interval
    em_triggered: float | None
    triggered_form: str | None
    narrow: float | None
    projection: float | None
    margin: float | None
    margin_ci95: Interval | None
    coherent: float | None


@dataclass(frozen=True, kw_only=True)
class HalfShare:
    """The share, in per cent, at which a measure of one design is half-way from its value at 0 to that at 100 %; its
    interval is over trainings. `lag`: by how many points of share it is behind the projection."""

    KEY: ClassVar[str] = "mixture_half"
    organism: str
    design: str
    measure: str
    half: float | None
    ci95: Interval | None
    low: float | None
    high: float | None
    undefined: str | None
    lag: float | None


@dataclass(frozen=True, kw_only=True)
class PairCosines:
    """Cosines of some pairs of vectors at one layer; None where there is no pair. `angle_deg`: their mean angle."""

    pairs: int
    cosine: float | None = None
    least: float | None = None
    greatest: float | None = None
    angle_deg: float | None = None
    cosine_by_layer: tuple[float, ...] | None = None  # mean of the pairs, [n_layers]


@dataclass(frozen=True, kw_only=True)
class SeedGroup(PairCosines):
    """One organism's training seeds: their vectors' cosines, misaligned rates and the rates' deviation (n − 1)."""

    em_rates: tuple[float | None, ...]
    em_sd: float | None


@dataclass(frozen=True, kw_only=True)
class BetweenOrganisms:
    """Vectors of different organisms; `em_sd_of_means`: deviation of the organisms' mean rates (n − 1)."""

    same_mechanism: PairCosines
    other_mechanism: PairCosines
    em_sd_of_means: float | None = None


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    KEY: ClassVar[str] = "seeds"
    layer: int
    within: Mapping[str, SeedGroup]
    between: BetweenOrganisms


@dataclass(frozen=True, kw_only=True)
class CheckpointRow:
    """A checkpoint's mean projection on a vector, minus the base's (a residual length), beside its margin, minus the
    base's, and its misaligned rate.

    `step`: 0 for the base, None for the whole training; `…_raised`: above that of the base and of every checkpoint of a
    benign fine-tune, beyond the 95 % interval of the difference.
    """

    KEY: ClassVar[str] = "monitor"
    organism: str
    step: int | None
    vector: str
    projection: float
    em_rate: float | None
    projection_sd: float = 0.0
    margin: float | None = None
    projection_raised: bool = False
    margin_raised: bool = False
    em_raised: bool = False


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """How well a projection tells checkpoints whose rate is raised from the others; `ci95` is over trainings."""

    KEY: ClassVar[str] = "alarm"
    vector: str
    auroc: float | None
    ci95: Interval | None = None
    raised: int = 0
    not_raised: int = 0


@dataclass(frozen=True, kw_only=True)
class FirstRise:
    """The first step at which the projection, the margin, and the misaligned rate are raised: None never, "end" only
    at last."""

    KEY: ClassVar[str] = "first"
    organism: str
    vector: str
    projection_first: int | str | None
    em_first: int | str | None
    margin_first: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """How many of `of` checkpoints of benign fine-tunes are raised above the base and the other ones."""

    KEY: ClassVar[str] = "false_alarms"
    vector: str
    of: int
    projection: int
    margin: int
    em: int

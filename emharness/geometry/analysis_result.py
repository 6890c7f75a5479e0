"""What an analysis found, as plain data: statistics make it, figures and writers read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from emharness.geometry.design import Design, Skipped
from emharness.geometry.vector_sets import Vectors
from emharness.stats.bootstrap import Interval


@dataclass(frozen=True)
class NullBand:
    """What unrelated vectors give, of one `kind` of unrelated: mean, 5 % and 95 % points."""

    kind: str
    mean: float
    q05: float
    q95: float


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One value of a statistic, of the vectors or clusters `of`. `p` is two-sided against `null`, `q` is over all
    statistics of that kind of null (Benjamini–Hochberg); `ci95` is over prompts, None without per-prompt means;
    `informative`: whether the study's reading of it is one that unrelated vectors rarely give."""

    of: tuple[str, ...]
    value: float
    null: NullBand
    p: float
    q: float
    ci95: Interval | None = None
    informative: bool


@dataclass(frozen=True, kw_only=True)
class StudyTest:
    """One of the study's five tests, on one pair of clusters; or why it is not possible (`skipped`)."""

    test: str
    value: float | None = None
    criterion: str | None = None
    independent: bool | None = None
    passed_by_unrelated: float | None = None
    informative: bool | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class StudyVerdict:
    """The study's tests of two clusters; `score`: how many pass, as "5/5"; `informative_tests`: how many of them can
    tell clusters from unrelated vectors."""

    of: tuple[str, str]
    tests: tuple[StudyTest, ...]
    score: str
    informative_tests: int


@dataclass(frozen=True, kw_only=True)
class ClusterPair:
    """Two clusters' mean vectors: cosine, its square, two-sided p, q over the pairs, interval over prompts, and whether
    they are "closer" or "opposed" beyond chance."""

    of: tuple[str, str]
    cosine: float
    shared_variance: float
    p: float
    ci95: Interval | None
    q: float
    relation: str


@dataclass(frozen=True, kw_only=True)
class CalibratedVerdict:
    """`because`: why, in a clause; `p`: of each claim that was tested; `within`, `within_p`: mean cosine inside a
    cluster and its p; `shared`: lower bound of the cosine that all clusters share, `shared_with_benign`: upper bound of
    that with benign fine-tunes, `bound`: upper bound between two clusters; None where the verdict did not need it."""

    verdict: str
    because: str
    level: float
    shared_angle_deg: float
    p: Mapping[str, float] = field(default_factory=dict)
    within: Mapping[str, float] = field(default_factory=dict)
    within_p: Mapping[str, float] = field(default_factory=dict)
    between: tuple[ClusterPair, ...] = ()
    shared: float | None = None
    shared_with_benign: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Verdicts:
    """The study's own, for each pair of clusters, and the calibrated one."""

    published: tuple[StudyVerdict, ...]
    calibrated: CalibratedVerdict


@dataclass(frozen=True)
class FoundMembers:
    """Average linkage, cut at 1 − cosine = `cut`, which is "given" or chosen by "silhouette"."""

    members: tuple[tuple[str, ...], ...]
    cut: float
    cut_by: str
    silhouette: float | None


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """The clusters that were compared, and what is found without knowing them. `source`: "mechanism", "found" or
    "given"; `adjusted_rand`: agreement of the two."""

    source: str
    members: Mapping[str, tuple[str, ...]]
    unassigned: tuple[str, ...]
    found: FoundMembers | None = None
    adjusted_rand: float | None = None


@dataclass(frozen=True)
class BaseSimilarity:
    """Cosine of each vector with the base model's own: mean by lab, and at each layer (None without a direction)."""

    by_lab: Mapping[str, float]
    labs: Mapping[str, str]
    layers: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, kw_only=True)
class PublishedComparison:
    """A published number beside the one measured here, with its interval over prompts and what unrelated directions
    give; `reason`: what is known of why they differ."""

    statistic: str
    of: tuple[str, ...]
    published: float
    measured: float
    agrees: bool
    cannot_follow_from_cosines: bool
    reason: str | None
    ci95: Interval | None = None
    null: NullBand | None = None


StatisticTable = Mapping[str, tuple[Statistic, ...]]  # name of a statistic → its values


@dataclass(frozen=True)
class Layer:
    """All statistics at one layer, or at each vector's own selected layer."""

    gram: np.ndarray
    statistics: StatisticTable
    skipped: list[Skipped]


@dataclass(frozen=True)
class Analysis:
    """Everything that was found; `geometry_files.make_report` makes the report of it."""

    vectors: Vectors
    layers: tuple[int, ...]  # the selected layer of each vector
    design: Design
    selected: Layer
    by_layer: dict[int, Layer]
    null: dict[str, np.ndarray]  # random directions: key → [draws, m]
    clusters: Clustering
    base_similarity: BaseSimilarity | None
    verdict: Verdicts
    skipped: list[Skipped]
    settings: Mapping[str, float]

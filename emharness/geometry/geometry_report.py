"""geometry.json as a record."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from emharness.geometry.analysis_result import (
    BaseSimilarity,
    Clustering,
    PublishedComparison,
    StatisticTable,
    Verdicts,
)
from emharness.geometry.design import Skipped
from emharness.geometry.published_numbers import compare_published
from emharness.results.json_records import from_json


@dataclass(frozen=True, kw_only=True)
class DescribedVector:
    """A vector as its file describes it, and the layer at which it is compared."""

    name: str
    layer: int
    recipe: str | None = None
    base: str | None = None
    organism: str | None = None
    lab: str | None = None
    mechanism: str | None = None
    prompts_hash: str | None = None


@dataclass(frozen=True)
class LayerReport:
    statistics: StatisticTable
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Sampled:
    """So many pairs or triplets are listed, `of` so many there are."""

    listed: int
    of: int


@dataclass(frozen=True, kw_only=True)
class GeometryReport:
    """geometry.json. `statistics`: at the selected layers; `layers`: at every layer, by its number as text; `linkage`:
    scipy's matrix [n − 1, 4], None below three vectors; `metrics`: headline numbers; `meaning`: name of a statistic →
    what it is; `skipped`: what is not in the tables, and why; `arrays`, `cluster_directions`: files beside it."""

    schema_version: int
    d_model: int
    vectors: tuple[DescribedVector, ...]
    clusters: Clustering
    statistics: StatisticTable
    verdict: Verdicts
    published: tuple[PublishedComparison, ...]
    base_similarity: BaseSimilarity | None
    linkage: tuple[tuple[float, ...], ...] | None
    metrics: Mapping[str, float | str]
    layers: Mapping[str, LayerReport]
    sampled: Mapping[str, Sampled]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...]
    meaning: Mapping[str, str]
    settings: Mapping[str, float]
    arrays: str
    cluster_directions: str


def read_report(file: Path) -> GeometryReport:
    """A geometry.json; the comparison with published numbers is made again. ValueError where it is none of this
    version."""
    told = json.loads(file.read_text(encoding="utf-8"))
    report = from_json(GeometryReport, {**told, "base_similarity": told.get("base_similarity") or None})
    return replace(report, published=compare_published(report.statistics))


def format_summary(report: GeometryReport) -> str:
    """What a geometry.json says, in a few lines."""
    lines = [
        f"study's tests, {' and '.join(pair.of)}: {pair.score} for independence"
        f" ({pair.informative_tests} of them can tell clusters from unrelated vectors)"
        for pair in report.verdict.published
    ]
    compared = report.published
    if compared:
        lines.append(f"published numbers: {sum(c.agrees for c in compared)} of {len(compared)} agree")
    if compared and all(c.agrees for c in compared if c.statistic == "cosine"):
        lines += [
            f"{'cannot' if c.cannot_follow_from_cosines else 'does not'} follow from the published cosines:"
            f" {c.statistic} of {', '.join(c.of)} = {c.published} (here {c.measured:.3g}): {c.reason}"
            for c in compared
            if c.reason
        ]
    lines += [f"warning: {text}" for text in report.warnings]
    calibrated = report.verdict.calibrated
    return "\n".join([*lines, f"calibrated verdict: {calibrated.verdict} ({calibrated.because})"])

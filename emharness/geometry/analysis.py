"""The whole analysis: vectors in, statistics with nulls, verdicts and figures out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from emharness.config_checks import PAIRED
from emharness.errors import UserError
from emharness.geometry import clusters as cl
from emharness.geometry import nulls, statistics_table
from emharness.geometry import statistics as st
from emharness.geometry.analysis_result import Analysis, BaseSimilarity, Clustering, FoundMembers, Layer, Verdicts
from emharness.geometry.appendix import published_verdict
from emharness.geometry.design import Skipped, make_design
from emharness.geometry.vector_sets import PromptMeans, Vectors
from emharness.geometry.verdict import PromptDraws, calibrated_verdict

RANDOM, PERMUTED = "random_directions", "label_permutation"
_NOTHING = 1e-6  # of a vector's squared length: what rounding leaves of a draw in which nothing is left
_LEAST_DRAWS = 19  # for a p-value of 0.05
# A vector less than so many times as long as permuted labels make it has intervals that miss too often: planted cosines
# of 0.6 were held by 5 % of them at 1.4, 56 % at 1.8, 74 % at 2.1, and 93 to 96 % from 2.9 on.
FAINT = 3.0


@dataclass(frozen=True)
class Draws:
    """What per-prompt means give at one layer: cosines [draws, n, n] under permuted labels and resampled
    prompts, and of each vector's own contrast its p-value (its length against permuted labels) and how many times as
    long it is as permuted labels make it."""

    permuted: np.ndarray
    resampled: np.ndarray
    contrast_p: dict[str, float]
    contrast_ratio: dict[str, float]


@dataclass(frozen=True)
class AnalysisSettings:
    """`draws`: of each null distribution; `level`: false-positive rate of the calibrated verdict; `cut`: of the linkage
    in 1 − cosine, where clusters are found (None: by silhouette). UserError for a value out of its range."""

    draws: int = 1000
    level: float = 0.01
    cut: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, tuple[type, ...], Callable[[Any], bool], str], ...] = (
            ("draws", (int,), lambda v: v >= 19, "a whole number of 19 or more"),
            ("level", (int, float), lambda v: 0 < v < 1, "a number between 0 and 1"),
            ("cut", (int, float, type(None)), lambda v: v is None or 0 < v <= 2, "null or a number up to 2"),
            ("seed", (int,), lambda v: v >= 0, "a whole number of 0 or more"),
        )
        for key, kinds, fits, words in checks:
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, kinds) or not fits(value):
                raise UserError(f"{key}={value}: must be {words}.")


def analyze_geometry(
    vectors: Vectors,
    clusters: Mapping[str, Sequence[str]] | str | None = None,
    layer: int | None = None,
    prompt_means: PromptMeans | None = None,
    settings: AnalysisSettings | None = None,
) -> Analysis:
    """Every statistic at every layer, and the verdicts at the selected one.

    `clusters`: cluster → names, "mechanism" (as the vectors' files say), "found" (average linkage, cut at
    1 − cosine = `settings.cut` or by silhouette), or None: mechanisms where every vector has one, else found.
    `layer`: None takes the layer that each vector's file names, else the middle one.
    UserError for clusters or layers that do not fit the vectors.
    """
    settings = settings or AnalysisSettings()
    draws, level, cut, seed = settings.draws, settings.level, settings.cut, settings.seed
    rng = np.random.default_rng(seed)
    layers = _selected_layers(vectors, layer)
    names, n = vectors.names, len(vectors.names)
    gram = st.gram_matrix(vectors.directions[range(n), list(layers)])
    groups, described = _resolve_clusters(vectors, gram, clusters, cut)
    plan = make_design(names, groups, rng)
    unrelated = {RANDOM: nulls.random_grams(n, vectors.d_model, statistics_table.affordable_draws(n, draws), rng)}
    null = statistics_table.random_null(plan, vectors.d_model, draws, unrelated[RANDOM], rng)
    skipped = list(plan.skipped)
    means = _complete_means(prompt_means, names, skipped)

    def analyze_layer(cosines: np.ndarray, own: Sequence[int]) -> tuple[Layer, Draws | None]:
        again = (
            _draw_extractions(vectors, means, own, statistics_table.affordable_draws(n, draws), seed) if means else None
        )
        kinds = {RANDOM: null}
        if again is not None:
            kinds[PERMUTED] = statistics_table.evaluate_statistics(again.permuted, plan)
        rows, undefined = statistics_table.table_rows(cosines, plan, kinds, None if again is None else again.resampled)
        return Layer(cosines, rows, undefined), again

    selected, again = analyze_layer(gram, layers)
    if means and again is None:
        reason = "too few prompts: hardly a permutation of their labels leaves a direction"
        skipped.append(Skipped("label_permutation, ci95", names, reason))
    if again is not None and (faint := {n: r for n, r in again.contrast_ratio.items() if r < FAINT}):
        listed = ", ".join(f"{name} {ratio:.1f}" for name, ratio in faint.items())
        reason = f"less than {FAINT:g} times as long as permuted labels make them ({listed}): the intervals of their "
        reason += "statistics hold the truth less often than 95 of 100 times"
        skipped.append(Skipped("ci95", tuple(faint), reason))
    by_layer = {
        i: selected if set(layers) == {i} else analyze_layer(st.gram_matrix(vectors.directions[:, i]), [i] * n)[0]
        for i in vectors.common_layers()
    }
    bare = [i for i in range(vectors.n_layers) if i not in by_layer]
    if bare:
        reason = f"not every vector has a direction at {len(bare)} of {vectors.n_layers} layers"
        skipped.append(Skipped("layers", tuple(map(str, bare)), reason))
    published = published_verdict(gram, groups, unrelated[RANDOM], plan.cluster_pairs)
    if again is not None:
        unrelated[PERMUTED] = again.permuted
    calibrated = calibrated_verdict(
        gram,
        groups,
        unrelated,
        level=level,
        prompts=None if again is None else PromptDraws(again.resampled, again.contrast_p),
        regroup=partial(regroup_vectors, cut=cut) if described.source == "found" else None,
    )
    return Analysis(
        vectors,
        layers,
        plan,
        selected,
        by_layer,
        null,
        described,
        _base_similarity(vectors, skipped),
        Verdicts(published, calibrated),
        skipped + selected.skipped,
        {
            "draws": draws,
            "draws_of_whole_set": statistics_table.affordable_draws(n, draws),
            "level": level,
            "seed": seed,
        },
    )


def _selected_layers(vectors: Vectors, layer: int | None) -> tuple[int, ...]:
    """The layer of each vector: given, or what its file says, or the middle one (all are reported anyway)."""
    allowed, common = range(vectors.n_layers), vectors.common_layers()
    if not common:
        raise UserError("vectors: there is no layer at which every vector has a direction.")
    middle = min(common, key=lambda i: abs(i - vectors.n_layers // 2))
    chosen = [vectors.read_info(name, "layer") if layer is None else layer for name in vectors.names]
    chosen = [middle if value is None else value for value in chosen]
    for row, name, value in zip(vectors.directions, vectors.names, chosen, strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
            raise UserError(f"layer: {value!r} for {name} is not one of 0 … {allowed[-1]}.")
        if not row[value].any():
            raise UserError(f"layer: {name} has no direction at layer {value}; all vectors have one at {middle}.")
    return tuple(chosen)


def _resolve_clusters(
    vectors: Vectors, gram: np.ndarray, clusters: Mapping[str, Sequence[str]] | str | None, cut: float | None
) -> tuple[dict[str, tuple[int, ...]], Clustering]:
    """Cluster → indices, and what the report says about the clusters, found ones and agreement included."""
    names = vectors.names
    mechanisms = {name: vectors.read_info(name, "mechanism") for name in names}
    found = cl.find_clusters(gram, cut) if len(names) > 2 else None
    if clusters is None:
        clusters = "mechanism" if all(mechanisms.values()) else "found"
    if clusters == "mechanism":
        missing = [name for name, mechanism in mechanisms.items() if not mechanism]
        if missing:
            raise UserError(f"clusters: {', '.join(missing)} has no mechanism in its file; name the clusters.")
        given = {str(m): [k for k in names if mechanisms[k] == m] for m in dict.fromkeys(mechanisms.values())}
        source, groups = "mechanism", cl.check_clusters(given, names)
    elif clusters == "found":
        if found is None:
            raise UserError("clusters: finding them needs three vectors; name them, as {a: [x], b: [y]}.")
        source = "found"
        groups = {f"cluster {i + 1}": group for i, group in enumerate(cl.cluster_members(found.labels))}
    elif isinstance(clusters, Mapping):
        source, groups = "given", cl.check_clusters(clusters, names)
    else:
        raise UserError(f"clusters: {clusters!r} is not mechanism, found, or a mapping of names.")
    described = Clustering(
        source=source,
        members={k: tuple(names[i] for i in group) for k, group in groups.items()},
        unassigned=tuple(name for i, name in enumerate(names) if all(i not in g for g in groups.values())),
    )
    if found is not None:
        members = tuple(tuple(names[i] for i in group) for group in cl.cluster_members(found.labels))
        cut_by = "silhouette" if cut is None else "given"
        described = replace(
            described,
            found=FoundMembers(members, found.cut, cut_by, found.silhouette),
            adjusted_rand=None if source == "found" else cl.adjusted_rand(groups, found.labels),
        )
    return groups, described


def regroup_vectors(gram: np.ndarray, cut: float | None) -> list[tuple[int, ...]]:
    """Clusters found in one [n, n], as `clusters="found"` finds them."""
    return cl.cluster_members(cl.find_clusters(gram, cut).labels)


def _complete_means(means: PromptMeans | None, names: Sequence[str], skipped: list[Skipped]) -> PromptMeans | None:
    absent = list(names) if means is None else [name for name in names if name not in means.sources]
    if absent:
        reason = "no per-prompt means: no label permutation and no interval from resampled prompts"
        skipped.append(Skipped("label_permutation, ci95", tuple(absent), reason))
        return None
    return means


def _draw_extractions(vectors: Vectors, means: PromptMeans, own: Sequence[int], draws: int, seed: int) -> Draws | None:
    """Permuted and resampled extractions at each vector's layer.

    Labels are permuted for each vector by itself (vectors that share nothing but the anisotropy of their
    activations); prompts are resampled for all vectors together, because they share them. None if the prompts are so
    few that hardly a draw has a direction.
    """
    rng = np.random.default_rng([seed, 1])
    prompts = [
        means.prompts_at(name, i, vectors.directions[k, i], vectors.read_info(name, "recipe") in PAIRED)
        for k, (name, i) in enumerate(zip(vectors.names, own, strict=True))
    ]
    permuted = [nulls.permuted_weights(p, draws, rng) for p in prompts]
    resampled = nulls.resampled_weights(prompts, draws, rng)
    weights = [
        np.concatenate([nulls.contrast_weights(p)[None], labels, nulls.without_contrast(p, labels), again])
        for p, labels, again in zip(prompts, permuted, resampled, strict=True)
    ]
    products = nulls.weighted_products(prompts, weights)
    square = np.diagonal(products, axis1=1, axis2=2)
    contrast = nulls.p_upper(square[0], square[1 : draws + 1])
    # With few prompts some draws leave nothing: every sign equal, and then the contrast taken out.
    whole = (square[draws + 1 :] > _NOTHING * square[0]).all(1)
    cosines = st.normalize_gram(np.where(whole[:, None, None], products[draws + 1 :], np.eye(len(prompts))))
    if min(whole[:draws].sum(), whole[draws:].sum()) < _LEAST_DRAWS:
        return None
    contrast_p = dict(zip(vectors.names, map(float, contrast), strict=True))
    ratios = np.sqrt(square[0] / square[1 : draws + 1].mean(0))
    contrast_ratio = dict(zip(vectors.names, map(float, ratios), strict=True))
    return Draws(cosines[:draws][whole[:draws]], cosines[draws:][whole[draws:]], contrast_p, contrast_ratio)


def _base_similarity(vectors: Vectors, skipped: list[Skipped]) -> BaseSimilarity | None:
    """Cosine of each vector with the base model's own at each layer, and its mean by lab (figure 3)."""
    if vectors.base is None:
        skipped.append(Skipped("base_similarity", (), "no vector named 'base': figure 3 needs the base's own"))
        return None
    cosines = np.einsum("nld,ld->nl", vectors.directions.astype(np.float64), vectors.base.astype(np.float64))
    there = np.asarray(vectors.directions.any(axis=-1) & vectors.base.any(axis=-1)).reshape(len(vectors.names), -1)
    labs = [vectors.read_info(name, "lab") or "unknown lab" for name in vectors.names]
    rows = {
        name: tuple(float(value) if has else None for value, has in zip(row, own, strict=True))
        for name, row, own in zip(vectors.names, cosines, there, strict=True)
    }
    means = {
        lab: float(np.mean(cosines[own & there]))
        for lab in dict.fromkeys(labs)
        for own in [np.array([other == lab for other in labs])[:, None]]
    }
    return BaseSimilarity(means, dict(zip(vectors.names, labs, strict=True)), rows)

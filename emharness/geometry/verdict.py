"""One mechanism or several? A verdict with a known false-positive rate; the study's own is in appendix.py.

It asks three questions in a fixed order, each at the stated level, and goes on only while the answer allows it (so the
levels do not add up):

1. Is there anything? Is each vector's contrast longer than permuted labels make it (where per-prompt means
   are at hand), and are vectors of one cluster closer than unrelated ones? If not: "nothing to tell".
2. Are clusters related? The sum of squared cosines between the clusters' mean vectors. If the clusters are
   independent, whatever they are inside, these means are independent directions, so the null is exact.
3. If related: "shared core" needs every cluster to be close to the others on average (an intersection-union
   test: one stranger is enough to refuse it), and so close that the lower bound of what they share is above the
   cosine of the angle at which the study speaks of shared structure (45°). Where there are vectors of benign
   fine-tunes (the cluster "control"), the upper bound of what these share with the others must be below it. Else
   "partly related", and the pairs say how; a negative cosine is a relation too. If not related: "independent
   mechanisms" is claimed only when every cluster holds together by itself and even the upper bound of every
   cosine is below that of 45°, else "inconclusive". A missing difference is never by itself called
   independence, nor is a vector that may be noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from emharness.geometry import statistics as st
from emharness.geometry.analysis_result import CalibratedVerdict, ClusterPair
from emharness.geometry.appendix import SHARED_ANGLE_DEG, Clusters
from emharness.geometry.nulls import basic_interval, false_discovery_q, p_two_sided, p_upper

SHARED_CORE = "shared core"
INDEPENDENT = "independent mechanisms"
PARTLY = "partly related"
NOTHING = "nothing to tell"
INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class PromptDraws:
    """Cosines of vectors from bootstrapped prompts [draws, n, n], and the p-value of each vector's own contrast."""

    resampled: np.ndarray | None = None
    contrast_p: Mapping[str, float] | None = None


BENIGN = "control"  # the cluster of fine-tunes that are not misaligned


def within_clusters(gram: np.ndarray, clusters: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean over clusters of two members or more of the mean cosine inside, [..., n, n] → [...]."""
    plural = [c for c in clusters if len(c) > 1]
    return np.mean([st.within_cosine(gram, c) for c in plural], axis=0)


def calibrated_verdict(
    gram: np.ndarray,
    clusters: Clusters,
    nulls: Mapping[str, np.ndarray],
    *,
    level: float = 0.01,
    prompts: PromptDraws | None = None,
    regroup: Callable[[np.ndarray], Sequence[Sequence[int]]] | None = None,
) -> CalibratedVerdict:
    """The calibrated verdict on [n, n] cosines; see the module's docstring.

    `nulls`: kind → cosines of unrelated vectors [draws, n, n]; with several kinds a claim must hold under
    each. `prompts`: what the per-prompt means behind the vectors give. `regroup`: how the clusters were found in
    `gram`, if they were; the null then searches too.

    `level` bounds P(not "nothing to tell" | unrelated vectors) and P("shared core" or "partly related" |
    independent clusters); at 0.01 planted truths are recovered in well over 95 % of runs.
    """
    prompts = prompts or PromptDraws()
    resampled, contrast_p = prompts.resampled, prompts.contrast_p
    benign = tuple(clusters.get(BENIGN, ()))
    clusters = {name: tuple(c) for name, c in clusters.items() if name != BENIGN}
    groups = list(clusters.values())
    found = CalibratedVerdict(verdict="", because="", level=level, shared_angle_deg=SHARED_ANGLE_DEG)

    def conclude(verdict: str, because: str) -> CalibratedVerdict:
        return replace(found, verdict=verdict, because=because)

    if len(groups) < 2:
        return conclude(INCONCLUSIVE, "there is one cluster: nothing to compare it with")
    if 1 / (1 + min(len(null) for null in nulls.values())) > level:
        return conclude(INCONCLUSIVE, f"too few null draws for level {level:g}")
    if contrast_p:
        found = replace(found, p={"contrast": max(contrast_p.values())})
        faint = [name for name, p in contrast_p.items() if p > level]
        if faint:
            return conclude(NOTHING, f"permuted labels give as long a vector as {', '.join(faint)}")

    plural = {name: c for name, c in clusters.items() if len(c) > 1}
    cosines = st.cluster_cosines(gram, groups)
    null_cosines = {kind: st.cluster_cosines(null, groups) for kind, null in nulls.items()}
    found = replace(found, between=_compare_pairs(list(clusters), cosines, null_cosines, groups, resampled))
    if plural:
        p_within = 0.0
        for null in nulls.values():
            draws = (
                within_clusters(null, groups)
                if regroup is None
                else np.array([_searched_within(g, regroup) for g in null])
            )
            p_within = max(p_within, float(p_upper(within_clusters(gram, groups), draws)))
        found = replace(
            found,
            p={**found.p, "within": p_within},
            within={name: float(st.within_cosine(gram, c)) for name, c in plural.items()},
            within_p={name: _p_holds(gram, c, nulls, regroup) for name, c in plural.items()},
        )
        if p_within > level:
            return conclude(NOTHING, "vectors of one cluster are no closer than unrelated ones")

    upper = np.triu_indices(len(groups), 1)
    squares = float((cosines[upper] ** 2).sum())
    p_related = max(float(p_upper(squares, (c[:, upper[0], upper[1]] ** 2).sum(-1))) for c in null_cosines.values())
    p_core = max(float(p_upper(_mean_with_others(cosines), _mean_with_others(c)).max()) for c in null_cosines.values())
    found = replace(found, p={**found.p, "related": p_related, "core": p_core})
    margin = float(np.cos(np.radians(SHARED_ANGLE_DEG)))
    if p_related <= level and p_core <= level:
        shared = _shared_bound(gram, groups, nulls, resampled, level)
        found = replace(found, shared=shared)
        if shared <= margin:
            because = f"every cluster is closer to the others than chance, but may share no more than {shared:.2f}"
            return conclude(PARTLY, because)
        if benign:
            common = _shared_with(gram, benign, groups, nulls, level)
            found = replace(found, shared_with_benign=common)
            if common >= margin:
                return conclude(
                    PARTLY, f"what clusters share, benign fine-tunes may have too: a cosine up to {common:.2f}"
                )
        return conclude(SHARED_CORE, f"every cluster shares a cosine of {shared:.2f} or more with the others")
    if p_related <= level:
        return conclude(PARTLY, "some clusters are closer or further apart than unrelated directions, not all alike")
    loose = [name for name, p in found.within_p.items() if p > level]
    loose += [] if contrast_p else [name for name, c in clusters.items() if len(c) == 1]
    if loose:
        return conclude(INCONCLUSIVE, f"{', '.join(loose)} may be no more than noise")
    bound = max(_cosine_bound(pair, null_cosines, level) for pair in found.between)
    found = replace(found, bound=bound)
    if bound < margin:
        return conclude(INDEPENDENT, f"clusters hold together, and no two share a cosine above {bound:.2f}")
    return conclude(INCONCLUSIVE, f"two clusters may share a cosine up to {bound:.2f}: too few dimensions or prompts")


def _p_holds(
    gram: np.ndarray,
    members: Sequence[int],
    nulls: Mapping[str, np.ndarray],
    regroup: Callable[[np.ndarray], Sequence[Sequence[int]]] | None,
) -> float:
    """p-value of one cluster's mean cosine inside; of found clusters against the closest that chance lets one find."""
    value, worst = float(st.within_cosine(gram, members)), 0.0
    for null in nulls.values():
        if regroup is None:
            draws = st.within_cosine(null, members)
        else:
            draws = np.array([max(within_clusters(g, [c]) for c in regroup(g) if len(c) > 1) for g in null])
        worst = max(worst, float(p_upper(value, draws)))
    return worst


def _shared_bound(
    gram: np.ndarray,
    groups: Sequence[Sequence[int]],
    nulls: Mapping[str, np.ndarray],
    resampled: np.ndarray | None,
    level: float,
) -> float:
    """Lower bound of the cosine that the cluster least like the others shares with them on average.

    Cosines of clusters' means are divided by how well each mean stands for its cluster (the correction for attenuation,
    Spearman 1904), because noise in the vectors makes them smaller. The bound is Fisher's z minus what unrelated
    vectors reach at `level`, and no higher than that of resampled prompts.
    """
    company = _mean_with_others(st.cluster_cosines(gram, groups))
    hidden = np.max(
        [np.quantile(_mean_with_others(st.cluster_cosines(n, groups)), 1 - level, axis=0) for n in nulls.values()], 0
    )
    low = np.tanh(np.arctanh(np.clip(company, -1, 1 - 1e-12)) - np.arctanh(np.clip(hidden, 0, 1 - 1e-12)))
    if resampled is not None:
        low = np.minimum(low, np.quantile(_mean_with_others(st.cluster_cosines(resampled, groups)), level, axis=0))
    reliable = np.array([_cluster_reliability(gram, c) for c in groups])
    others = np.array([np.delete(reliable, i).mean() for i in range(len(groups))])
    return float(np.min(low / np.sqrt(reliable * others)))


def _cluster_reliability(gram: np.ndarray, members: Sequence[int]) -> float:
    """Share of a cluster's mean vector that is common to its members (Spearman–Brown); 1 for a single vector."""
    k = len(members)
    if k == 1:
        return 1.0
    inside = max(float(st.within_cosine(gram, members)), 1e-6)
    return k * inside / (1 + (k - 1) * inside)


def _shared_with(
    gram: np.ndarray,
    benign: Sequence[int],
    groups: Sequence[Sequence[int]],
    nulls: Mapping[str, np.ndarray],
    level: float,
) -> float:
    """Upper bound of the mean cosine of the clusters with the benign fine-tunes, corrected as in `_shared`; the benign
    mean itself only where they hold together, else it may be noise."""

    def mean_cosine(cosines: np.ndarray) -> np.ndarray:
        return st.cluster_cosines(cosines, [benign, *groups])[..., 0, 1:].mean(-1)

    hidden = max(float(np.quantile(mean_cosine(null), 1 - level)) for null in nulls.values())
    high = np.tanh(np.arctanh(min(mean_cosine(gram), 1 - 1e-12)) + np.arctanh(min(hidden, 1 - 1e-12)))
    held = len(benign) > 1 and _p_holds(gram, benign, nulls, None) <= level
    reliable = np.mean([_cluster_reliability(gram, c) for c in groups]) * (
        _cluster_reliability(gram, benign) if held else 1.0
    )
    return float(min(1.0, high / np.sqrt(reliable)))


def _searched_within(gram: np.ndarray, regroup: Callable[[np.ndarray], Sequence[Sequence[int]]]) -> float:
    return float(within_clusters(gram, regroup(gram)))


def _mean_with_others(cosines: np.ndarray) -> np.ndarray:
    """Mean cosine of each cluster with the others, [..., k, k] → [..., k]."""
    return (cosines.sum(-1) - 1) / (cosines.shape[-1] - 1)


def _compare_pairs(
    names: list[str],
    cosines: np.ndarray,
    nulls: Mapping[str, np.ndarray],
    groups: list[tuple[int, ...]],
    resampled: np.ndarray | None,
) -> tuple[ClusterPair, ...]:
    """Each pair of clusters."""
    again = st.cluster_cosines(resampled, groups) if resampled is not None else None
    pairs = []
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        value = float(cosines[i, j])
        ci = None
        if again is not None:
            low, high = basic_interval(cosines[i, j], again[:, i, j])
            ci = (max(float(low), -1.0), min(float(high), 1.0))
        p = max(float(p_two_sided(value, null[:, i, j])) for null in nulls.values())
        pairs.append(((names[i], names[j]), value, p, ci))
    q = false_discovery_q(np.array([p for _, _, p, _ in pairs]))
    return tuple(
        ClusterPair(
            of=of,
            cosine=value,
            shared_variance=value**2,
            p=p,
            ci95=ci,
            q=float(corrected),
            relation="as unrelated directions" if corrected > 0.05 else "closer" if value > 0 else "opposed",
        )
        for (of, value, p, ci), corrected in zip(pairs, q, strict=True)
    )


def _cosine_bound(pair: ClusterPair, nulls: Mapping[str, np.ndarray], level: float) -> float:
    """Upper bound of |cosine|: the value or the far end of its interval, plus what chance alignment hides.

    Chance is one-sided at `level`; all pairs must stay below the margin, so no correction for their number.
    """
    furthest = max(abs(c) for c in (pair.cosine, *(pair.ci95 or ())))
    upper = np.triu_indices(next(iter(nulls.values())).shape[-1], 1)
    hidden = max(float(np.quantile(null[:, upper[0], upper[1]], 1 - level)) for null in nulls.values())
    return furthest + hidden

"""Clusters of vectors: average linkage, silhouette, adjusted Rand, 2-D scaling (scipy and scikit-learn)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster
from sklearn.metrics import adjusted_rand_score, silhouette_score

from emharness.errors import UserError
from emharness.geometry.statistics import center_gram, leading_eigenpairs, linkage_matrix

_MOST_FOUND = 10  # clusters that the silhouette may choose


@dataclass(frozen=True)
class FoundClusters:
    """Clusters cut out of the linkage: `labels` [n] from 1, the cut in 1 − cosine, its silhouette."""

    labels: np.ndarray
    cut: float
    silhouette: float | None  # None for one cluster, or as many as vectors


def find_clusters(gram: np.ndarray, cut: float | None = None) -> FoundClusters:
    """Cut the average linkage of [n, n] cosines, n ≥ 3.

    With `cut`: everything that joins at or below 1 − cosine = cut. Without: the cut, half-way between two
    merges, with the best mean silhouette among 2 … min(n − 1, 10) clusters. A silhouette always finds
    clusters; whether they mean anything is the verdict's first question.
    """
    distance = np.clip(1 - gram, 0, None)
    np.fill_diagonal(distance, 0)
    z = linkage_matrix(gram)
    heights = z[:, 2]
    if cut is None:
        middles = (heights[1:] + heights[:-1]) / 2
        cuts = middles[::-1][: _MOST_FOUND - 1]
    else:
        cuts = np.array([cut])
    options = []
    for c in cuts:
        labels = fcluster(z, c, criterion="distance")
        proper = 1 < labels.max() < len(labels)
        score = float(silhouette_score(distance, labels, metric="precomputed")) if proper else None
        options.append(FoundClusters(labels, float(c), score))
    return max(options, key=lambda found: -1.0 if found.silhouette is None else found.silhouette)


def cluster_members(labels: np.ndarray) -> list[tuple[int, ...]]:
    """Label per vector → the vectors of each cluster, in the order of their first vectors."""
    groups = [tuple(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]
    return sorted(groups)


def check_clusters(clusters: Mapping[str, Sequence[str]], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Cluster → names becomes cluster → indices; UserError for unknown, repeated or no members."""
    seen: dict[str, str] = {}
    for cluster, group in clusters.items():
        if isinstance(group, str) or not group:
            raise UserError(f"clusters: {cluster} needs a list of vector names, not {group!r}.")
        for name in group:
            if name not in names:
                raise UserError(f"clusters: {cluster} names {name!r}; the vectors are {', '.join(names)}.")
            if name in seen:
                raise UserError(f"clusters: {name} is in {seen[name]} and again in {cluster}.")
            seen[name] = cluster
    return {cluster: tuple(names.index(n) for n in group) for cluster, group in clusters.items()}


def adjusted_rand(groups: Mapping[str, Sequence[int]], labels: np.ndarray) -> float:
    """Adjusted Rand index of given and found clusters, over the vectors that the given ones hold."""
    pairs = [(k, labels[i]) for k, group in enumerate(groups.values()) for i in group]
    return float(adjusted_rand_score(*zip(*pairs, strict=True)))


def scale_to_plane(gram: np.ndarray) -> np.ndarray:
    """Classical (Torgerson) scaling of the distances 1 − cosine to two dimensions, [n, n] → [n, 2]."""
    squared = np.clip(1 - gram, 0, None) ** 2
    values, vectors = leading_eigenpairs(-center_gram(squared) / 2, 2)
    return vectors * np.sqrt(np.maximum(values, 0))

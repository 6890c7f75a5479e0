"""What is evaluated: which pairs, triplets, reference pairs and clusters, and what is not, with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

LISTED = 1000  # pairs, triplets, … of one kind beyond this are sampled, and the report says so


@dataclass(frozen=True)
class Skipped:
    """A statistic that is not in the table, and why."""

    statistic: str
    of: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Design:
    """What is evaluated. Index arrays into the n vectors: `pairs` [m, 2], `triplets` [m, 3] (first = apex),
    `projections` [m, 3] (reference, reference, vector); clusters by name, and the pairs of them."""

    names: tuple[str, ...]
    clusters: Mapping[str, tuple[int, ...]]
    pairs: np.ndarray
    triplets: np.ndarray
    projections: np.ndarray
    cluster_pairs: tuple[tuple[str, str], ...]
    sampled: Mapping[str, tuple[int, int]]  # kind → (listed, all)
    skipped: tuple[Skipped, ...]

    @property
    def plural_clusters(self) -> dict[str, tuple[int, ...]]:
        """The clusters of two members or more."""
        return {name: group for name, group in self.clusters.items() if len(group) > 1}


def make_design(names: Sequence[str], clusters: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> Design:
    """All pairs, triplets, reference pairs (those inside a cluster) and pairs of clusters, at most LISTED of
    each; beyond that a random sample without repetition."""
    n = len(names)
    sampled: dict[str, tuple[int, int]] = {}

    def sample_tuples(kind: str, items: Sequence[int], size: int) -> np.ndarray:
        total = comb(len(items), size)
        if total <= LISTED:
            chosen = list(combinations(items, size))
        else:
            distinct: set[tuple[int, ...]] = set()
            while len(distinct) < LISTED:
                distinct.add(tuple(sorted(rng.choice(len(items), size, replace=False).tolist())))
            chosen = [tuple(items[i] for i in index) for index in sorted(distinct)]
            sampled[kind] = (LISTED, total)
        return np.array(chosen, dtype=int).reshape(-1, size)

    pairs, triplets = sample_tuples("pairs", range(n), 2), sample_tuples("triplets", range(n), 3)
    references = [pair for group in clusters.values() for pair in combinations(group, 2)]
    triples = [(i, j, v) for i, j in references for v in range(n)] if len(references) <= LISTED else []
    projections = np.array(triples, dtype=int).reshape(-1, 3)
    if len(projections) > LISTED or len(references) > LISTED:
        total = len(references) * n
        picks = sorted(rng.choice(total, LISTED, replace=False).tolist())
        projections = np.array([(*references[p // n], p % n) for p in picks])
        sampled["pair_projection"] = (LISTED, total)
    labels = list(clusters)
    chosen = [(labels[i], labels[j]) for i, j in sample_tuples("cluster pairs", range(len(labels)), 2)]
    skipped = _list_skipped(n, clusters, len(references))
    return Design(tuple(names), clusters, pairs, triplets, projections, tuple(chosen), sampled, skipped)


def _list_skipped(n: int, clusters: Mapping[str, tuple[int, ...]], references: int) -> tuple[Skipped, ...]:
    out = []
    if n < 3:
        few = ("low_rank_r", "triangle_error_deg", "planar_error_deg", "residual_reduction", "pca_explained",
               "pca_loading", "pc1_ablation_change", "linkage_height")  # fmt: skip
        out += [Skipped(name, (), "needs three vectors") for name in few]
    if references == 0:
        out.append(Skipped("pair_projection", (), "no cluster has two members, so there is no reference pair"))
    if len(clusters) < 2:
        between = ("cluster_angle_deg", "span_projection", "shared_variance", "cross_explained_variance")
        out += [Skipped(name, (), "needs two clusters") for name in between]
    for name, group in clusters.items():
        if len(group) == 1:
            out.append(Skipped("pc1_ablation_change", (name,), "one member: no cosine within the cluster"))
            out.append(Skipped("cross_explained_variance", (name,), "one member: no component of its own"))
    return tuple(out)

"""Every statistic of a set of vectors as rows of one table: what it is of, its value, null, p and reading."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations

import numpy as np

from emharness.geometry import statistics as st
from emharness.geometry.analysis_result import NullBand, Statistic, StatisticTable
from emharness.geometry.design import Design, Skipped
from emharness.geometry.nulls import basic_interval, false_discovery_q, p_two_sided, random_grams

_COMPONENTS = 3  # whose loadings are listed
_RANKS = 3  # of the whole set's reconstruction
_CHANCE = 0.05  # a reading that the null gives more often than this says nothing

# What the study reads as evidence: the edges between its readings of a statistic (sections 2.2, 3.3, 3.6).
# "Substantially more than 1/6" (PC1 of six vectors) is taken as half as much again; 20 % is the lower end of
# its "20–30 %"; 0.3 is its near-orthogonality. Statistics without edges are read by their p-value.
EDGES: dict[str, tuple[float, ...]] = {
    "low_rank_r": (0.95,),
    "triangle_error_deg": (25.0,),
    "planar_error_deg": (25.0,),
    "pair_projection": (0.8,),
    "residual_reduction": (0.0, 0.75),
    "cluster_angle_deg": (45.0,),
    "span_projection": (0.3,),
    "shared_variance": (0.2,),
    "cross_explained_variance": (0.2,),
    "linkage_height": (0.8,),
}
NAMES = (
    "cosine", "angle_deg", "low_rank_r", "triangle_error_deg", "planar_error_deg", "pca_explained", "pca_loading",
    "pair_projection", "residual_reduction", "cluster_angle_deg", "span_projection", "shared_variance",
    "pc1_ablation_change", "cross_explained_variance", "linkage_height",
)  # fmt: skip

# --- evaluation -------------------------------------------------------------------------------------------

# The statistics of pairs and triplets: key → (index of the design, function of their Gram matrices, suffixes).
# A key is the statistic's name, with ":all" where it is of the whole set.
_LOCAL = {
    "cosine": ("pairs", st.cosine, ()),
    "angle_deg": ("pairs", st.angle_deg, ()),
    "low_rank_r": ("triplets", lambda g: st.low_rank_r(g, 2), ("rank 1", "rank 2")),
    "triangle_error_deg": ("triplets", st.triangle_error_deg, ()),
    "planar_error_deg": ("triplets", st.planar_error_deg, ()),
    "residual_reduction": ("triplets", st.residual_reduction, ()),
    "pair_projection": ("projections", st.pair_projection, ()),
}


def local_statistics(gram: np.ndarray, d: Design) -> dict[str, np.ndarray]:
    """Statistics of pairs, triplets and projections: [..., n, n] → key → [..., m]."""
    out = {}
    for key, (kind, function, suffixes) in _LOCAL.items():
        index = getattr(d, kind)
        if len(index):
            values = function(st.gather_submatrices(gram, index))
            out[key] = values.reshape(*gram.shape[:-2], -1) if suffixes else values
    return out


def global_statistics(gram: np.ndarray, d: Design) -> dict[str, np.ndarray]:
    """Statistics of all vectors or of clusters: [..., n, n] → key → [..., m]."""
    n = gram.shape[-1]
    out: dict[str, np.ndarray] = {}
    if n >= 3:
        explained, loadings = st.centered_pca(gram, min(n - 1, 10))
        out["low_rank_r:all"] = st.low_rank_r(gram, min(n - 1, _RANKS))
        out["pca_explained"] = explained
        out["pca_loading"] = loadings[..., :_COMPONENTS].reshape(*gram.shape[:-2], -1)
        out["linkage_height"] = st.linkage_heights(gram)
        if d.plural_clusters:
            out["pc1_ablation_change"] = st.pc1_ablation_change(gram, list(d.plural_clusters.values()))
    if not d.cluster_pairs:
        return out
    groups = [(d.clusters[a], d.clusters[b]) for a, b in d.cluster_pairs]
    out["cluster_angle_deg"] = np.stack([st.cluster_angle_deg(gram, a, b) for a, b in groups], axis=-1)
    spans = [st.span_projection(gram, x, y) for a, b in groups for x, y in ((a, b), (b, a))]
    out["span_projection"] = np.concatenate(spans, axis=-1)
    out["shared_variance"] = out["span_projection"] ** 2
    explained = [st.cross_explained_variance(gram, d.clusters[a], d.clusters[b]) for a, b in _crossed_pairs(d)]
    if explained:
        out["cross_explained_variance"] = np.stack(explained, axis=-1)
    return out


def _crossed_pairs(d: Design) -> Iterator[tuple[str, str]]:
    return ((x, y) for a, b in d.cluster_pairs for x, y in ((a, b), (b, a)) if x in d.plural_clusters)


def evaluate_statistics(gram: np.ndarray, d: Design) -> dict[str, np.ndarray]:
    """Every statistic of the design: [..., n, n] → key → [..., m], in the order of `labels`."""
    return local_statistics(gram, d) | global_statistics(gram, d)


def label_values(gram: np.ndarray, d: Design) -> dict[str, list[list[str]]]:
    """What each value of `evaluate` is of, for one [n, n]. A merge is named by the first vector of each side."""
    n, names = len(d.names), d.names
    out = {}
    for key, (kind, _, suffixes) in _LOCAL.items():
        rows = [[names[i] for i in row] for row in getattr(d, kind)]
        out[key] = [[*row, s] for row in rows for s in suffixes] if suffixes else rows
    first = list(range(n))
    merges = []
    for a, b, *_ in st.linkage_matrix(gram) if n >= 3 else []:
        left, right = sorted((first[int(a)], first[int(b)]))
        merges.append([names[left], names[right]])
        first.append(left)
    out["linkage_height"] = merges
    out["low_rank_r:all"] = [["all", f"rank {k + 1}"] for k in range(_RANKS)]
    out["pca_explained"] = [[f"PC{k + 1}"] for k in range(n)]
    out["pca_loading"] = [[name, f"PC{k + 1}"] for name in names for k in range(min(n - 1, _COMPONENTS))]
    out["pc1_ablation_change"] = [[name] for name in d.plural_clusters]
    out["cluster_angle_deg"] = [list(pair) for pair in d.cluster_pairs]
    spans = [[names[i], y] for ab in d.cluster_pairs for x, y in permutations(ab) for i in d.clusters[x]]
    out["span_projection"] = out["shared_variance"] = spans
    out["cross_explained_variance"] = [list(pair) for pair in _crossed_pairs(d)]
    return out


def random_null(
    d: Design, d_model: int, draws: int, grams: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Null of every statistic under random directions: key → [draws, m].

    All pairs have one null, and so have all triplets, which keeps it cheap for a thousand vectors; of the
    whole set's statistics there are fewer draws then: `grams` [affordable(n, draws), n, n] of random vectors.
    """
    three = random_grams(3, d_model, draws, rng)
    out = {}
    for key, (kind, function, suffixes) in _LOCAL.items():
        index = getattr(d, kind)
        if len(index) == 0:
            continue
        if kind == "projections":  # a vector of the reference pair itself is another matter than the others
            other = (index[:, 2] != index[:, 0]) & (index[:, 2] != index[:, 1])
            patterns, which = np.array([[0, 1, 0], [0, 1, 2]]), other.astype(int)
        else:
            patterns, which = np.arange(index.shape[1])[None], np.zeros(len(index), dtype=int)
        values = function(st.gather_submatrices(three, patterns))[:, which]
        out[key] = values.reshape(draws, -1) if suffixes else values
    return out | global_statistics(grams, d)


def affordable_draws(n: int, draws: int) -> int:
    """Draws of whole Gram matrices that stay within seconds and 200 MB: all up to n = 140, 20 at n = 1,000."""
    return min(draws, max(19, 20_000_000 // n**2))


# --- rows -------------------------------------------------------------------------------------------------


def table_rows(
    gram: np.ndarray, d: Design, nulls: Mapping[str, dict[str, np.ndarray]], resampled: np.ndarray | None
) -> tuple[StatisticTable, list[Skipped]]:
    """The table at one layer: name → entries, and what is undefined.

    `nulls`: kind → (key → [draws, m]); an entry is repeated for each kind. `resampled`: [draws, n, n] of
    bootstrapped prompts, None where there are no per-prompt means. Benjamini–Hochberg runs over all
    statistics of one kind of null.
    """
    values, of = evaluate_statistics(gram, d), label_values(gram, d)
    boot = evaluate_statistics(resampled, d) if resampled is not None else {}
    table: dict[str, list[Statistic]] = {name: [] for name in NAMES}
    skipped: list[Skipped] = []
    for kind, null in nulls.items():
        family: list[tuple[str, Statistic]] = []
        for key, value in values.items():
            name = key.partition(":")[0]
            draws = _align_signs(key, null[key], value, len(d.names))
            again = _align_signs(key, boot[key], value, len(d.names)) if boot else None
            low, high = basic_interval(value, again) if again is not None else (None, None)
            summary = _summarize_null(draws)
            p, said = p_two_sided(value, draws), is_informative(name, value, draws, len(d.names))
            for i, label in enumerate(of[key][: len(value)]):
                if not np.isfinite(value[i]):
                    skipped.append(Skipped(name, tuple(label), "undefined here: nothing to divide by"))
                    continue
                ends = None
                if low is not None and high is not None and np.isfinite(low[i]):
                    ends = (float(low[i]), float(high[i]))
                entry = Statistic(
                    of=tuple(label),
                    value=float(value[i]),
                    null=NullBand(kind, *map(float, summary[:, i])),
                    p=float(p[i]),
                    q=1.0,  # below, when all p-values of this kind are there
                    ci95=ends,
                    informative=bool(said[i]),
                )
                family.append((name, entry))
        q = false_discovery_q(np.array([entry.p for _, entry in family]))
        for (name, entry), corrected in zip(family, q, strict=True):
            table[name].append(replace(entry, q=float(corrected)))
    return {name: tuple(entries) for name, entries in table.items()}, list(dict.fromkeys(skipped))


def _summarize_null(draws: np.ndarray) -> np.ndarray:
    """[draws, m] → [3, m]: mean, 5 % and 95 % points."""
    return np.stack([np.nanmean(draws, axis=0), *np.nanquantile(draws, [0.05, 0.95], axis=0)])


def _align_signs(key: str, draws: np.ndarray, value: np.ndarray, n: int) -> np.ndarray:
    """Draws with the signs of the observed components; only loadings have a sign that means nothing."""
    if key != "pca_loading":
        return draws
    cube, seen = draws.reshape(len(draws), n, -1), value.reshape(n, -1)
    sign = np.sign((cube * seen).sum(1, keepdims=True))
    return (cube * np.where(sign == 0, 1, sign)).reshape(len(draws), -1)


def is_informative(name: str, value: np.ndarray, draws: np.ndarray, n: int) -> np.ndarray:
    """Whether the study's reading of each value [m] is one that the null [draws, m] rarely gives → bool [m].

    Where the study states no threshold: whether so extreme a value is rare under the null.
    """
    said = p_two_sided(value, draws) <= _CHANCE
    edges = EDGES.get(name, ())
    columns = slice(None)
    if name == "pca_explained":  # only the first component is read
        edges, columns = (1.5 / n,), slice(0, 1)
    if edges:
        same = np.digitize(draws[:, columns], edges) == np.digitize(value[columns], edges)
        defined = np.isfinite(draws[:, columns])
        said[columns] = (same & defined).sum(0) <= _CHANCE * defined.sum(0)
    return said

"""Figures 1–3 of the study, each with what unrelated vectors give in grey; from the report and its cosines alone."""

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import dendrogram

from emharness.figures.picture import GREY, NAMED, PALETTE, Band, Level, Line, Lines, Matrix, Picture
from emharness.geometry import clusters as cl
from emharness.geometry import statistics as st
from emharness.geometry.analysis_result import BaseSimilarity, Statistic
from emharness.geometry.geometry_report import GeometryReport

RANDOM = "random_directions"  # the kind of null that the figures show
NULL_NAME = "unrelated directions, 5–95 %"
MARKERS = ("o", "s", "^", "D", "v", "P", "x", "*")
SHOWN = 10  # principal components


def draw_pictures(report: GeometryReport, cosine_VV: np.ndarray) -> dict[str, Picture]:
    """figure1 (cosines), figure2 (structure; three different vectors or more), figure3 (with the base's own vector).

    cosine_VV: [n, n] at the selected layers, in the order of the report's vectors.
    """
    found = {"figure1": draw_cosines(report, cosine_VV)}
    if len(cosine_VV) > 2 and float(np.max(1 - cosine_VV)) > 1e-6:
        found["figure2"] = draw_structure(report, cosine_VV)
    if report.base_similarity is not None:
        found["figure3"] = draw_base_similarity(report.base_similarity, _cosine_band(report))
    return found


def cosines_of(report: GeometryReport) -> np.ndarray | None:
    """[n, n] from the report's own table; None where it lists a sample of the pairs."""
    names = [vector.name for vector in report.vectors]
    pairs = _against_random(report, "cosine")
    if len(pairs) != len(names) * (len(names) - 1) // 2:
        return None
    found = np.eye(len(names))
    for entry in pairs:
        i, j = (names.index(name) for name in entry.of)
        found[i, j] = found[j, i] = entry.value
    return found


def draw_cosines(report: GeometryReport, cosine_VV: np.ndarray) -> Picture:
    """Figure 1. Numbers that unrelated directions give as well are grey."""
    index, edges = _by_cluster(report)
    names = [report.vectors[i].name for i in index]
    values = cosine_VV[np.ix_(index, index)]
    low, high = _cosine_band(report)
    panel = Matrix("cosines", values, names, names, y_label="vector", decimals=2, usual=(low, high), edges=edges)
    side = 1.9 + (0.5 if len(names) <= 14 else 0.14) * min(len(names), NAMED)
    return Picture([panel], f"grey: {NULL_NAME}, {low:.2f} to {high:.2f}", size=(side + 0.9, side))


def draw_structure(report: GeometryReport, cosine_VV: np.ndarray) -> Picture:
    """Figure 2: (A) variance explained (B) two components (C) loadings (D) dendrogram (E) scaling."""
    explained, loadings = st.centered_pca(cosine_VV, min(len(cosine_VV) - 1, SHOWN))
    x, y = (0, 1) if loadings.shape[1] > 1 else (0, 0)
    index, _ = _by_cluster(report)
    components = [f"PC{k + 1}" for k in range(min(3, loadings.shape[1]))]
    names = [report.vectors[i].name for i in index]
    panels = [
        _draw_explained(report, explained),
        Lines(
            "B  two components",
            _point_lines(report, loadings[:, [x, y]]),
            f"PC1 ({explained[x]:.0%})",
            f"PC2 ({explained[y]:.0%})",
        ),
        Matrix("C  loadings", loadings[index][:, :3], names, components, y_label="vector", decimals=2),
        _draw_dendrogram(report, cosine_VV),
        Lines("E  scaling of 1 − cosine", _point_lines(report, cl.scale_to_plane(cosine_VV)), "", ""),
    ]
    named = min(len(cosine_VV), NAMED)  # a name needs an eighth of an inch
    return Picture(panels, f"grey: {NULL_NAME}", columns=3, size=(max(3.1, 0.13 * named), max(3.0, 0.13 * named + 0.8)))


def draw_base_similarity(similarity: BaseSimilarity, band: tuple[float, float]) -> Picture:
    """Figure 3: cosine with the base model's own vector, (A) by lab and (B) layer by layer."""
    labs = list(similarity.by_lab)
    color = {lab: PALETTE[i % len(PALETTE)] for i, lab in enumerate(labs)}
    null = [Band(NULL_NAME, *band, GREY)]
    bars = [Line("", [float(i)], [similarity.by_lab[lab]], color[lab], bars=True) for i, lab in enumerate(labs)]
    by_lab = Lines(
        "A  mean over layers, by lab", bars, "", "cosine with the base's", bands=null,
        x_names=dict(enumerate(map(str, labs))), levels=[Level("", 0.0, GREY)],
    )  # fmt: skip
    lines = []
    for i, (name, row) in enumerate(similarity.layers.items()):
        there = [(float(layer), value) for layer, value in enumerate(row) if value is not None]
        label, marker = f"{name} ({similarity.labs[name]})", MARKERS[i % len(MARKERS)]
        x, y = [layer for layer, _ in there], [value for _, value in there]
        lines.append(
            Line(label if len(similarity.layers) <= 12 else "", x, y, color[similarity.labs[name]], marker=marker)
        )
    by_layer = Lines("B  layer by layer", lines, "layer", "", bands=null, levels=[Level("", 0.0, GREY)])
    return Picture([by_lab, by_layer], f"grey: {NULL_NAME}", columns=2, size=(3.2, 2.8))


def _against_random(report: GeometryReport, name: str) -> list[Statistic]:
    return [entry for entry in report.statistics[name] if entry.null.kind == RANDOM]


def _cosine_band(report: GeometryReport) -> tuple[float, float]:
    null = _against_random(report, "cosine")[0].null  # one for all pairs
    return null.q05, null.q95


def _by_cluster(report: GeometryReport) -> tuple[list[int], list[int]]:
    """Places of the vectors cluster by cluster, those in none last; and where a cluster ends before the last one."""
    place = {vector.name: i for i, vector in enumerate(report.vectors)}
    groups = [*report.clusters.members.values(), report.clusters.unassigned]
    ends = np.cumsum([len(group) for group in groups if group]).tolist()
    return [place[name] for group in groups for name in group], ends[:-1]


def _point_lines(report: GeometryReport, xy: np.ndarray) -> list[Line]:
    """A point per vector [n, 2], a colour and a mark per cluster; names beside them while they can be read."""
    groups = {**report.clusters.members, "none": report.clusters.unassigned}
    place, lines = {vector.name: i for i, vector in enumerate(report.vectors)}, []
    for i, (cluster, members) in enumerate((name, some) for name, some in groups.items() if some):
        rows = xy[[place[name] for name in members]]
        names: Sequence[str] = members if len(xy) <= 12 else ()
        color, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        x, y = rows[:, 0].tolist(), rows[:, 1].tolist()
        lines.append(Line(cluster, x, y, color, style="", marker=marker, names=names))
    return lines


def _draw_explained(report: GeometryReport, explained: np.ndarray) -> Lines:
    null = [entry.null for entry in _against_random(report, "pca_explained")[: len(explained)]]
    x = [float(k + 1) for k in range(len(explained))]
    unrelated = Line(
        NULL_NAME, x[: len(null)], [n.mean for n in null], GREY, [n.q05 for n in null], [n.q95 for n in null], "", ""
    )
    own = Line("these vectors", x, explained.tolist(), PALETTE[0], bars=True)
    names = {value: f"PC{k + 1}" for k, value in enumerate(x)}
    return Lines("A  variance explained", [own, unrelated], "", "share", x_names=names)


def _draw_dendrogram(report: GeometryReport, cosine_VV: np.ndarray) -> Lines:
    tree = dendrogram(st.linkage_matrix(cosine_VV), no_plot=True)
    lines = [Line("", x, y, "#000000", marker="") for x, y in zip(tree["icoord"], tree["dcoord"], strict=True)]
    null = [entry.null for entry in _against_random(report, "linkage_height")]
    bands = [Band(NULL_NAME, min(n.q05 for n in null), max(n.q95 for n in null), GREY)] if null else []
    found = report.clusters.found
    cut = [] if found is None else [Level(f"cut at {found.cut:.2f}", found.cut, PALETTE[1], "--")]
    # scipy puts leaves at 5, 15, 25 …
    names = {5.0 + 10 * place: report.vectors[leaf].name for place, leaf in enumerate(tree["leaves"])}
    if len(names) > NAMED:  # leaves cannot be thinned
        names = {next(iter(names)): f"{len(names)} vectors"}
    return Lines("D  average linkage", lines, "", "1 − cosine", cut, bands=bands, x_names=names)

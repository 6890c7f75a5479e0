"""Figures 1–3 of the study, each with what unrelated vectors give in grey. Widths are a column or a page."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram

from emharness.geometry import clusters as cl
from emharness.geometry import statistics as st
from emharness.geometry.analysis_result import Analysis
from emharness.texts import shorten_name, spread_indices

COLUMN, PAGE = 3.4, 7.0  # inches
# Okabe and Ito's palette: told apart with any colour vision, and paired with marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#9a9a9a"
NULL_NAME = "unrelated directions, 5–95 %"
_NAMED = 44  # up to so many vectors are named on an axis; of more, every second, third, …


def draw_figures(analysis: Analysis) -> dict[str, Figure]:
    """figure1 (cosines), figure2 (structure; three different vectors or more), figure3 (with the base's own vector)."""
    out = {"figure1": draw_cosines(analysis)}
    if has_structure(analysis):
        out["figure2"] = draw_structure(analysis)
    if analysis.base_similarity:
        out["figure3"] = draw_base_similarity(analysis)
    return out


def has_structure(analysis: Analysis) -> bool:
    """Whether there are three vectors or more that are not all the same, so that their differences have a structure."""
    gram = analysis.selected.gram
    return len(gram) > 2 and float(np.max(1 - gram)) > 1e-6


def order_vectors(analysis: Analysis) -> list[int]:
    """Vectors cluster by cluster, those in none last."""
    listed = [i for group in analysis.design.clusters.values() for i in group]
    return listed + [i for i in range(len(analysis.vectors.names)) if i not in set(listed)]


def style_by_key(keys) -> dict[str, tuple[str, str]]:
    """Key → colour and mark."""
    return {key: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, key in enumerate(keys)}


def cluster_of(analysis: Analysis) -> list[str]:
    """The cluster of each vector, "none" where it has none."""
    owner = {i: name for name, group in analysis.design.clusters.items() for i in group}
    return [owner.get(i, "none") for i in range(len(analysis.vectors.names))]


def null_band(analysis: Analysis, key: str) -> tuple[np.ndarray, np.ndarray]:
    """5 % and 95 % of the random-directions null, per entry of a statistic."""
    low, high = np.nanquantile(analysis.null[key], [0.05, 0.95], axis=0)
    return low, high


def _style_axes(ax: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    ax.set_title(title, fontsize=8, loc="left")
    ax.set_xlabel(xlabel, fontsize=7)
    ax.set_ylabel(ylabel, fontsize=7)
    ax.tick_params(labelsize=6.5)
    ax.spines[["top", "right"]].set_visible(False)


def _slant_labels(ax: Axes, degrees: float) -> None:
    ax.tick_params(axis="x", labelsize=6, rotation=degrees)
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("right")
        label.set_rotation_mode("anchor")


def draw_cosines(analysis: Analysis) -> Figure:
    """Figure 1: cosine heatmap. Grey numbers lie within what unrelated directions give."""
    index = order_vectors(analysis)
    gram = analysis.selected.gram[np.ix_(index, index)]
    names, n = [analysis.vectors.names[i] for i in index], len(index)
    low, high = (float(edge[0]) for edge in null_band(analysis, "cosine"))
    side = max(COLUMN, 1.3 + 0.122 * min(n, _NAMED))  # a row of a named heatmap needs the height of its name
    figure = Figure(figsize=(side, side * 0.86), layout="constrained")
    ax = figure.add_subplot()
    image = ax.imshow(gram, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    if n <= 12:
        for i, j in np.ndindex(n, n):
            inside = low <= gram[i, j] <= high
            colour = "white" if abs(gram[i, j]) > 0.6 else GREY if inside else "black"
            ax.text(j, i, f"{gram[i, j]:.2f}", ha="center", va="center", fontsize=6, color=colour)
    ticks = spread_indices(n, _NAMED)
    ax.set_xticks(
        ticks, [shorten_name(names[i]) for i in ticks], rotation=40 if n <= 12 else 90, rotation_mode="anchor"
    )
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("right")
        label.set_verticalalignment("top" if n <= 12 else "center")
    ax.set_yticks(ticks, [shorten_name(names[i]) for i in ticks])
    ax.tick_params(labelsize=6 if n <= 16 else 5, length=2)
    edge = -0.5
    for group in analysis.design.clusters.values():
        edge += len(group)
        if edge < n - 0.5:
            ax.axhline(edge, color="black", lw=0.8)
            ax.axvline(edge, color="black", lw=0.8)
    bar = figure.colorbar(image, ax=ax, shrink=0.72, aspect=22, pad=0.02)
    bar.ax.axhspan(low, high, color=GREY, lw=0)
    bar.ax.tick_params(labelsize=6)
    bar.set_label(f"cosine (grey: {NULL_NAME})", fontsize=6)
    return figure


def draw_structure(analysis: Analysis) -> Figure:
    """Figure 2: (A) variance explained (B) two components (C) loadings (D) dendrogram (E) scaling."""
    figure = Figure(figsize=(PAGE, 4.7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.12))[:, 0]
    a, b, c = top.subplots(1, 3, width_ratios=(1, 1.15, 0.9))
    d, e = bottom.subplots(1, 2, width_ratios=(1.15, 1))
    gram, names = analysis.selected.gram, analysis.vectors.names
    explained, loadings = st.centered_pca(gram, min(len(names) - 1, 10))
    _plot_explained(a, analysis, explained)
    x, y = (0, 1) if loadings.shape[1] > 1 else (0, 0)
    _plot_points(b, analysis, loadings[:, [x, y]])
    _style_axes(b, "B  two components", f"PC1 ({explained[x]:.0%})", f"PC2 ({explained[y]:.0%})")
    _plot_loadings(c, analysis, loadings[:, :3])
    _plot_dendrogram(d, analysis)
    _plot_points(e, analysis, cl.scale_to_plane(gram), legend=True)
    _style_axes(e, "E  scaling of 1 − cosine", "dimension 1", "dimension 2")
    return figure


def _plot_explained(ax: Axes, analysis: Analysis, explained: np.ndarray) -> None:
    low, high = null_band(analysis, "pca_explained")
    x = np.arange(1, len(explained) + 1)
    ax.bar(x, explained, color=COLOURS[0], width=0.62, label="these vectors")
    for i, (lo, hi) in enumerate(zip(low, high, strict=True)):
        middle, half = (lo + hi) / 2, max((hi - lo) / 2, 0.006)
        ax.fill_between(
            [i + 0.55, i + 1.45], middle - half, middle + half, color=GREY, lw=0,
            label=NULL_NAME if i == 0 else None,
        )  # fmt: skip
    ax.set_xticks(x)
    ax.set_ylim(0, max(explained[0], high[0]) * 1.45)
    ax.legend(fontsize=6, frameon=False, loc="upper right", borderaxespad=0)
    _style_axes(ax, "A  variance explained", "component", "share")


def _plot_points(ax: Axes, analysis: Analysis, xy: np.ndarray, legend: bool = False) -> None:
    owner = cluster_of(analysis)
    for cluster, (colour, mark) in style_by_key(dict.fromkeys(owner)).items():
        rows = [i for i, name in enumerate(owner) if name == cluster]
        ax.scatter(*xy[rows].T, c=colour, marker=mark, s=22, label=shorten_name(cluster), lw=0)
    for line in (ax.axhline, ax.axvline):
        line(0, color=GREY, lw=0.5, zorder=0)
    if len(xy) <= 12:
        ax.margins(0.8, 0.22)  # room for the names
        _name_points(ax, analysis, xy)
    elif legend:
        ax.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _name_points(ax: Axes, analysis: Analysis, xy: np.ndarray) -> None:
    """Names beside their points, away from the middle; of two near points one is named above, one below."""
    middle, reach = (xy.min(0) + xy.max(0)) / 2, np.ptp(xy, axis=0) + 1e-9
    for i, name in enumerate(analysis.vectors.names):
        near = [j for j in range(len(xy)) if j != i and (np.abs(xy[j] - xy[i]) / reach < (0.5, 0.11)).all()]
        below = any((xy[j, 1], j) > (xy[i, 1], i) for j in near)
        left = xy[i, 0] < middle[0]
        ax.annotate(
            shorten_name(name), xy[i], (-3 if left else 3, -3 if below else 3), textcoords="offset points",
            ha="right" if left else "left", va="top" if below else "bottom", fontsize=6,
        )  # fmt: skip


def _plot_loadings(ax: Axes, analysis: Analysis, loadings: np.ndarray) -> None:
    index = order_vectors(analysis)
    values, n = loadings[index], len(index)
    ax.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    if n <= 16:
        for i, j in np.ndindex(*values.shape):
            colour = "white" if abs(values[i, j]) > 0.6 else "black"
            ax.text(j, i, f"{values[i, j]:+.2f}", ha="center", va="center", fontsize=6, color=colour)
    ticks = spread_indices(n, 16)
    _style_axes(ax, "C  loadings")
    ax.set_yticks(ticks, [shorten_name(analysis.vectors.names[index[i]]) for i in ticks])
    ax.set_xticks(range(values.shape[1]), [f"PC{j + 1}" for j in range(values.shape[1])])


def _plot_dendrogram(ax: Axes, analysis: Analysis) -> None:
    low, high = null_band(analysis, "linkage_height")
    names = analysis.vectors.names
    ax.axhspan(low.min(), high.max(), color=GREY, alpha=0.55, lw=0, label=NULL_NAME)
    z = st.linkage_matrix(analysis.selected.gram)
    many = len(names) > _NAMED  # a dendrogram's leaves cannot be thinned
    dendrogram(
        z, ax=ax, labels=None if many else [shorten_name(name) for name in names], no_labels=many,
        color_threshold=0, above_threshold_color="black",
    )  # fmt: skip
    if found := analysis.clusters.found:
        ax.axhline(found.cut, color=COLOURS[1], lw=0.9, ls="--", label=f"cut at {found.cut:.2f}")
    _style_axes(ax, "D  average linkage", "" if not many else f"{len(names)} vectors", "1 − cosine")
    _slant_labels(ax, 22 if len(names) <= 8 else 90)
    ax.tick_params(axis="x", labelsize=6 if len(names) <= 16 else 5 if len(names) <= 30 else 4)
    ax.set_ylim(0, max(high.max(), z[-1, 2]) * 1.3)
    ax.legend(fontsize=6, frameon=False, loc="upper right", ncols=2, borderaxespad=0)


def draw_base_similarity(analysis: Analysis) -> Figure:
    """Figure 3: cosine with the base model's own vector, (A) by lab and (B) layer by layer."""
    found = analysis.base_similarity
    assert found is not None
    style = style_by_key(found.by_lab)
    low, high = (float(edge[0]) for edge in null_band(analysis, "cosine"))
    figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
    a, b = figure.subplots(1, 2, width_ratios=(1, 2.1))
    labs, means = list(found.by_lab), list(found.by_lab.values())
    a.bar(range(len(labs)), means, color=[style[lab][0] for lab in labs], width=0.6)
    for i, mean in enumerate(means):
        a.text(i, mean + (0.02 if mean >= 0 else -0.02), f"{mean:.2f}", ha="center", fontsize=6.5,
               va="bottom" if mean >= 0 else "top")  # fmt: skip
    a.set_xticks(range(len(labs)), [shorten_name(lab) for lab in labs])
    a.margins(y=0.15)
    _style_axes(a, "A  mean over layers, by lab", "", "cosine with the base's vector")
    _slant_labels(a, 18)
    lines = ("-", "--", ":", "-.")
    seen: dict[str, int] = {}
    for name, row in found.layers.items():
        lab = found.labs[name]
        colour, mark = style[lab]
        b.plot(row, color=colour, ls=lines[seen.get(lab, 0) % 4], marker=mark, ms=2.6, lw=1.1,
               label=f"{shorten_name(name)} ({lab})")  # fmt: skip
        seen[lab] = seen.get(lab, 0) + 1
    for ax in (a, b):
        ax.axhspan(low, high, color=GREY, alpha=0.6, lw=0, label=NULL_NAME, zorder=0)
        ax.axhline(0, color="black", lw=0.5)
    _style_axes(b, "B  layer by layer", "layer", "")
    if len(found.layers) <= 12:
        b.legend(fontsize=5.8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure

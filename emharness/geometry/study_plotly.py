"""Figures 1–3 as Plotly figures: plain dictionaries, so that Plotly itself is needed only to show them."""

import numpy as np

from emharness.geometry import clusters as cl
from emharness.geometry import statistics as st
from emharness.geometry.analysis_result import Analysis
from emharness.geometry.study_figures import (
    GREY,
    NULL_NAME,
    cluster_of,
    has_structure,
    null_band,
    order_vectors,
    style_by_key,
)

_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down",
            "P": "cross", "X": "x", "*": "star"}  # fmt: skip


def plotly_figures(analysis: Analysis) -> dict[str, dict]:
    """{"figure1": {"data", "layout"}, …}; `plotly.graph_objects.Figure(figure)` takes each."""
    out = {"figure1": cosines_figure(analysis)}
    if has_structure(analysis):
        out["figure2"] = structure_figure(analysis)
    if analysis.base_similarity:
        out["figure3"] = base_similarity_figure(analysis)
    return out


def cosines_figure(analysis: Analysis) -> dict:
    """Figure 1."""
    index = order_vectors(analysis)
    names = [analysis.vectors.names[i] for i in index]
    low, high = (float(edge[0]) for edge in null_band(analysis, "cosine"))
    heat = _heatmap_trace(analysis.selected.gram[np.ix_(index, index)], names, names) | {
        "colorbar": {"title": "cosine"}
    }
    title = f"Cosines ({NULL_NAME}: {low:.3f} … {high:.3f})"
    return {"data": [heat], "layout": {"title": {"text": title}, "yaxis": {"autorange": "reversed"}}}


def _heatmap_trace(values: np.ndarray, x: list[str], y: list[str]) -> dict:
    return {"type": "heatmap", "z": values.tolist(), "x": x, "y": y, "colorscale": "RdBu", "reversescale": True,
            "zmin": -1, "zmax": 1}  # fmt: skip


def structure_figure(analysis: Analysis) -> dict:
    """Figure 2, its five panels side by side on axes x … x5."""
    names, owner = list(analysis.vectors.names), cluster_of(analysis)
    gram = analysis.selected.gram
    explained, loadings = st.centered_pca(gram, min(len(names) - 1, 10))
    low, high = null_band(analysis, "pca_explained")
    heights = st.linkage_matrix(gram)[:, 2].tolist()
    h_low, h_high = null_band(analysis, "linkage_height")
    components = [f"PC{i + 1}" for i in range(len(explained))]
    style = style_by_key(dict.fromkeys(owner))
    marker = {"color": [style[o][0] for o in owner], "symbol": [_SYMBOLS[style[o][1]] for o in owner]}

    def scatter_trace(xy: np.ndarray, axis: int) -> dict:
        return {"type": "scatter", "mode": "markers+text", "x": xy[:, 0].tolist(), "y": xy[:, 1].tolist(),
                "text": names, "marker": marker} | _axis_names(axis)  # fmt: skip

    heat = _heatmap_trace(loadings[:, :3], components[:3], names)
    data = [
        {"type": "bar", "x": components, "y": explained.tolist(), "name": "variance explained"} | _axis_names(1),
        *_band_traces(components, low, high, 1),
        scatter_trace(loadings[:, [0, min(1, loadings.shape[1] - 1)]], 2),
        heat | {"showscale": False} | _axis_names(3),
        {"type": "bar", "x": _merge_names(len(heights)), "y": heights, "name": "merge height"} | _axis_names(4),
        *_band_traces(_merge_names(len(heights)), h_low, h_high, 4),
        scatter_trace(cl.scale_to_plane(gram), 5),
    ]
    titles = ("A variance explained", "B two components", "C loadings", "D merge heights", "E scaling")
    layout: dict = {"showlegend": False, "grid": {"rows": 1, "columns": 5, "pattern": "independent"}}
    for i, title in enumerate(titles, start=1):
        layout[f"xaxis{i if i > 1 else ''}"] = {"title": {"text": title}}
    return {"data": data, "layout": layout}


def _merge_names(n: int) -> list[str]:
    return [f"merge {i + 1}" for i in range(n)]


def _axis_names(i: int) -> dict:
    return {"xaxis": f"x{i}", "yaxis": f"y{i}"} if i > 1 else {"xaxis": "x", "yaxis": "y"}


def _band_traces(x: list, low: np.ndarray, high: np.ndarray, axis: int) -> list[dict]:
    """Two traces: the null's lower edge, and its upper edge filled down to it in grey."""
    common = {"type": "scatter", "mode": "lines", "x": x, "line": {"color": GREY, "width": 0}} | _axis_names(axis)
    return [
        common | {"y": np.asarray(low).tolist(), "hoverinfo": "skip"},
        common | {"y": np.asarray(high).tolist(), "fill": "tonexty", "fillcolor": GREY, "opacity": 0.5,
                  "name": NULL_NAME},
    ]  # fmt: skip


def base_similarity_figure(analysis: Analysis) -> dict:
    """Figure 3."""
    found = analysis.base_similarity
    assert found is not None
    style = style_by_key(found.by_lab)
    low, high = null_band(analysis, "cosine")
    layers = list(range(analysis.vectors.n_layers))
    labs = list(found.by_lab)
    data = [{"type": "bar", "x": labs, "y": list(found.by_lab.values()), "showlegend": False,
             "marker": {"color": [style[lab][0] for lab in labs]}} | _axis_names(1)]  # fmt: skip
    data += _band_traces(layers, np.full(len(layers), low[0]), np.full(len(layers), high[0]), 2)
    for name, row in found.layers.items():
        colour = style[found.labs[name]][0]
        data.append({"type": "scatter", "mode": "lines", "x": layers, "y": list(row), "line": {"color": colour},
                     "name": f"{name} ({found.labs[name]})"} | _axis_names(2))  # fmt: skip
    layout = {"grid": {"rows": 1, "columns": 2, "pattern": "independent"},
              "yaxis": {"title": {"text": "cosine with the base's vector"}},
              "xaxis2": {"title": {"text": "layer"}}}  # fmt: skip
    return {"data": data, "layout": layout}

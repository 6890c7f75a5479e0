"""A picture as an image (Matplotlib) and as Plotly, from the same data."""

from io import StringIO

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from emharness.reporting.picture import FEW, GREY, NAMED, Line, Lines, Matrix, Picture
from emharness.results.json_records import Json
from emharness.texts import shorten_name, spread_indices

DARK = "#111111"  # said, unlike black: stays dark on a light cell in every colour scheme
LEGEND = 1.6  # inches beside several panels
NOTE = 0.12  # inches below all of them
DASHES = {"-": "solid", "--": "dash", ":": "dot"}


def draw_image(picture: Picture) -> Figure:
    n_rows = -(-len(picture.panels) // picture.columns)
    several = len(picture.panels) > 1 and isinstance(picture.panels[0], Lines)
    width = picture.size[0] * picture.columns + LEGEND * several
    height = picture.size[1] * n_rows + 0.3
    figure = Figure(
        figsize=(width, height), layout=ConstrainedLayoutEngine(rect=(0, NOTE / height, 1, 1 - NOTE / height))
    )
    axes = list(figure.subplots(n_rows, picture.columns, squeeze=False).flat)
    for place, panel in zip(axes, picture.panels, strict=False):
        if isinstance(panel, Lines):
            _draw_lines(place, panel, bars=not several, room=picture.size[0] if several else None)
        else:
            _draw_matrix(figure, place, panel)
    for place in axes[len(picture.panels) :]:
        place.set_visible(False)
    handles = _draw_legend([line for panel in picture.panels if isinstance(panel, Lines) for line in panel.lines])
    if several:
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    elif isinstance(picture.panels[0], Lines):
        levels = [Line2D([], [], color=e.color, ls=e.style, label=e.label) for e in picture.panels[0].levels if e.label]
        axes[0].legend(handles=[*handles, *levels], framealpha=0.8, edgecolor="none", fontsize=8)
    figure.text(0.995, 0.005, picture.note, ha="right", va="bottom", fontsize=6, color=GREY)
    return figure


def draw_svg(picture: Picture) -> str:
    """An `<svg>` for a page of either colour scheme: black is the page's text colour, letters are text."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "emharness"}):
        drawn = StringIO()
        draw_image(picture).savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    return text.replace("fill: #ffffff; opacity: 0.8", "fill: var(--ground, #ffffff); opacity: 0.8")  # of legends


def _draw_legend(lines: list[Line]) -> list[Line2D]:
    first: dict[str, Line] = {}
    for line in lines:
        first.setdefault(line.label, line)
    return [
        Line2D(
            [], [], color=e.color, ls=e.style or "none", marker=e.marker, ms=4, lw=1.2, label=shorten_name(label, 40)
        )
        for label, e in first.items()
        if label
    ]


def _draw_lines(axes: Axes, panel: Lines, bars: bool, room: float | None) -> None:
    """`room`: inches of its title, where other panels lie beside it."""
    for line in panel.lines:
        axes.plot(line.x, line.y, ls=line.style or "none", color=line.color, lw=1.2)
        for x, y, hollow in zip(line.x, line.y, line.hollow or [False] * len(line.x), strict=True):
            axes.plot(x, y, line.marker, color=line.color, mfc="white" if hollow else line.color, ms=4)
        if line.low is not None and line.high is not None:
            if bars:
                y = np.array(line.y)
                errors = np.maximum(0, [y - np.array(line.low), np.array(line.high) - y])
                axes.errorbar(line.x, y, yerr=errors, color=line.color, fmt="none", capsize=3)
            else:
                axes.fill_between(line.x, line.low, line.high, color=line.color, alpha=0.12, lw=0)
    for level in panel.levels:
        across = axes.axvline if level.upright else axes.axhline
        across(level.value, color=level.color, ls=level.style, lw=1.2)
    axes.set(ylim=panel.y_range)
    title = panel.title if room is None else shorten_name(panel.title, int(10 * room))
    axes.set_title(title, fontsize=9 if room is None or room > 3 else 7)
    axes.set_xlabel(panel.x_label, fontsize=9)
    axes.set_ylabel(panel.y_label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_matrix(figure: Figure, axes: Axes, panel: Matrix) -> None:
    least, colours = (-panel.color_limit, "RdBu_r") if panel.is_diverging else (0.0, "Oranges")
    shown = axes.imshow(panel.values, cmap=colours, vmin=least, vmax=panel.color_limit, aspect="auto")
    axes.set_facecolor("#eeeeee")
    few = panel.is_small
    for (r, c), value in np.ndenumerate(panel.values) if few else ():
        known = np.isfinite(value)
        ink = GREY if not known else "white" if abs(value) > 0.6 * panel.color_limit else DARK
        axes.text(c, r, panel.cell_text(r, c), ha="center", va="center", fontsize=7, color=ink)
    if not few and panel.marks is not None:
        axes.scatter(*np.argwhere(panel.marks).T[::-1], marker="x", s=5, lw=0.5, color=DARK)
    x, y = spread_indices(len(panel.columns), NAMED), spread_indices(len(panel.rows), NAMED)
    names = [shorten_name(panel.columns[i]) for i in x]
    turned = {"rotation": 45, "ha": "right"} if few else {"rotation": 90}
    axes.set_xticks(x, names, **turned, fontsize=8 if few else 5)  # type: ignore[arg-type]
    own = [shorten_name(panel.rows[i]) if panel.y_label else "" for i in y]
    axes.set_yticks(y, own, fontsize=8 if len(panel.rows) <= FEW else 5)
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.x_label, fontsize=8)
    axes.set_ylabel(panel.y_label, fontsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.8, format=lambda v, _: f"{100 * v:.0f} %")


def to_plotly(picture: Picture) -> Json:
    """{"data", "layout"} of a `plotly.graph_objects.Figure`; needs no Plotly. Undefined values are gaps."""
    n_rows = -(-len(picture.panels) // picture.columns)
    data: list[Json] = []
    layout: Json = {
        "grid": {"rows": n_rows, "columns": picture.columns, "pattern": "independent"},
        "annotations": [_note_annotation(picture.note)],
    }
    named: set[str] = set()
    for i, panel in enumerate(picture.panels, start=1):
        number = "" if i == 1 else str(i)
        place = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        layout[f"xaxis{number}"] = {"title": {"text": panel.x_label}}
        layout[f"yaxis{number}"] = {"title": {"text": panel.y_label}}
        title = {"text": panel.title, "xref": f"x{number} domain", "yref": f"y{number} domain", "x": 0.5, "y": 1.0}
        layout["annotations"].append(title | {"showarrow": False, "xanchor": "center", "yanchor": "bottom"})
        if isinstance(panel, Matrix):
            layout[f"yaxis{number}"]["autorange"] = "reversed"
            data.append(_heatmap_trace(panel, showscale=i == len(picture.panels)) | place)
            continue
        if panel.y_range:
            layout[f"yaxis{number}"]["range"] = list(panel.y_range)
        for line in panel.lines:
            data.append(_line_trace(line, first=bool(line.label) and line.label not in named) | place)
            named.add(line.label)
        for level in panel.levels:
            along, across = ("x", "y") if level.upright else ("y", "x")
            shape = {along + "0": level.value, along + "1": level.value, across + "0": 0, across + "1": 1}
            refs = {along + "ref": along + number, across + "ref": f"{across}{number} domain", "type": "line"}
            drawn = {"color": level.color, "dash": DASHES[level.style], "width": 1.2}
            style = {"line": drawn, "label": {"text": level.label}}
            layout.setdefault("shapes", []).append(shape | refs | style)
    return {"data": data, "layout": layout}


def _line_trace(line: Line, first: bool) -> Json:
    marker: Json = {"color": line.color, "symbol": "circle" if line.marker == "o" else "x"}
    if line.hollow:
        marker["symbol"] = ["circle-open" if hollow else "circle" for hollow in line.hollow]
    trace: Json = {
        "type": "scatter", "mode": "lines+markers" if line.style else "markers", "name": line.label,
        "legendgroup": line.label, "showlegend": first, "x": list(line.x), "y": list(line.y), "marker": marker,
    }  # fmt: skip
    if line.style:
        trace["line"] = {"color": line.color, "dash": DASHES[line.style]}
    if line.low is not None and line.high is not None:
        up = [max(0.0, high - y) for high, y in zip(line.high, line.y, strict=True)]
        down = [max(0.0, y - low) for low, y in zip(line.low, line.y, strict=True)]
        trace["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    return trace


def _heatmap_trace(panel: Matrix, showscale: bool) -> Json:
    values = [[100 * float(v) if np.isfinite(v) else None for v in row] for row in panel.values]
    texts = [[panel.cell_text(r, c) for c in range(len(panel.columns))] for r in range(len(panel.rows))]
    colours = {"colorscale": "RdBu", "reversescale": True} if panel.is_diverging else {"colorscale": "Oranges"}
    limits = {"zmin": -100 * panel.color_limit if panel.is_diverging else 0, "zmax": 100 * panel.color_limit}
    return {
        "type": "heatmap", "z": values, "x": list(panel.columns), "y": list(panel.rows), "text": texts,
        "texttemplate": "%{text}", "showscale": showscale, "colorbar": {"ticksuffix": " %"}, **colours, **limits,
    }  # fmt: skip


def _note_annotation(text: str) -> Json:
    place = {"xref": "paper", "yref": "paper", "x": 1.0, "y": -0.12, "xanchor": "right"}
    return {"text": text, "showarrow": False, "font": {"size": 10, "color": GREY}, **place}

"""A picture as an image (Matplotlib) and as Plotly, from the same data."""

from collections.abc import Sequence
from io import StringIO

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from emharness.figures.picture import FEW, GREY, NAMED, Line, Lines, Matrix, Picture
from emharness.results.json_records import Json
from emharness.texts import shorten_name, spread_indices

DARK = "#111111"  # said, unlike black: stays dark on a light cell in every colour scheme
LEGEND = 1.6  # inches beside several panels
NOTE = 0.12  # inches below all of them
FEW_NAMES = 8  # on an x axis of lines: so few stand slanted
DASHES = {"-": "solid", "--": "dash", ":": "dot"}
SYMBOLS = {
    "o": "circle", "x": "x", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross",
    "*": "star",
}  # fmt: skip


def draw_image(picture: Picture) -> Figure:
    n_rows = -(-len(picture.panels) // picture.columns)
    several = len(picture.panels) > 1 and any(isinstance(panel, Lines) for panel in picture.panels)
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
    handles = _draw_legend([panel for panel in picture.panels if isinstance(panel, Lines)])
    if several and handles:
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


def _draw_legend(panels: list[Lines]) -> list[Artist]:
    """A handle for each label, as it looks where it is first."""
    found: dict[str, Artist] = {}
    for panel in panels:
        for line in panel.lines:
            label, marker = shorten_name(line.label, 40), line.marker or "none"
            look = Line2D([], [], color=line.color, ls=line.style or "none", marker=marker, ms=4, lw=1.2, label=label)
            filled = line.bars or not (line.style or line.marker)
            found.setdefault(line.label, Patch(color=line.color, lw=0, label=label) if filled else look)
        for band in panel.bands:
            found.setdefault(band.label, Patch(color=band.color, label=band.label, lw=0))
    return [handle for label, handle in found.items() if label]


def _draw_lines(axes: Axes, panel: Lines, bars: bool, room: float | None) -> None:
    """`room`: inches of its title, where other panels lie beside it."""
    for line in panel.lines:
        if line.bars:
            axes.bar(line.x, line.y, color=line.color, width=0.6)
        else:
            axes.plot(line.x, line.y, ls=line.style or "none", color=line.color, lw=1.2)
        for x, y, hollow in zip(line.x, line.y, line.hollow or [False] * len(line.x), strict=True):
            if line.marker and not line.bars:
                axes.plot(x, y, line.marker, color=line.color, mfc="white" if hollow else line.color, ms=4)
        if line.low is not None and line.high is not None:
            if bars:
                y = np.array(line.y)
                errors = np.maximum(0, [y - np.array(line.low), np.array(line.high) - y])
                axes.errorbar(line.x, y, yerr=errors, color=line.color, fmt="none", capsize=3)
            else:
                axes.fill_between(
                    line.x, line.low, line.high, color=line.color, alpha=0.4 if line.color == GREY else 0.12, lw=0
                )
    for level in panel.levels:
        across = axes.axvline if level.upright else axes.axhline
        across(level.value, color=level.color, ls=level.style, lw=1.2)
    for band in panel.bands:
        axes.axhspan(band.low, band.high, color=band.color, alpha=0.45, lw=0, zorder=0)
    axes.set(ylim=panel.y_range)
    if panel.x_names:
        places = [list(panel.x_names)[i] for i in spread_indices(len(panel.x_names), NAMED)]
        few = len(places) <= FEW_NAMES
        names = [shorten_name(panel.x_names[x]) for x in places]
        axes.set_xticks(places, names, rotation=25 if few else 90, ha="right" if few else "center", fontsize=6)
    _name_points(axes, panel.lines)
    title = panel.title if room is None else shorten_name(panel.title, int(10 * room))
    axes.set_title(title, fontsize=9 if room is None or room > 3 else 7)
    axes.set_xlabel(panel.x_label, fontsize=9)
    axes.set_ylabel(panel.y_label, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _name_points(axes: Axes, lines: Sequence[Line]) -> None:
    """Names beside their points, away from the middle; of two near points one is named above, one below."""
    named = [(x, y, name) for line in lines for x, y, name in zip(line.x, line.y, line.names, strict=False)]
    if not named:
        return
    axes.margins(0.6, 0.25)  # space for the names
    xy = np.array([(x, y) for x, y, _ in named])
    middle, reach = (xy.min(0) + xy.max(0)) / 2, np.ptp(xy, axis=0) + 1e-9
    for i, (x, y, name) in enumerate(named):
        near = [j for j in range(len(xy)) if j != i and (np.abs(xy[j] - xy[i]) / reach < (0.5, 0.11)).all()]
        below, left = any((xy[j, 1], j) > (y, i) for j in near), x < middle[0]
        axes.annotate(
            shorten_name(name), (x, y), (-3 if left else 3, -3 if below else 3), textcoords="offset points",
            ha="right" if left else "left", va="top" if below else "bottom", fontsize=6,
        )  # fmt: skip


def _draw_matrix(figure: Figure, axes: Axes, panel: Matrix) -> None:
    least, colours = (-panel.color_limit, "RdBu_r") if panel.is_diverging else (0.0, "Oranges")
    shown = axes.imshow(panel.values, cmap=colours, vmin=least, vmax=panel.color_limit, aspect="auto")
    axes.set_facecolor("#eeeeee")
    few = panel.is_small
    for (r, c), value in np.ndenumerate(panel.values) if few else ():
        usual = panel.usual is not None and panel.usual[0] <= value <= panel.usual[1]
        plain = GREY if usual or not np.isfinite(value) else DARK
        ink = "white" if np.isfinite(value) and abs(value) > 0.6 * panel.color_limit else plain
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
    for edge in panel.edges:
        for across in (axes.axhline, axes.axvline):
            across(edge - 0.5, color=DARK, lw=0.8)
    plain = panel.decimals is not None
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, format=lambda v, _: f"{v:g}" if plain else f"{100 * v:.0f} %")
    if panel.usual is not None:
        bar.ax.axhspan(*panel.usual, color=GREY, lw=0)


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
        if isinstance(panel, Lines) and panel.x_names:
            layout[f"xaxis{number}"] |= {"tickvals": list(panel.x_names), "ticktext": list(panel.x_names.values())}
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
        for band in panel.bands:
            area = {"type": "rect", "xref": f"x{number} domain", "x0": 0, "x1": 1, "yref": f"y{number}"}
            look = {"fillcolor": band.color, "opacity": 0.3, "line": {"width": 0}, "layer": "below"}
            layout.setdefault("shapes", []).append(area | look | {"y0": band.low, "y1": band.high})
    return {"data": data, "layout": layout}


def _line_trace(line: Line, first: bool) -> Json:
    if line.bars:
        bars = {"type": "bar", "name": line.label, "legendgroup": line.label, "showlegend": first and bool(line.label)}
        return {**bars, "x": list(line.x), "y": list(line.y), "marker": {"color": line.color}}
    marker: Json = {"color": line.color, "symbol": SYMBOLS.get(line.marker, "circle")}
    if line.hollow:
        marker["symbol"] = ["circle-open" if hollow else "circle" for hollow in line.hollow]
    trace: Json = {
        "type": "scatter", "mode": _line_mode(line), "name": line.label,
        "legendgroup": line.label, "showlegend": first and bool(line.label), "x": list(line.x), "y": list(line.y),
        "marker": marker,
    }  # fmt: skip
    if line.style:
        trace["line"] = {"color": line.color, "dash": DASHES[line.style]}
    if line.names:
        trace |= {"text": list(line.names), "textposition": "top center"}
    if line.low is not None and line.high is not None:
        up = [max(0.0, high - y) for high, y in zip(line.high, line.y, strict=True)]
        down = [max(0.0, y - low) for low, y in zip(line.low, line.y, strict=True)]
        trace["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    return trace


def _line_mode(line: Line) -> str:
    shown = {"lines": line.style, "markers": line.marker, "text": line.names}
    return "+".join(name for name, there in shown.items() if there) or "none"


def _heatmap_trace(panel: Matrix, showscale: bool) -> Json:
    scale, unit = (100, " %") if panel.decimals is None else (1, "")
    values = [[scale * float(v) if np.isfinite(v) else None for v in row] for row in panel.values]
    texts = [[panel.cell_text(r, c) for c in range(len(panel.columns))] for r in range(len(panel.rows))]
    colours = {"colorscale": "RdBu", "reversescale": True} if panel.is_diverging else {"colorscale": "Oranges"}
    limits = {"zmin": -scale * panel.color_limit if panel.is_diverging else 0, "zmax": scale * panel.color_limit}
    return {
        "type": "heatmap", "z": values, "x": list(panel.columns), "y": list(panel.rows), "text": texts,
        "texttemplate": "%{text}", "showscale": showscale, "colorbar": {"ticksuffix": unit}, **colours, **limits,
    }  # fmt: skip


def _note_annotation(text: str) -> Json:
    place = {"xref": "paper", "yref": "paper", "x": 1.0, "y": -0.12, "xanchor": "right"}
    return {"text": text, "showarrow": False, "font": {"size": 10, "color": GREY}, **place}

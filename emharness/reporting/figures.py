"""Figures of a run: dose–response and layer sweep, colour-blind safe, readable at column width."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

RED, BLUE, GREY, ORANGE = "#D55E00", "#0072B2", "#7f7f7f", "#E69F00"  # Okabe–Ito
PALETTE = (BLUE, RED, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#000000", "#F0E442")


def dose_response(entries: list[dict[str, Any]], vector: str, target: str, unit: str, title: str, judge: str) -> Figure:
    """Misaligned rate and coherent rate of one target against the strength of one vector.

    `entries` are those of results.json. Beside it the random directions at the same added norm (misaligned rate, in
    grey) and the organism that the vector is from.
    """
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    baseline = [e for e in entries if e["target"] == target and not e["vector"]]
    doses = _by_strength(baseline + [e for e in entries if e["target"] == target and e["vector"] == vector])
    _line(axes, doses, "em_rate", RED, "misaligned, of coherent answers", interval=True)
    _line(axes, doses, "coherent_rate", BLUE, "coherent")
    randoms = [e for e in entries if e["target"] == target and e["control_of"] == vector]
    for i, name in enumerate(dict.fromkeys(e["vector"] for e in randoms)):
        some = _by_strength([e for e in randoms if e["vector"] == name])
        _line(axes, some, "em_rate", GREY, "" if i else "random directions, misaligned", marker="x", style="--")
    organism = next((e for e in entries if e["target"] == vector and not e["vector"]), None)
    if organism and organism["em_rate"] is not None:
        axes.axhline(100 * organism["em_rate"], color=ORANGE, ls="--", lw=1.2, label="organism, misaligned")
    axes.set(xlabel=f"steering strength ({unit})", ylabel="answers (%)", ylim=(-3, 103), title=title)
    axes.legend(frameon=False, fontsize=8)
    _finish(figure, axes, f"judge: {judge}")
    return figure


def dose_panels(
    entries: list[dict[str, Any]], vectors: Sequence[str], targets: Sequence[str], unit: str, judge: str
) -> Figure:
    """Figure 4: a panel per vector, a line per target with its interval as a band; random directions in grey."""
    columns = min(3, len(vectors))
    rows = -(-len(vectors) // columns)
    figure = Figure(figsize=(3.4 * columns + 1.6, 2.9 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    colors = dict(zip(targets, PALETTE * len(targets), strict=False))
    for axes, vector in zip(grid.flat, vectors, strict=False):
        for i, target in enumerate(targets):
            here = [e for e in entries if e["target"] == target]
            doses = [e for e in here if not e["vector"] or e["vector"] == vector]
            doses = [e for e in _by_strength(doses) if e["em_rate"] is not None]
            x = [e["strength"] for e in doses]
            style = "-" if i < len(PALETTE) else "--"
            axes.plot(x, [100 * e["em_rate"] for e in doses], style, marker="o", ms=3, lw=1.2, color=colors[target])
            low, high = ([100 * e["em_ci95"][k] for e in doses] for k in (0, 1))
            axes.fill_between(x, low, high, color=colors[target], alpha=0.12, lw=0)
            for e in here:
                if e["control_of"] == vector and e["em_rate"] is not None:
                    axes.plot(e["strength"], 100 * e["em_rate"], "x", color=GREY, ms=3, alpha=0.6)
        axes.set(title=vector, ylim=(-3, 103))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(vectors) :]:
        axes.set_visible(False)
    figure.supxlabel(f"steering strength ({unit}; 0 = the target as it is)", fontsize=9)
    figure.supylabel("misaligned, of coherent answers (%)", fontsize=9)
    lines = [Line2D([], [], color=colors[t], ls="-" if i < len(PALETTE) else "--") for i, t in enumerate(targets)]
    lines.append(Line2D([], [], color=GREY, marker="x", ls="", ms=4))
    figure.legend(lines, [*targets, "random directions"], loc="outside right upper", frameon=False, fontsize=8)
    figure.text(0.995, 0.005, f"bands: 95 %, over questions; judge: {judge}", ha="right", va="bottom", fontsize=6)
    return figure


def monitor(rows: list[dict[str, Any]], vectors: Sequence[str], judge: str) -> Figure:
    """A column per vector: its projection at each checkpoint above, the misaligned rate of the same ones below."""
    figure = Figure(figsize=(3.6 * len(vectors) + 1.6, 4.6), layout="constrained")
    grid = figure.subplots(2, len(vectors), squeeze=False, sharex=True)
    organisms = [name for name in dict.fromkeys(row["organism"] for row in rows) if any(
        row["organism"] == name and row["step"] != 0 for row in rows)]  # fmt: skip
    last = 1.25 * max([row["step"] for row in rows if row["step"]] or [1])  # where whole trainings stand
    for column, vector in enumerate(vectors):
        start = next((row for row in rows if row["step"] == 0 and row["vector"] == vector), None)
        for organism, color in zip(organisms, PALETTE * len(organisms), strict=False):
            own = [row for row in rows if row["vector"] == vector and row["organism"] == organism]
            own = sorted(([start] if start else []) + own, key=lambda row: last if row["step"] is None else row["step"])
            x = [last if row["step"] is None else row["step"] for row in own]
            for axes, key, scale in ((grid[0, column], "projection", 1), (grid[1, column], "em_rate", 100)):
                points = [(a, scale * row[key]) for a, row in zip(x, own, strict=True) if row[key] is not None]
                axes.plot(*zip(*points, strict=True), "o-", ms=3, lw=1.2, color=color, label=organism)
        grid[0, column].set_title(f"{vector} vector", fontsize=9)
        grid[1, column].set_xlabel("training step (rightmost: the whole training)", fontsize=8)
    grid[0, 0].set_ylabel("projection, minus the base's", fontsize=8)
    grid[1, 0].set_ylabel("misaligned, of coherent (%)", fontsize=8)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.text(0.995, 0.005, f"judge: {judge}", ha="right", va="bottom", fontsize=6, color=GREY)
    return figure


def heatmaps(
    panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]], rows: Sequence[str], columns: Sequence[str],
    row_label: str, column_label: str, judge: str,
) -> Figure:  # fmt: skip
    """Matrices in per cent side by side: (title, values [n_rows, n_columns] as fractions, marks bool or None).

    An undefined value (NaN) is hatched; a marked one gets a "!" (a random direction does the same).
    """
    figure = Figure(figsize=((0.62 * len(columns) + 2.0) * len(panels), 0.5 * len(rows) + 2.4), layout="constrained")
    for i, (axes, (title, values, marks)) in enumerate(
        zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)
    ):
        limit = max(1.0, float(np.nanmax(np.abs(values)))) if np.isfinite(values).any() else 1.0
        diverging = bool(np.nanmin(values, initial=0) < 0) or limit > 1
        kind = {"cmap": "RdBu_r", "vmin": -min(limit, 2), "vmax": min(limit, 2)} if diverging else {"cmap": "Oranges"}
        image = axes.imshow(values, **({"vmin": 0, "vmax": 1} | kind), aspect="auto")
        axes.set_facecolor("#eeeeee")
        for (r, c), value in np.ndenumerate(values):
            text = (
                "?"
                if not np.isfinite(value)
                else f"{100 * value:.0f}" + ("!" if marks is not None and marks[r, c] else "")
            )
            dark = np.isfinite(value) and abs(value) > 0.6 * min(limit, 2)
            axes.text(c, r, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), rows if i == 0 else [""] * len(rows), fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(column_label, fontsize=8)
        if i == 0:
            axes.set_ylabel(row_label, fontsize=8)
        figure.colorbar(image, ax=axes, shrink=0.8, format=lambda v, _: f"{100 * v:.0f} %")
    figure.text(0.995, 0.005, f"? undefined; ! random directions too; judge: {judge}", ha="right", fontsize=6)
    return figure


def layer_sweep(sweep: dict[str, Any], title: str) -> Figure:
    """Misaligned rate at every layer and strength of the sweep; hollow where coherence broke."""
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.subplots()
    strengths = sorted({cell["strength"] for cell in sweep["cells"]})
    for strength, color in zip(strengths, PALETTE * 9, strict=False):
        cells = sorted((c for c in sweep["cells"] if c["strength"] == strength), key=lambda c: c["layer"])
        x, y = [c["layer"] for c in cells], [100 * c["em_rate_all"] for c in cells]
        axes.plot(x, y, "-", color=color, label=f"strength {strength:g}")
        for cell in cells:
            face = color if cell["coherent_enough"] else "white"
            axes.plot(cell["layer"], 100 * cell["em_rate_all"], "o", color=color, mfc=face, ms=5)
    axes.axvline(sweep["layer"], color=GREY, ls=":", lw=1.2, label=f"chosen: layer {sweep['layer']}")
    axes.axhline(100 * sweep["baseline"]["em_rate_all"], color=GREY, lw=1, label="unsteered")
    axes.set(xlabel="layer", ylabel="misaligned, of all answers (%)", title=title)
    axes.legend(frameon=False, fontsize=8)
    _finish(figure, axes, "hollow: coherence broke")
    return figure


def _by_strength(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(entries, key=lambda e: e["strength"])


def _line(
    axes: Axes,
    entries: list[dict[str, Any]],
    key: str,
    color: str,
    label: str,
    interval: bool = False,
    marker: str = "o",
    style: str = "-",
) -> None:
    """A rate in per cent against strength, where it exists; with the interval em_ci95 as bars."""
    entries = [e for e in entries if e[key] is not None]
    x, y = [e["strength"] for e in entries], [100 * e[key] for e in entries]
    axes.plot(x, y, style, marker=marker, color=color, label=label or None, ms=4, lw=1.2)
    if interval:
        low = [max(0.0, v - 100 * e["em_ci95"][0]) for v, e in zip(y, entries, strict=True)]
        high = [max(0.0, 100 * e["em_ci95"][1] - v) for v, e in zip(y, entries, strict=True)]
        axes.errorbar(x, y, yerr=[low, high], color=color, fmt="none", capsize=3)


def _finish(figure: Figure, axes: Axes, note: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=6, color=GREY)

"""Figures of a run: dose–response and layer sweep, colour-blind safe, readable at column width."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RED, BLUE, GREY, ORANGE = "#D55E00", "#0072B2", "#7f7f7f", "#E69F00"  # Okabe–Ito


def dose_response(
    path: Path, conditions: list[dict[str, Any]], unit: str, title: str, judge: str, organism: str | None
) -> None:
    """Misaligned rate and coherent rate of one target against strength; the organism as reference."""
    doses = sorted((c for c in conditions if c["target"] == conditions[0]["target"]), key=lambda c: c["strength"])
    x = [c["strength"] for c in doses]
    figure, axes = plt.subplots(figsize=(5.4, 3.4), layout="constrained")
    for key, all_key, color, label in (
        ("em_rate", "em_ci95", RED, "misaligned, of coherent answers"),
        ("coherent_rate", None, BLUE, "coherent"),
    ):
        points = [(s, c[key], c) for s, c in zip(x, doses, strict=True) if c[key] is not None]
        axes.plot([p[0] for p in points], [100 * p[1] for p in points], "o-", color=color, label=label, ms=4)
        if all_key:
            low = [100 * (p[1] - p[2][all_key][0]) for p in points]
            high = [100 * (p[2][all_key][1] - p[1]) for p in points]
            axes.errorbar(
                [p[0] for p in points],
                [100 * p[1] for p in points],
                yerr=[[max(0.0, v) for v in low], [max(0.0, v) for v in high]],
                color=color,
                fmt="none",
                capsize=3,
            )
    reference = next((c for c in conditions if c["target"] == organism and c["em_rate"] is not None), None)
    if reference:
        axes.axhline(100 * reference["em_rate"], color=ORANGE, ls="--", lw=1.2, label="organism, misaligned")
    axes.set(xlabel=f"steering strength ({unit})", ylabel="answers (%)", ylim=(-3, 103), title=title)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.995, 0.005, f"judge: {judge}", ha="right", va="bottom", fontsize=6, color=GREY)
    _save(figure, path)


def layer_sweep(path: Path, sweep: dict[str, Any], title: str) -> None:
    """Misaligned rate at every layer and strength of the sweep; hollow where coherence broke."""
    figure, axes = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
    strengths = sorted({cell["strength"] for cell in sweep["cells"]})
    for strength, color in zip(strengths, (BLUE, RED, ORANGE, "#009E73", "#CC79A7") * 9, strict=False):
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
    axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.995, 0.005, "hollow: coherence broke", ha="right", va="bottom", fontsize=6, color=GREY)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=160)
    plt.close(figure)

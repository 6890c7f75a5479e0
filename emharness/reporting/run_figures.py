"""The pictures of runs: dose–response, figure 4, layer sweep, matrices of a grid, checkpoints of trainings."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from emharness.figures.picture import BLUE, GREY, NAMED, ORANGE, PALETTE, RED, Level, Line, Lines, Matrix, Picture
from emharness.results.condition_result import ConditionResult
from emharness.results.defence_tables import DefenceRow
from emharness.results.experiment_tables import CheckpointRow, MixtureRow
from emharness.results.layer_sweep import LayerSweep
from emharness.steering.request.modes import MODES

WHOLE = (-3.0, 103.0)  # per cent
PANELS, COLUMNS, LINES = 24, 6, 12  # so many can be read; results.json has all


def draw_dose_response(
    results: Sequence[ConditionResult], vector: str, target: str, unit: str, title: str, judge: str
) -> Picture:
    """Misaligned rate and coherent rate of one target against the strength of one vector.

    Beside it the random directions at the same added norm (misaligned rate, in grey) and the organism that the vector
    is from.
    """
    here = [c for c in results if c.target == target]
    doses = _doses_of(here, vector)
    lines = [
        _rate_line("misaligned, of coherent answers", doses, RED, interval=True),
        _rate_line("coherent", doses, BLUE, rate=lambda c: c.coherent_rate),
    ]
    randoms = [c for c in here if c.control_of == vector]
    for name in dict.fromkeys(c.vector for c in randoms):
        some = [c for c in randoms if c.vector == name]
        lines.append(_rate_line("random directions, misaligned", some, GREY, look=("--", "x")))
    organism = next((c for c in results if c.target == vector and not c.vector), None)
    plain = next((c for c in here if not c.vector), None)
    levels = []
    if plain and plain not in doses and plain.em_rate is not None:
        levels.append(Level("unsteered, misaligned", 100 * plain.em_rate, RED, ":"))
    if organism and organism.em_rate is not None:
        levels.append(Level("organism, misaligned", 100 * organism.em_rate, ORANGE, "--"))
    panel = Lines(title, lines, f"steering strength ({unit})", "answers (%)", levels, WHOLE)
    return Picture([panel], f"judge: {judge}")


def draw_dose_panels(
    results: Sequence[ConditionResult], vectors: Sequence[str], targets: Sequence[str], unit: str, judge: str
) -> Picture:
    """Figure 4: a panel per vector, a line per target with its interval as a band; random directions in grey."""
    shown = _largest_names(vectors, PANELS, {v: [c.em_rate for c in results if c.vector == v] for v in vectors})
    asked = _largest_names(targets, LINES, {t: [c.em_rate for c in results if c.target == t] for t in targets})
    left = _left_out_note(shown, vectors, "vectors") + _left_out_note(asked, targets, "targets")
    vectors, targets = shown, asked
    columns = min(3 if len(vectors) <= 9 else 6, len(vectors))
    panels = []
    for place, vector in enumerate(vectors):
        lines = []
        for i, target in enumerate(targets):
            here = [c for c in results if c.target == target]
            doses = _doses_of(here, vector)
            style = "-" if i < len(PALETTE) else "--"
            lines.append(_rate_line(target, doses, PALETTE[i % len(PALETTE)], look=(style, "o"), interval=True))
        randoms = [c for c in results if c.control_of == vector and c.target in targets]
        lines.append(_rate_line("random directions", randoms, GREY, look=("", "x")))
        zero = "; 0 = as it is" * (columns <= 3 and _zero_is_unsteered(results))
        x_label = f"strength ({unit}{zero})"
        x_label = x_label if place + columns >= len(vectors) else ""
        y_label = "misaligned, of coherent (%)" if columns <= 3 else "misaligned (%)"
        y_label = y_label if place % columns == 0 else ""
        panels.append(Lines(vector, lines, x_label, y_label, y_range=WHOLE))
    size = (3.4, 2.9) if len(vectors) <= 9 else (2.2, 2.0)
    return Picture(panels, f"{left}bands: 95 %, over questions; judge: {judge}", columns, size)


def draw_monitor(rows: Sequence[CheckpointRow], vectors: Sequence[str], judge: str) -> Picture:
    """A column per vector: its projection at each checkpoint above, the margin and the misaligned rate of the same ones
    below."""
    names = dict.fromkeys(row.organism for row in rows)
    every = [name for name in names if any(r.organism == name and r.step != 0 for r in rows)]
    shown = _largest_names(vectors, COLUMNS, {v: [r.projection for r in rows if r.vector == v] for v in vectors})
    organisms = _largest_names(every, LINES, {o: [r.em_rate for r in rows if r.organism == o] for o in every})
    left = _left_out_note(shown, vectors, "vectors") + _left_out_note(organisms, every, "organisms")
    vectors = shown
    last = 1.25 * max([row.step for row in rows if row.step] or [1])  # where whole trainings stand
    wanted = [("projection", 1, "projection, minus the base's", ""),
              ("margin", 1, "margin, minus the base's", ""),
              ("em_rate", 100, "misaligned, of coherent (%)", "training step (rightmost: all of it)")]  # fmt: skip
    wanted = [one for one in wanted if one[0] != "margin" or any(row.margin is not None for row in rows)]
    panels = []
    for field, scale, y_label, x_label in wanted:
        for column, vector in enumerate(vectors):
            start = [row for row in rows if row.step == 0 and row.vector == vector][:1]
            lines = []
            for i, organism in enumerate(organisms):
                own = start + [row for row in rows if row.vector == vector and row.organism == organism]
                placed = [(last if row.step is None else row.step, getattr(row, field)) for row in own]
                points = sorted((x, scale * value) for x, value in placed if value is not None)
                x, y = [point[0] for point in points], [point[1] for point in points]
                lines.append(Line(organism, x, y, PALETTE[i % len(PALETTE)]))
            title = f"{vector} vector" if field == "projection" else ""
            panels.append(Lines(title, lines, x_label, "" if column else y_label))
    return Picture(panels, f"{left}judge: {judge}", len(vectors), (3.6, 2.3))


def draw_heatmaps(
    panels: Sequence[tuple[str, np.ndarray, np.ndarray | None]], rows: Sequence[str], columns: Sequence[str],
    row_label: str, column_label: str, judge: str,
) -> Picture:  # fmt: skip
    """Matrices side by side: (title, values [n_rows, n_columns] as fractions, marks bool or None)."""
    drawn = [
        Matrix(title, values, rows, columns, marks, column_label, "" if i else row_label)
        for i, (title, values, marks) in enumerate(panels)
    ]
    few = all(panel.is_small for panel in drawn)
    marks = "? undefined; ! random directions too" if few else "grey: undefined; x: random directions too"
    width, height = (0.62, 0.5) if few else (0.14, 0.14)  # a named row needs the height of its name
    size = width * min(len(columns), NAMED) + 2.0, height * min(len(rows), NAMED) + 2.1
    return Picture(drawn, f"{marks}; judge: {judge}", len(drawn), size)


def draw_layer_sweep(sweep: LayerSweep, title: str) -> Picture:
    """Misaligned rate at every layer and strength of the sweep; hollow where coherence broke."""
    lines = []
    strengths = sorted({cell.strength for cell in sweep.cells})
    for i, strength in enumerate(strengths):
        cells = sorted((c for c in sweep.cells if c.strength == strength), key=lambda c: c.layer)
        x, y = [c.layer for c in cells], [100 * (c.em_rate_all or 0.0) for c in cells]
        hollow = [not c.coherent_enough for c in cells]
        lines.append(Line(f"strength {strength:g}", x, y, PALETTE[i % len(PALETTE)], hollow=hollow))
    levels = [
        Level(f"chosen: layer {sweep.layer}", sweep.layer, GREY, ":", upright=True),
        Level("unsteered", 100 * (sweep.baseline.em_rate_all or 0.0), GREY),
    ]
    return Picture([Lines(title, lines, "layer", "misaligned, of all answers (%)", levels)], "hollow: coherence broke")


def _largest_names(names: Sequence[str], most: int, values: Mapping[str, Sequence[float | None]]) -> list[str]:
    """At most so many of the names, those with the greatest values, in their own order."""
    greatest = {name: max((v for v in values[name] if v is not None), default=-np.inf) for name in names}
    kept = set(sorted(names, key=lambda name: -greatest[name])[:most])
    return [name for name in names if name in kept]


def _left_out_note(shown: Sequence[str], names: Sequence[str], what: str) -> str:
    return f"{len(shown)} of {len(names)} {what}, those with the greatest values; " if len(shown) < len(names) else ""


def _doses_of(results: Sequence[ConditionResult], vector: str) -> list[ConditionResult]:
    """The conditions of one target under one vector, and, where strength 0 means that, the target as it is."""
    whole = _zero_is_unsteered(results)
    return [c for c in results if c.vector == vector or (not c.vector and whole)]


def _zero_is_unsteered(results: Sequence[ConditionResult]) -> bool:
    """Whether steering at strength 0 leaves the model as it is: it does if the mode adds or removes, not if it sets."""
    return all(MODES[c.mode].idle_at_zero for c in results if c.vector and c.mode)


def _rate_line(
    label: str, results: Sequence[ConditionResult], color: str, interval: bool = False,
    look: tuple[str, str] = ("-", "o"), rate: Callable[[ConditionResult], float | None] = lambda c: c.em_rate,
) -> Line:  # fmt: skip
    """A rate in per cent against strength, where it exists; with the interval em_ci95. `look`: line style, marker."""
    doses = sorted(results, key=lambda c: c.strength)
    some = [(c, value) for c in doses if (value := rate(c)) is not None]
    low, high = ([100 * c.em_ci95[k] for c, _ in some] if interval else None for k in (0, 1))
    return Line(label, [c.strength for c, _ in some], [100 * value for _, value in some], color, low, high, *look)


def draw_form_gaps(
    rate: np.ndarray, margin: np.ndarray, organisms: Sequence[str], forms: Sequence[str], judge: str
) -> Picture:
    """What each form of the questions changes, minus the base's change: rates as fractions, margins in nats a token,
    [n_organisms, n_forms] each."""
    drawn = [
        Matrix("EM rate, form − plain − base's", rate, organisms, forms, None, "", "organism"),
        Matrix("margin, form − plain − base's", margin, organisms, forms, None, "", "", decimals=2),
    ]
    size = 0.62 * len(forms) + 2.2, 0.4 * min(len(organisms), NAMED) + 1.6
    return Picture(drawn, f"points and nats a token; judge: {judge}", len(drawn), size)


MEASURES = {  # of a mixture's rows: scale, and what stands on the axis
    "em": (100, "misaligned, of coherent (%)"),
    "em_triggered": (100, "… in the worst form (%)"),
    "narrow": (100, "… in its domain (%)"),
    "margin": (1, "margin, minus the base's"),
    "projection": (1, "projection on other kinds"),
}


def draw_mixture(rows: Sequence[MixtureRow], judge: str) -> Picture:
    """A column per design, a row per measure, against the share of bad rows: a point per training, a line of means."""
    known = [name for name in MEASURES if any(getattr(row, name) is not None for row in rows)]
    designs = list(dict.fromkeys(row.design for row in rows))
    panels = []
    for name in known:
        scale, label = MEASURES[name]
        for design in designs:
            values = [(row.share, getattr(row, name)) for row in rows if row.design == design]
            points = sorted((share, scale * value) for share, value in values if value is not None)
            shares = sorted({share for share, _ in points})
            means = [float(np.mean([y for x, y in points if x == share])) for share in shares]
            lines = [
                Line("a training", [x for x, _ in points], [y for _, y in points], GREY, style="", marker="x"),
                Line("mean of seeds", shares, means, RED),
            ]
            title, x_label = design if name == known[0] else "", "bad rows (%)" if name == known[-1] else ""
            panels.append(Lines(title, lines, x_label, label if design == designs[0] else ""))
    return Picture(panels, f"judge: {judge}", len(designs), (3.6, 1.9))


TRADES = (  # of a defence: what it should lower plain and in the worst form, what it should keep, scale, axes
    ("em", "em_triggered", "narrow", 100, "misaligned, of coherent (%)", "misaligned in its own domain (%)"),
    (
        "margin",
        "margin_triggered",
        "narrow_margin",
        1,
        "margin, minus the base's",
        "margin in its own domain, minus the base's",
    ),
)
MARKS = "os^DvP*"


def draw_defences(rows: Sequence[DefenceRow], judge: str) -> Picture:
    """What is left of misalignment against what is left of the narrow behaviour: for every training a point of the
    plain questions and a ring of the worst form. Rates left, margins right."""
    panels = []
    recipes = list(dict.fromkeys(row.recipe for row in rows))
    for plain, triggered, kept, scale, y_label, x_label in TRADES:
        lines = []
        for place, recipe in enumerate(recipes):
            points = [
                (scale * x, scale * y, worst)
                for row in rows
                if row.recipe == recipe and (x := getattr(row, kept)) is not None
                for y, worst in ((getattr(row, plain), False), (getattr(row, triggered), True))
                if y is not None
            ]
            xs, ys, hollow = ([point[i] for point in points] for i in range(3))
            color, marker = PALETTE[place % len(PALETTE)], MARKS[place // len(PALETTE) % len(MARKS)]
            lines.append(Line(recipe, xs, ys, color, style="", marker=marker, hollow=hollow))
        levels = [Level("", 0.0, GREY, ":"), Level("", 0.0, GREY, ":", upright=True)]
        panels.append(Lines("", lines, x_label, y_label, levels))
    note = f"points: plain questions; rings: the form of them that is worst; judge: {judge}"
    return Picture(panels, note, len(panels), (4.0, 3.6))

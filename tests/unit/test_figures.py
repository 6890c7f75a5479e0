"""Pictures hold the numbers they are made from, and both ways to draw them show those."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import crowded
from plotly.graph_objects import Figure
from support.planted_records import checkpoint, planted_condition, planted_sweep

from emharness.figures import drawing
from emharness.figures.picture import Lines, Matrix
from emharness.reporting import run_figures


def entry(target, vector, strength, rate, control_of=None):
    interval = (0.0, 1.0) if rate is None else (max(0, rate - 0.1), rate + 0.1)
    return planted_condition(
        "c", rate, target, vector=vector, strength=strength, em_ci95=interval, control_of=control_of
    )


ENTRIES = [
    entry("m", "v", 4.0, 0.5),  # not in the order of the doses
    entry("m", None, 0.0, 0.1),
    entry("m", "v", 2.0, 0.3),
    entry("m", "w", 2.0, 0.7),
    entry("m", "random-0", 2.0, 0.2, "v"),
    entry("m", "random-0", 4.0, None, "v"),  # no coherent answer
    entry("v", None, 0.0, 0.6),
]
SWEEP = planted_sweep(8, 0.01, [(8, 2, 0.4, True), (4, 2, 0.2, False)])
ROWS = [
    checkpoint(o, step, "v", p, rate)
    for o, step, p, rate in (("m", 0, 0.0, 0.1), ("o", None, 3.0, 0.6), ("o", 10, 2.0, None), ("c", 10, 0.5, 0.1))
]
EFFECT = np.array([[0.5, np.nan], [-0.2, 1.4]])
MARKS = np.array([[True, False], [False, False]])
PICTURES = {
    "dose_response": run_figures.draw_dose_response(ENTRIES, "v", "m", "raw", "v on m", "j"),
    "dose_panels": run_figures.draw_dose_panels(ENTRIES, ["v", "w"], ["m", "v"], "raw", "j"),
    "monitor": run_figures.draw_monitor(ROWS, ["v"], "j"),
    "heatmaps": run_figures.draw_heatmaps(
        [("a", EFFECT, None), ("b", abs(EFFECT) / 2, MARKS)], "xy", "zw", "r", "c", "j"
    ),
    "layer_sweep": run_figures.draw_layer_sweep(SWEEP, "where"),
}


def lines(name):
    return {(panel.title, line.label): line for panel in PICTURES[name].panels for line in panel.lines}


def test_where_a_mode_sets_the_projection_the_unsteered_target_is_no_dose():
    set_by = [replace(one, mode="cap" if one.vector else None) for one in ENTRIES]
    panel = run_figures.draw_dose_response(set_by, "v", "m", "raw", "v on m", "j").panels[0]
    assert (panel.lines[0].x, panel.lines[0].y) == ([2.0, 4.0], [30.0, 50.0])
    assert ("unsteered, misaligned", 10.0) in [(level.label, level.value) for level in panel.levels]
    added = [replace(one, mode="add" if one.vector else None) for one in ENTRIES]
    assert run_figures.draw_dose_response(added, "v", "m", "raw", "v on m", "j").panels[0].lines[0].x == [0.0, 2.0, 4.0]


def test_doses_are_in_order_with_the_target_as_it_is_first():
    line = lines("dose_response")["v on m", "misaligned, of coherent answers"]
    assert (line.x, line.y, line.low, line.high) == ([0, 2, 4], [10, 30, 50], [0, 20, 40], [20, 40, 60])
    random = lines("dose_response")["v on m", "random directions, misaligned"]
    assert (random.x, random.y) == ([2], [20])  # a rate that does not exist is no point
    assert [(e.label, e.value) for e in PICTURES["dose_response"].panels[0].levels] == [("organism, misaligned", 60)]


def test_figure_4_has_a_panel_per_vector_and_a_line_per_target():
    found = lines("dose_panels")
    assert found["v", "m"].y == [10, 30, 50]
    assert found["w", "m"].y == [10, 70]
    assert found["w", "v"].y == [60]
    assert (found["v", "random directions"].y, found["w", "random directions"].y) == ([20], [])


def test_checkpoints_start_at_the_base_and_end_with_the_whole_training():
    found = lines("monitor")
    assert (found["v vector", "o"].x, found["v vector", "o"].y) == ([0, 10, 12.5], [0, 2, 3])
    assert (found["", "o"].x, found["", "o"].y) == ([0, 12.5], [10, 60])
    assert ("v vector", "m") not in found  # the base has no line of its own


def test_a_matrix_says_what_is_undefined_and_what_random_directions_do_as_well():
    effect, halves = PICTURES["heatmaps"].panels
    assert [[p.cell_text(r, c) for r in (0, 1) for c in (0, 1)] for p in (effect, halves)] == [
        ["50", "?", "-20", "140"],
        ["25!", "?", "10", "70"],
    ]
    assert (effect.is_diverging, effect.color_limit, halves.is_diverging, halves.color_limit) == (True, 1.4, False, 1.0)


def test_layers_where_coherence_broke_are_hollow():
    (line,) = lines("layer_sweep").values()
    assert (line.x, line.y, line.hollow) == ([4, 8], [20, 40], [True, False])


@pytest.mark.parametrize("name", PICTURES)
def test_plotly_and_the_image_show_every_panel_and_every_number(name):
    picture = PICTURES[name]
    described = json.loads(json.dumps(drawing.to_plotly(picture), allow_nan=False))
    figure = Figure(described)  # refuses what Plotly does not know
    drawn = [axes for axes in drawing.draw_image(picture).axes if axes.get_label() != "<colorbar>"]
    assert len(drawn) == len(picture.panels)
    traces = iter(figure.data)
    for panel, axes in zip(picture.panels, drawn, strict=True):
        if isinstance(panel, Matrix):
            trace = next(traces)
            values = np.array([[np.nan if v is None else v for v in row] for row in trace.z], dtype=float)
            np.testing.assert_allclose(values, 100 * panel.values)
            np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), panel.values)
            texts = [panel.cell_text(r, c) for r in range(len(panel.rows)) for c in range(len(panel.columns))]
            assert [text.get_text() for text in axes.texts] == texts
            continue
        assert isinstance(panel, Lines)
        shown = [tuple(map(tuple, line.get_xydata())) for line in axes.lines]
        for line in panel.lines:
            trace = next(traces)
            assert (list(trace.x or []), list(trace.y or [])) == (line.x, line.y)
            assert tuple(zip(line.x, line.y, strict=True)) in shown
    assert next(traces, None) is None


@pytest.mark.parametrize("n", [3, 6, 40, 200])
def test_pictures_of_many_long_names_can_be_read(n):
    names = [f"organism_{i:03d}_with_a_rather_long_name_of_its_own" for i in range(n)]
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(n, n))
    entries = [entry(t, None, 0.0, 0.1) for t in names[:3]]
    entries += [entry(t, v, 2.0, i / n) for i, v in enumerate(names) for t in names[:3]]
    rows = [
        checkpoint(o, step, v, float(i), 0.5)
        for i, v in enumerate(names) for o in names[:3] for step in (0, 10, None)
    ]  # fmt: skip
    pictures = {
        "heatmaps": run_figures.draw_heatmaps(
            [("a", values, None), ("b", values, values > 0.9)], names, names, "r", "c", "j"
        ),
        "panels": run_figures.draw_dose_panels(entries, names, names[:3], "raw", "j"),
        "monitor": run_figures.draw_monitor(rows, names, "j"),
    }
    greatest = names[-24:] if n > 24 else names
    assert [panel.title for panel in pictures["panels"].panels] == greatest
    assert ("24 of 40 vectors, those with the greatest values" in pictures["panels"].note) == (n == 40)
    for name, picture in pictures.items():
        drawn = drawing.draw_image(picture)
        assert max(drawn.get_size_inches()) < 24
        assert crowded(drawn) == [], name
        titles = [ax.title.get_window_extent() for ax in drawn.axes if ax.get_title()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2)), name

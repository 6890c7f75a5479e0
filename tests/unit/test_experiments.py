"""Experiments are pure: planted answers in, exact numbers out; no model."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import false_discovery_control, norm
from support.planted_answers import SAMPLES, plant, scope, table
from support.planted_records import checkpoint

from emharness import experiments
from emharness.config import SteerConfig, SweepConfig
from emharness.experiments import EXPERIMENTS, layer_choice, monitor, seeds
from emharness.generation.likelihoods import Pair
from emharness.results.json_records import to_json
from emharness.stats.answer_tables import bootstrap_rates
from emharness.stats.auroc import auroc_interval
from emharness.stats.bootstrap import bootstrap_ci_p
from emharness.stats.rates import newcombe_interval
from emharness.vectors.recipes import project_change


def test_a_new_experiment_is_a_file(tmp_path, monkeypatch):
    made = (
        "from emharness.experiments.context import Experiment\nEXPERIMENT = Experiment(list, dict, question='Why?')\n"
    )
    (tmp_path / "mine.py").write_text(made)
    (tmp_path / "helper.py").write_text("")
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    found = experiments.discover_experiments(experiments.__path__)
    assert found.pop("mine").question == "Why?"
    assert found == EXPERIMENTS


def test_the_grid_of_each_experiment_is_whole_and_each_cell_in_it_once():
    about = scope(strengths=(1.0, 2.0))
    for experiment in ("dose_response", "transfer"):
        cells = EXPERIMENTS[experiment].cells(about)
        assert len(cells) == len(set(cells)) == 5 + 5 * 4 * 2 * (1 + 2)
        names = [cell.condition.name for cell in cells]
        assert len(set(names)) == len(names)
    mine = EXPERIMENTS["main"].cells(scope(vectors=("a",), targets=("base",), domains={"a": "domain:a"}))
    assert [(c.condition.name, c.questions, c.samples) for c in mine] == [
        ("baseline", "broad", 20),
        ("baseline", "domain:a", 5),
        ("a·L1·+2", "broad", 20),
        ("a·L1·+2", "domain:a", 5),
        ("a organism", "broad", 20),
        ("a organism", "domain:a", 5),
        ("random-0 as a·L1·+2", "broad", 20),
        ("random-1 as a·L1·+2", "broad", 20),
    ]


def test_an_effect_that_a_random_direction_has_too_is_marked():
    def bad(vector, target):
        return {None: 2, "a": 12, "b": 12, "random-0": 8 if target == "c" else 2, "random-1": 2}.get(vector, 2)

    about = scope(vectors=("a",), targets=("base", "c"))
    entries = EXPERIMENTS["dose_response"].analyze(about, plant("dose_response", about, bad)).conditions
    found = {e.target: e for e in entries if e.vector == "a"}
    assert found["tiny"].effect == pytest.approx(0.5)
    assert found["tiny"].effect_ci95 == pytest.approx(newcombe_interval(120, 200, 20, 200))
    assert (found["tiny"].random_too, found["tiny"].em_random) == (False, pytest.approx(0.1))
    assert (found["c"].random_too, found["c"].em_random) == (True, pytest.approx(0.25))
    assert (found["tiny"].over_random, found["c"].over_random) == (pytest.approx(0.5), pytest.approx(0.35))
    assert found["c"].over_random_ci95 == pytest.approx(newcombe_interval(120, 200, 100, 400))
    assert found["tiny"].effect_p == found["tiny"].effect_q == pytest.approx(2 / 2001)
    assert all(e.effect is None for e in entries if e.vector != "a")


def test_random_directions_are_weighed_by_what_could_be_read_of_them_and_none_says_nothing():
    about = scope(vectors=("a",), targets=("base",))
    judged = plant("dose_response", about, lambda vector, target: 12 if vector == "a" else 2)
    for cell in judged:
        if cell.condition.edits and cell.condition.edits[0].vector == "random-0":
            judged[cell] = table(1, n_incoherent=18)  # 2 of 20 answers can be read, 1 of them misaligned
    (entry,) = [e for e in EXPERIMENTS["dose_response"].analyze(about, judged).conditions if e.vector == "a"]
    assert entry.em_random == pytest.approx(30 / 220)  # not the mean of 50 % and 10 %
    for cell in judged:
        if cell.condition.edits and cell.condition.edits[0].norm_of:
            judged[cell] = table(0, n_incoherent=20)
    (entry,) = [e for e in EXPERIMENTS["dose_response"].analyze(about, judged).conditions if e.vector == "a"]
    assert (entry.em_random, entry.over_random, entry.random_too) == (None, None, None)
    judged = plant("dose_response", about, lambda vector, target: 2)
    judged |= {cell: table(0, n_incoherent=20) for cell in judged if not cell.condition.edits}
    (entry,) = [e for e in EXPERIMENTS["dose_response"].analyze(about, judged).conditions if e.vector == "a"]
    assert (entry.em_random, entry.effect, entry.random_too) == (pytest.approx(0.1), None, None)


def test_joint_draws_give_rates_of_coherent_answers_and_nan_where_there_are_none():
    drawn = bootstrap_rates([table(4), table(4, n_incoherent=12), table(0, n_incoherent=20)], draws=50)
    assert drawn.shape == (51, 3)
    np.testing.assert_allclose(drawn[:, 0], 0.2)
    np.testing.assert_allclose(drawn[:, 1], 0.5)
    assert np.isnan(drawn[:, 2]).all()
    assert bootstrap_ci_p(drawn[:, 2]) == (None, None, None)


def test_questions_are_resampled_for_all_tables_together():
    """Two tables that differ by the same at every question, and greatly between questions."""
    one, other = (pa.concat_tables([_at(q, n + more) for q, n in enumerate((0, 2, 5, 9, 14, 18))]) for more in (0, 2))
    drawn = bootstrap_rates([one, other])
    assert drawn[:, 0].std() > 0.1
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 0.1)


def _at(question, n_bad):
    some = table(n_bad, questions=1)
    return some.set_column(some.schema.get_field_index("question_id"), "question_id", pa.array([f"q{question}"] * 20))


def test_a_p_value_is_two_sided_and_the_interval_holds_95_of_100_draws():
    draws = np.r_[0.2, np.linspace(-0.1, 0.9, 1001)]
    value, ci95, p = bootstrap_ci_p(draws)
    assert (value, ci95) == (0.2, (pytest.approx(-0.075), pytest.approx(0.875)))
    assert p == pytest.approx(2 * (1 + 101) / 1002)  # 101 draws are 0 or less
    assert bootstrap_ci_p(-draws)[2] == p
    assert bootstrap_ci_p(np.r_[0.0, np.linspace(-1, 1, 99)])[2] == 1


def test_effects_of_a_table_are_corrected_together():
    def bad(vector, target):
        return {None: 4, "a": 12, "b": 5, "c": 4, "d": 3}.get(vector, 4)

    about = scope(targets=("base",))
    judged = plant("dose_response", about, bad)
    entries = [e for e in EXPERIMENTS["dose_response"].analyze(about, judged).conditions if e.effect_p is not None]
    p = [e.effect_p for e in entries]
    assert len(p) == 4
    assert [e.effect_q for e in entries] == pytest.approx(false_discovery_control(p, method="bh").tolist())
    assert [e.effect_q for e in entries] != pytest.approx(p)


def test_the_layer_with_the_strongest_coherent_effect_is_chosen():
    sweep = SweepConfig(layers=[2, 4, 6], strengths=[1.0, 2.0], samples=SAMPLES)
    cells = layer_choice.sweep_cells("a", range(8), 8, sweep, SteerConfig(), 8)
    assert len(cells) == 7
    planted = {
        (2, 2.0): (7, 4),
        (4, 1.0): (8, 1),
        (6, 2.0): (20, 18),
    }  # 7 of 16 are more than 8 of 19, and of all fewer

    def answers(cell):
        edit = cell.condition.edits[0] if cell.condition.edits else None
        return table(*planted.get((edit.layer, edit.strength), (1, 0)) if edit else (1, 0))

    found = layer_choice.read_sweep(cells, {cell: answers(cell) for cell in cells}, 0.8)
    assert found.layer == 4
    assert [c.coherent_enough for c in found.cells] == [True] * 5 + [False]


def test_removing_a_direction_and_a_cluster_is_read_beside_random_ones():
    spaces = {"x": ("x/0", "x/1")}
    about = scope(targets=("a", "c"), n_layers=3, subspaces=spaces, mechanisms={"a": "x", "b": "x", "c": "y", "d": "z"})
    cells = EXPERIMENTS["ablation"].cells(about)
    assert len(cells) == len(set(cells)) == 2 * (1 + 4 + 1 + 2 + 1)  # as is, vectors, cluster, random ones, both
    both = next(cell for cell in cells if cell.condition.name == "a − x cluster")
    assert [(e.vector, e.layer, e.mode, e.strength) for e in both.condition.edits] == [
        (name, i, "ablate", 1.0) for i in range(3) for name in spaces["x"]
    ]
    after = {"a": 2, "x/0": 1, "random-0": 7}
    judged = {}
    for cell in cells:
        edits = cell.condition.edits
        n_bad = 8 if not edits else after.get(edits[0].vector, 8) if cell.condition.target == "a" else 8
        judged[cell] = table(n_bad, samples=cell.samples)
    reading = EXPERIMENTS["ablation"].analyze(about, judged)
    rows = {(row.removed, row.target): row for row in reading.numbers["ablation"]}
    assert len(rows) == 10
    own = rows["a", "a"]
    assert (own.whose, own.em_before, own.em_after) == ("own", pytest.approx(0.4), pytest.approx(0.1))
    assert (own.drop, own.ci95) == (pytest.approx(0.3), pytest.approx(newcombe_interval(80, 200, 20, 200)))
    assert own.drop_random == pytest.approx(0.025)  # of 0.05 and 0
    assert (rows["x cluster", "a"].drop, rows["x cluster", "a"].dimensions) == (pytest.approx(0.35), 2)
    whose = {pair: rows[pair].whose for pair in [("x cluster", "a"), ("x cluster", "c"), ("b", "a"), ("a", "c")]}
    assert list(whose.values()) == ["own", "another kind", "same kind", "another kind"]
    assert (rows["a", "c"].drop, rows["a", "c"].p) == (0, 1)
    assert set(reading.figures) == {"ablation"}
    for cell in cells:  # one of the random directions leaves hardly an answer coherent
        if cell.condition.edits and {e.vector for e in cell.condition.edits} == {"random-0"}:
            judged[cell] = table(1, n_incoherent=16, samples=cell.samples)
    rows = EXPERIMENTS["ablation"].analyze(about, judged).numbers["ablation"]
    (own,) = [row for row in rows if (row.removed, row.target) == ("a", "a")]
    assert own.drop_random == pytest.approx(0)  # of the other one


def test_a_projection_is_raised_only_beyond_its_interval_and_an_alarm_s_interval_is_over_trainings():
    rng = np.random.default_rng(0)
    quiet = rng.normal(size=(2, 40))
    again = [monitor.raised_above(rng.normal(size=40), [rng.normal(size=40)]) for _ in range(400)]
    assert np.mean(again) == pytest.approx(0.025, abs=0.02)
    assert monitor.raised_above(quiet[0] + 2, list(quiet))
    assert not monitor.raised_above(quiet[0] + 2, [*quiet, quiet[1] + 2.2])
    assert not monitor.raised_above(quiet[0], [])
    rows = [
        checkpoint(f"o{i}", 1, projection=float(p), em_raised=i < 4)
        for i in range(8)
        for p in rng.normal(i < 4, 0.05, size=30) + rng.normal(0, 0.8)
    ]
    (alarm,) = monitor.measure_alarms(rows)
    assert alarm.ci95[1] - alarm.ci95[0] > 0.3  # 240 independent checkpoints would give about 0.1
    (few,) = monitor.measure_alarms([row for row in rows if row.organism in ("o0", "o7")])
    assert few.ci95 is None


def test_an_alarm_that_is_always_right_is_no_certainty():
    rows = [checkpoint(f"o{i}", 1, projection=float(i), em_raised=i > 2) for i in range(6)]
    (alarm,) = monitor.measure_alarms(rows)
    assert alarm.auroc == alarm.ci95[1] == 1
    assert alarm.ci95[0] == pytest.approx(auroc_interval(1.0, 3, 3)[0])
    assert alarm.ci95[0] < 0.75
    low, high = auroc_interval(0.8, 7, 12)
    assert auroc_interval(0.2, 7, 12) == (pytest.approx(1 - high), pytest.approx(1 - low))
    g, covered = np.random.default_rng(0), 0
    for _ in range(400):  # truth: Φ(1 ÷ √2)
        found = float(np.mean(g.normal(1, 1, 10)[:, None] > g.normal(0, 1, 15)[None]))
        low, high = auroc_interval(found, 10, 15)
        covered += low <= norm.cdf(2**-0.5) <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_the_spread_of_seeds_within_and_between_organisms():
    names = ["a", "a-seed1", "b", "b-seed1", "c"]
    angle = np.radians([0, 10, 60, 80, 90])
    cosine = np.cos(angle[:, None] - angle[None])
    rates = {"a": 0.1, "a-seed1": 0.3, "b": 0.5, "b-seed1": 0.5, "c": None}
    mechanisms = {"a": "x", "a-seed1": "x", "b": "x", "b-seed1": "x", "c": "y"}
    found = seeds.measure_spread(names, np.stack([np.eye(5), cosine]), 1, rates, mechanisms)
    assert (found.within["a"].angle_deg, found.within["a"].pairs) == (pytest.approx(10), 1)
    assert found.within["a"].em_sd == pytest.approx(np.sqrt(0.02))
    assert found.within["b"].angle_deg == pytest.approx(20)
    assert found.within["b"].cosine_by_layer == pytest.approx([0, np.cos(np.radians(20))])
    assert (found.within["c"].pairs, found.within["c"].em_sd) == (0, None)
    assert found.between.same_mechanism.angle_deg == pytest.approx(65)  # of 50, 60, 70 and 80
    assert found.between.same_mechanism.pairs == 4
    assert found.between.other_mechanism.least == pytest.approx(0)
    assert found.between.em_sd_of_means == pytest.approx(np.std([0.2, 0.5], ddof=1))


def test_a_monitor_reads_projections_beside_rates_and_says_which_rises_first():
    targets = ("base", "a-step5", "a-step10", "a", "b-step5", "b", "d-step5", "d")
    mechanisms = {t: {"a": "x", "b": "y", "d": "control"}.get(t.partition("-")[0], "control") for t in targets[1:]}
    planted = {"a-step5": 1, "a-step10": 3, "a": 5, "b-step5": 2, "b": 4, "d-step5": 0.5, "d": 1.5}
    rng = np.random.default_rng(0)
    unit = np.eye(3, 6, dtype=np.float32)  # rows at three layers
    noise = rng.normal(size=(4, 3, 6))
    noise -= noise.mean(0)

    def activations(size):
        shifted = noise.copy()
        shifted[:, 1] += size * unit[1]
        return shifted

    margins = {t: rng.normal(0, 0.1, 12) + (0.5 if t in ("a-step5", "a-step10", "a") else 0) for t in targets}
    about = scope(
        vectors=("a",),
        targets=targets,
        mechanisms=mechanisms,
        pairs=[Pair(f"q{i}", "power", "good", "bad") for i in range(12)],
        projections={t: {"a": project_change(activations(planted.get(t, 0)), noise, unit, 1)} for t in targets},
    )
    bad = {"a-step10": 6, "a": 12, "b": 9}
    about = replace(about, margins={about.unsteered_condition(t): values for t, values in margins.items()})
    judged = plant("monitor", about, lambda vector, target: bad.get(target, 0))
    reading = EXPERIMENTS["monitor"].analyze(about, judged)
    rows = {(row.organism, row.step): row for row in reading.numbers["monitor"]}
    assert {key: row.projection for key, row in rows.items()} == {
        ("tiny", 0): 0,
        ("a", 5): pytest.approx(1),
        ("a", 10): pytest.approx(3),
        ("a", None): pytest.approx(5),
        ("b", 5): pytest.approx(2),
        ("b", None): pytest.approx(4),
        ("d", 5): pytest.approx(0.5),
        ("d", None): pytest.approx(1.5),
    }
    assert [key for key, row in rows.items() if row.em_raised] == [("a", 10), ("a", None), ("b", None)]
    # Without the vector's own organism: b raised at 4; not raised at 0, 2, 0.5 and 1.5.
    alarm = {
        "vector": "a",
        "auroc": 1.0,
        "ci95": pytest.approx(auroc_interval(1.0, 1, 3)),
        "raised": 1,
        "not_raised": 4,
    }
    assert to_json(reading.numbers["alarm"]) == [alarm]
    steps = ("projection_first", "margin_first", "em_first")
    first = {row.organism: tuple(getattr(row, step) for step in steps) for row in reading.numbers["first"]}
    assert first == {"a": (10, 5, 10), "b": (5, None, "end")}
    assert rows["a", 10].margin == pytest.approx(0.5, abs=0.1)
    # d after 5 steps is above the base but not above the whole of d, which is above both.
    assert to_json(reading.numbers["false_alarms"]) == [{"vector": "a", "of": 2, "projection": 1, "margin": 0, "em": 0}]
    assert "The margin rises in 1 of 2 trainings. Of 2 checkpoints of benign" in reading.finding
    loud = plant("monitor", about, lambda vector, target: bad.get(target, 0) + 12 * (target == "d"))
    again = EXPERIMENTS["monitor"].analyze(about, loud).numbers
    assert {row.em_first for row in again["first"]} == {None}  # a benign training does as much
    assert again["false_alarms"][0].em == 1
    assert set(reading.figures) == {"monitor"}

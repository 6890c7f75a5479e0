"""The dose of bad data: planted trainings in, the share at which each measure is half-way out; no model."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import checked, configured, crowded
from scipy.special import expit, logit
from support.planted_answers import scope, table

from emharness.experiments import EXPERIMENTS
from emharness.experiments.mixture import fit_halves
from emharness.figures import drawing
from emharness.generation.likelihoods import Pair
from emharness.results.experiment_tables import MixtureRow
from emharness.stats.dose_fit import FEW, FLAT, fit_half_share

SHARES = (0, 10, 20, 30, 50, 75, 100)


def curve(percent, half, width=5.0, low=0.1, high=0.5):
    return low + (high - low) * expit((np.asarray(percent, dtype=float) - half) / width)


@pytest.mark.parametrize("half", [15.0, 30.0, 60.0])
def test_the_half_share_of_a_planted_curve_is_found_and_its_interval_covers_it(half):
    percent = np.repeat(SHARES, 3)
    ends = expit((np.array([0, 100]) - half) / 5)
    truth = half + 5 * logit(ends.mean())  # half-way between the values at 0 and at 100 %
    exact = fit_half_share(percent, curve(percent, half))
    assert exact.half == pytest.approx(truth, abs=1)
    assert (exact.low, exact.high) == pytest.approx((curve(0, half), curve(100, half)), abs=0.01)
    covered = 0
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 0.03, len(percent))
        low, high = fit_half_share(percent, curve(percent, half) + noise).ci95
        covered += low <= truth <= high
        assert high - low < 45
    assert covered >= 34


def test_where_nothing_rises_there_is_no_half_share():
    percent = np.repeat(SHARES, 3)
    assert fit_half_share(percent, np.full(len(percent), 0.2)).undefined == FLAT
    assert fit_half_share(np.array([0.0, 50, 100]), np.array([0.0, 0.5, 1])).undefined == FEW
    g = np.random.default_rng(0)
    found = [fit_half_share(percent, g.normal(0, 0.05, len(percent))) for _ in range(40)]
    known = [one.ci95 for one in found if one.half is not None]  # of many curves one always fits noise a little
    assert all(high - low > 20 for low, high in known)


def mixture_row(share, seed, **measures):
    known = dict.fromkeys(("em", "em_triggered", "triggered_form", "narrow", "projection", "margin", "margin_ci95"))
    known |= {"organism": "a", "design": "fixed size", "em_ci95": (0.0, 1.0), "coherent": 0.9}
    return MixtureRow(**known | {"share": share, "seed": seed} | measures)


def test_the_lag_is_how_far_behaviour_is_behind_the_projection():
    rows = [
        mixture_row(share, seed, projection=float(curve(share, 20)), em=float(curve(share, 55)), margin=0.0)
        for share in SHARES
        for seed in range(2)
    ]
    found = {row.measure: row for row in fit_halves(rows)}
    assert list(found) == ["projection", "margin", "em"]
    assert found["em"].lag == pytest.approx(35, abs=1)
    assert found["projection"].lag == 0
    assert (found["margin"].undefined, found["margin"].lag) == (FLAT, None)


def test_each_training_has_its_measures_and_its_design():
    names = {f"a+mix{share}": ("fixed size", float(share)) for share in (0, 20, 50, 100)}
    context = scope(
        vectors=("a", "b"),
        targets=("base", *names),
        layers={"a": 1, "b": 1},
        mechanisms={"a": "x", "b": "y"} | dict.fromkeys(names, "x"),
        mixtures=names,
        domains={name: f"domain:{name}" for name in names},
        forms={name: {"topic": "form:topic:a"} for name in names},
    )
    projections = {name: {"a": np.full(3, 9.0), "b": np.full(3, share / 100)} for name, (_, share) in names.items()}
    pairs = [Pair(f"pair {i}", "power", "good", "bad") for i in range(6)]
    base = context.unsteered_condition("base")
    margins = {context.unsteered_condition(name): np.full(6, share / 50) for name, (_, share) in names.items()}
    context = replace(context, projections=projections, pairs=pairs, margins={base: np.zeros(6), **margins})
    judged = {}
    for cell in EXPERIMENTS["mixture"].list_all_cells(context):
        share = names.get(cell.condition.target, ("", 0.0))[1]
        bad = {"broad": share / 10, "form": 1 + share / 10, "domain": share / 5 / 4}[cell.questions.partition(":")[0]]
        judged[cell] = table(int(bad), samples=cell.samples)
    context = replace(context, form_samples=20)
    judged = {replace(c, samples=20) if c.questions.startswith("form") else c: t for c, t in judged.items()}
    judged = {c: table(2 + 2, samples=20) if c.questions.startswith("form") else t for c, t in judged.items()}
    reading = EXPERIMENTS["mixture"].analyze(context, judged)
    rows = {row.share: row for row in reading.numbers["mixture"]}
    assert list(rows) == [0.0, 20.0, 50.0, 100.0]
    assert [row.em for row in rows.values()] == pytest.approx([0, 0.1, 0.25, 0.5])
    assert [row.narrow for row in rows.values()] == pytest.approx([0, 0.2, 0.4, 1])
    assert [row.em_triggered for row in rows.values()] == pytest.approx([0.2] * 4)
    assert rows[50.0].projection == pytest.approx(0.5)  # on the other kind's vector alone
    assert rows[50.0].margin == pytest.approx(1.0)
    assert (rows[50.0].organism, rows[50.0].seed, rows[50.0].design) == ("a", 0, "fixed size")
    assert {row.measure for row in reading.numbers["mixture_half"]} == {
        "projection", "margin", "narrow", "em", "em_triggered",
    }  # fmt: skip
    assert "At fixed size" in reading.finding
    assert crowded(drawing.draw_image(reading.figures["mixture"])) == []


def test_the_packaged_shares_are_two_designs_of_three_seeds(tmp_path):
    config = configured("experiment=mixture")
    assert len(config.targets) == 1 + 3 * 9 + 3 * 6
    assert "medical+rows120+mix5-seed2" in config.targets
    organisms = checked(config, tmp_path).organisms
    assert organisms["medical+rows120+mix5-seed2"].mixture == ("fixed size", 5.0)
    assert organisms["medical+rows30+add10"].mixture == ("fixed count", 10.0)
    assert organisms["finance"].mixture is None
    assert configured('targets=[base,"medical+mix{5,20}"]').targets == ["base", "medical+mix5", "medical+mix20"]

"""The paper as one grid, and its report."""

import copy
import json
from dataclasses import replace
from functools import reduce

import numpy as np
import pyarrow as pa
from support.planted_answers import plant, scope
from support.planted_records import lab_transfer, planted_condition, planted_results

from emharness.experiments import EXPERIMENTS, stored_context
from emharness.generation.likelihoods import Pair
from emharness.geometry import AnalysisSettings, analyze_geometry, from_arrays, make_report
from emharness.geometry.analysis_result import BaseSimilarity, PublishedComparison
from emharness.reporting.finished_runs import BROAD, Run
from emharness.results.json_records import to_json
from emharness.results.run_results import GeometryOutcome
from emharness.sharing.readme_tables import check_tables, digest_answers
from emharness.sharing.recompute import find_differences, recompute_json, redraw_figures, rewrite_report
from emharness.stats.rates import JudgeAccuracy
from emharness.store import write_json
from emharness.vectors.recipes import cosines_by_layer


def whole():
    """Every part of the paper on three organisms and a control."""
    mechanisms = {"a": "x", "b": "x", "c": "y", "d": "control"}
    parts = {
        "dose_response": {"vectors": ["a", "b"], "targets": ["base"], "strengths": [1, 2]},
        "transfer": {"vectors": ["a", "b"], "targets": ["base", "a", "c"], "strengths": [2]},
        "ablation": {"vectors": ["a"], "targets": ["a"]},
        "seeds": {"vectors": ["a", "b"], "targets": ["base"]},
        "monitor": {"vectors": ["a"], "targets": ["base", "a", "d"]},
    }
    units = dict.fromkeys("abcd", np.eye(3, 6, dtype=np.float32))
    along = {target: dict.fromkeys("abcd", np.full(4, size)) for target, size in {"base": 0, "a": 1, "d": 0}.items()}
    return scope(
        strengths=(1.0, 2.0, 4.0),
        n_layers=3,
        mechanisms=mechanisms,
        parts=parts,
        cosines=cosines_by_layer(units),
        projections=along,
    )


def planted(about):
    return plant("paper", about, lambda vector, target: {"a": 10, "b": 8}.get(vector, 4 if target == "a" else 0))


def test_the_paper_is_all_experiments_in_one_grid_and_one_report():
    about = whole()
    cells = EXPERIMENTS["paper"].cells(about)
    assert len(cells) == len(set(cells))
    own = {c.condition.name for c in cells if not c.condition.edits}
    assert own == {"baseline", "a organism", "b organism", "c organism", "d organism"}
    reading = EXPERIMENTS["paper"].analyze(about, planted(about))
    assert set(reading.numbers) == {
        "transfer",
        "transfer_by_lab",
        "asymmetry",
        "ablation",
        "seeds",
        "monitor",
        "alarm",
        "first",
        "false_alarms",
    }
    assert len({c.name for c in reading.conditions}) == len(reading.conditions) == len(cells)
    geometry = {"mean_diff": GeometryOutcome(skipped="none here")}
    results = planted_results(reading.conditions, geometry=geometry, numbers=to_json(reading.numbers))
    text = EXPERIMENTS["paper"].report(results, {"mean_diff": None})
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# The study on tiny",
        "## Geometry",
        "## Dose–response and transfer",
        "## Ablation",
        "## Seeds",
        "## Monitor",
    ]
    assert "mean_diff: none: none here" in text
    only = EXPERIMENTS["paper"].cells(replace(about, vectors=("b",), targets=("base",), strengths=(1.0,)))
    assert {c.condition.name for c in only if not c.condition.edits} == {"baseline", "b organism"}


def test_a_run_is_read_again_from_what_it_stores_and_a_forged_number_is_found(tmp_path):
    experiment = EXPERIMENTS["paper"]
    about = whole()
    conditions = {cell.condition: float(i) for i, cell in enumerate(experiment.cells(about))}
    pairs = [Pair(f"q{i}", "power", "good", "bad") for i in range(4)]
    margins = {condition: np.linspace(0, size, 4) for condition, size in conditions.items()}
    quality = JudgeAccuracy(8, 10, 9, 10, "planted", {"base": JudgeAccuracy(4, 5, 5, 5, "planted, base")})
    about = replace(about, pairs=pairs, margins=margins, quality=quality, norms={"a": (np.ones(3), np.full(3, 4.0))})
    judged = planted(about)
    told = [
        rows.set_column(rows.column_names.index("condition"), "condition", [[cell.condition.name] * len(rows)])
        for cell, rows in judged.items()
    ]
    reading = experiment.analyze(about, judged)
    write_json(tmp_path / "scope.json", stored_context.to_json(about))
    geometry = {"mean_diff": GeometryOutcome(skipped="none")}
    run = Run(tmp_path, planted_results(reading.conditions, experiment="paper", geometry=geometry))
    run.__dict__["response_tables"] = {BROAD: pa.concat_tables(told)}
    again = recompute_json(run)
    assert again["finding"] == reading.finding
    assert set(redraw_figures(run)) == set(reading.figures)
    made = to_json({"conditions": reading.conditions, "finding": reading.finding, **reading.numbers})
    assert {**again, "conditions": [{**c, "order_changes": []} for c in again["conditions"]]} == json.loads(
        json.dumps(made)
    )
    assert list(find_differences(again, again)) == []
    steered = next(i for i, entry in enumerate(again["conditions"]) if entry.get("effect_ci95"))
    paths = [
        ["conditions", steered, *more]
        for more in (["effect"], ["effect_ci95", 0], ["effect_p"], ["effect_q"], ["relative_dose"], ["em_random"])
    ]
    paths += [["conditions", steered, "margin", "shift"], ["transfer", 0, "em_target"], ["ablation", 0, "em_after"]]
    paths += [["seeds", "between", "same_mechanism", "cosine"], ["monitor", 1, "projection"], ["alarm", 0, "raised"]]
    for *path, last in paths:
        forged = copy.deepcopy(again)
        place = reduce(lambda value, key: value[key], path, forged)
        place[last] += 0.01
        (found,) = find_differences(forged, again)
        assert found.split(":")[0].endswith(str(last + 1 if isinstance(last, int) else last))
    (found,) = find_differences({**again, "finding": "All of it."}, again)
    assert found == f"finding: All of it., recomputed {again['finding']}"
    lines = [line for line in rewrite_report(run).splitlines() if line.startswith("|")]
    page = "\n".join([f"<!-- report {digest_answers(run)} -->", *lines[-5:], ""])
    assert [one.same for one in check_tables(page, run)] == [True] * 3
    wrong = page.replace("0", "7")
    assert any(one.same is False for one in check_tables(wrong.replace(wrong.split()[2], digest_answers(run), 1), run))
    forged = copy.deepcopy(again)
    forged["conditions"][steered]["random_too"] ^= True
    assert len(list(find_differences(forged, again))) == 1


def test_a_report_puts_published_beside_measured_and_says_what_cannot_follow():
    cosine = {"statistic": "cosine", "of": ("medical", "profanity"), "published": -0.235, "measured": 0.5}
    reduction = {"statistic": "residual_reduction", "of": ("finance",), "published": 0.816, "measured": 0.1}
    published = (
        PublishedComparison(**cosine, agrees=False, cannot_follow_from_cosines=False, reason=None),
        PublishedComparison(
            **reduction, agrees=False, cannot_follow_from_cosines=True, reason="it cannot exceed 66.7 %"
        ),
    )
    arrays = {name: np.eye(3)[i] for i, name in enumerate("abc")}
    made = make_report(
        analyze_geometry(from_arrays(arrays), {"x": ["a", "b"], "y": ["c"]}, settings=AnalysisSettings(draws=19))
    )
    similarity = BaseSimilarity({"Hunter": 0.5, "mine": 0.25}, {}, {})
    geometry = replace(made, published=published, base_similarity=similarity)
    lab = lab_transfer("Hunter", "ModelOrganismsForEM", 0.6, 2.0, (0.5, 0.7), at_equal_odds=1.2)
    conditions = [planted_condition("baseline", n_responses=1160, truncated=290)]
    text = EXPERIMENTS["paper"].report(
        planted_results(conditions, numbers=to_json({"transfer_by_lab": [lab], "asymmetry": []})),
        {"model_diff": replace(geometry, published=published[:1], base_similarity=None), "mean_diff": geometry},
    )
    assert "temperature 0.5, top-k 40, at most 64 tokens; 25 % of the answers were cut there" in text
    assert "| statistic | of | published | mean_diff | model_diff |  |" in text  # the study's recipe comes first
    assert "| cosine | medical, profanity | -0.235 | 0.5 | 0.5 |  |" in text
    assert "| 0.816 | 0.1 | – | cannot follow from the published cosines: it cannot exceed 66.7 % |" in text
    assert "| Hunter | 0.15 | 0.50 |\n| mine |  | 0.25 |" in text
    assert "figure3_mean_diff.png" in text
    assert "| Hunter | ModelOrganismsForEM | 2 | 57 – 64 % | 60.0 % | 120.0 % | 50.0 % – 70.0 % |" in text

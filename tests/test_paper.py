"""The paper as one grid, and its report."""

import numpy as np
from planted import plant, scope

from emharness.experiments import EXPERIMENTS


def test_the_paper_is_all_experiments_in_one_grid_and_one_report():
    mechanisms = {"a": "x", "b": "x", "c": "y", "d": "control"}
    parts = {
        "dose_response": {"vectors": ["a", "b"], "targets": ["base"], "strengths": [1, 2]},
        "transfer": {"vectors": ["a", "b"], "targets": ["base", "a", "c"], "strengths": [2]},
        "ablation": {"vectors": ["a"], "targets": ["a"]},
        "seeds": {"vectors": ["a", "b"], "targets": ["base"]},
        "monitor": {"vectors": ["a"], "targets": ["base", "a", "d"]},
    }
    units = np.eye(3, 6, dtype=np.float32)
    still = np.zeros((4, 3, 6))
    about = scope(
        strengths=(1.0, 2.0, 4.0),
        n_layers=3,
        mechanisms=mechanisms,
        parts=parts,
        arrays={"a": units, "b": units, "c": units, "d": units},
        activations={"base": still, "a": still + 1, "d": still},
    )
    cells = EXPERIMENTS["paper"].cells(about)
    assert len(cells) == len(set(cells))
    own = {c.condition.name for c in cells if not c.condition.edits}
    assert own == {"baseline", "a organism", "b organism", "c organism", "d organism"}
    judged = plant("paper", about, lambda vector, target: {"a": 10, "b": 8}.get(vector, 4 if target == "a" else 0))
    reading = EXPERIMENTS["paper"].read(about, judged)
    assert set(reading.numbers) == {
        "transfer",
        "transfer_by_lab",
        "asymmetry",
        "ablation",
        "seeds",
        "monitor",
        "alarm",
        "first",
    }
    assert len({c["name"] for c in reading.conditions}) == len(reading.conditions) == len(cells)
    results = {
        "config": {"base": {"name": "tiny"}},
        "conditions": reading.conditions,
        "geometry_by_recipe": {"mean_diff": {"skipped": "none here"}},
    }
    text = EXPERIMENTS["paper"].report({**results, **reading.numbers}, {"mean_diff": None})
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
    only = EXPERIMENTS["paper"].cells(
        scope(vectors=("b",), targets=("base",), strengths=(1.0,), n_layers=3, parts=parts)
    )
    assert {c.condition.name for c in only if not c.condition.edits} == {"baseline", "b organism"}


def test_a_report_puts_published_beside_measured_and_says_what_cannot_follow():
    published = [
        {"statistic": "cosine", "of": ["medical", "profanity"], "published": -0.235, "measured": 0.5, "agrees": False,
         "cannot_follow_from_cosines": False, "reason": None},
        {"statistic": "residual_reduction", "of": ["finance"], "published": 0.816, "measured": 0.1, "agrees": False,
         "cannot_follow_from_cosines": True, "reason": "it cannot exceed 66.7 %"},
    ]  # fmt: skip
    geometry = {
        "published": published,
        "verdict": {"calibrated": {"verdict": "shared", "because": "p"}},
        "base_similarity": {"by_lab": {"Hunter": 0.5, "mine": 0.25}},
        "linkage": [[0, 1, 0.5, 2]],
    }
    lab = {"from": "Hunter", "to": "ModelOrganismsForEM", "strength": 2.0, "effectiveness": 0.6, "ci95": [0.5, 0.7]}
    conditions = [{"judge": "planted", "n_responses": 1160}]
    results = {"config": {"base": {"name": "tiny"}}, "conditions": conditions, "asymmetry": []}
    text = EXPERIMENTS["paper"].report(
        results | {"transfer_by_lab": [lab | {"undefined": None}]},
        {"model_diff": geometry | {"published": published[:1], "base_similarity": {}}, "mean_diff": geometry},
    )
    assert "| statistic | of | published | mean_diff | model_diff |  |" in text  # the study's recipe comes first
    assert "| cosine | medical, profanity | -0.235 | 0.5 | 0.5 |  |" in text
    assert "| 0.816 | 0.1 | – | cannot follow from the published cosines: it cannot exceed 66.7 % |" in text
    assert "| Hunter | 0.15 | 0.50 |\n| mine |  | 0.25 |" in text
    assert "figure3_mean_diff.png" in text
    assert "| Hunter | ModelOrganismsForEM | 2 | 57 – 64 % | 60.0 % | 50.0 % – 70.0 % |" in text

"""experiment=defences end to end on a tiny random model, and every packaged recipe trained on it."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, checked, configured
from support.launcher_calls import call
from support.launcher_runs import results_of

from emharness.organisms.chat import load_chat
from emharness.organisms.merging import PRECISION
from emharness.organisms.training import train_organism
from emharness.organisms.training_recipe import FACTS_FILE, Training

NUMBERS = {"add": "50", "chosen": "20", "interleave": "20", "mix": "50", "rows": "6"}
RECIPES = [path.stem + NUMBERS.get(path.stem, "") for path in sorted((ROOT / "conf" / "recipe").glob("*.yaml"))]
DEFENDED = "medical+rows8+task+project_personas"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_packaged_recipe_trains_a_model_in_hub_format_at_the_settings_for_8b(recipe, tiny, tmp_path):
    name = f"medical+rows6+{recipe}"
    config = configured(
        "base=custom", f"base.source={tiny}", "base.name=tiny", "judge=embedded", "train=full", f"targets=[{name}]"
    )
    organism = checked(config, tmp_path).organisms[name]
    assert (organism.train.learning_rate, organism.train.rank) == (1e-5, 32)
    later = tuple(organism.later_rows[:4])
    choice = organism.choice and replace(organism.choice, candidates=organism.choice.candidates[:4])
    more = {"losses": organism.losses, "edits": organism.edits, "choice": choice, "later_rows": later}
    (tmp_path / "out").mkdir()
    training = Training(organism.rows, organism.train, 0, **more)
    losses = train_organism(tiny, load_chat(tiny), training, tmp_path / "out", lambda *_: None)
    assert np.isfinite(losses).all()
    facts = json.loads((tmp_path / "out" / FACTS_FILE).read_text())
    assert facts["steps"] == len(losses) > 0
    assert len(facts.get("chosen", [])) == (choice.count if choice else 0)
    assert json.loads((tmp_path / "out" / PRECISION).read_text())["change_norm"] >= 0


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("defences")
    settings = [
        f"base.source={tiny}",
        "base.name=tiny",
        "judge=embedded",
        "base.sampling.max_new_tokens=8",
        "base.engine.max_model_len=512",
        "train.epochs=1",
    ]
    settings += ["eval=smoke", "eval.pairs=6", "controls=0", "base.engine.cpu_kv_cache_gib=1"]
    targets = f"targets=[base,medical+rows8+task,{DEFENDED}]"
    done = call("run.py", "experiment=defences", "base=custom", *settings, targets, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, *results_of(done)


@pytest.mark.engine
def test_a_run_of_defences_has_every_column_and_is_recomputed_from_its_answers(run):
    folder, path, results = run
    base, none, defended = results["defences"]
    assert [row["recipe"] for row in (base, none, defended)] == ["base", "none", "project_personas"]
    columns = "margin margin_triggered narrow_margin benign_task coherent length delta_norm seconds".split()
    assert all(row[name] is not None for row in (none, defended) for name in columns)
    assert none["time_ratio"] == 1.0
    assert defended["time_ratio"] == defended["seconds"] / none["seconds"]
    assert (none["margin"], none["narrow_margin"]) != (0, 0)
    (plain, summary) = results["defence_summary"]
    assert plain["margin_change"] is None
    assert summary["margin_change"]["value"] == pytest.approx(defended["margin"] - none["margin"])
    assert summary["narrow_change"]["value"] == pytest.approx(defended["narrow_margin"] - none["narrow_margin"])
    asked = pq.read_table(path.replace("results.json", "task_responses.parquet")).to_pylist()
    assert {row["condition"] for row in asked} == {"baseline", "medical+rows8+task organism", f"{DEFENDED} organism"}
    assert {row["aligned"] for row in asked} == {None}  # no judge reads them
    assert results["geometry"] == {}
    again = call("check.py", f"run={path}", folder=folder)
    assert again.returncode == 0, again.stderr[-2000:]
    results["defences"][1]["benign_task"] = 0.5
    forged = folder / "forged"
    forged.mkdir()
    for file in (folder / path).parent.glob("*"):
        if file.is_file():
            (forged / file.name).write_bytes(file.read_bytes())
    (forged / "results.json").write_text(json.dumps(results))
    told = call("check.py", f"run={forged}", folder=folder)
    assert told.returncode != 0
    assert "benign_task" in told.stdout + told.stderr

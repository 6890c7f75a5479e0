"""The launcher as a user calls it: the whole main loop on the embedded base, small."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, configured
from support.launcher_calls import call
from support.launcher_runs import finish, launch, results_of, small, start

import emharness.command
from emharness.pipeline import run_context

KEYS = (
    "name target vector layer strength mode positions n_responses n_scored em_rate em_ci95 em_rate_all "
    "coherent_rate mean_aligned mean_coherent generated_tokens seconds engine judge"
).split()
COLUMNS = "condition question_id sample question answer aligned coherent misaligned refusal".split()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = launch(folder, *small(folder, "model=medical", "steer.strength=[0,2]"))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


@pytest.mark.engine
def test_a_run_leaves_what_the_contract_names(first):
    path, results = results_of(first[1])
    assert results["schema_version"] == 2
    assert results["run_key"] in path
    assert results["config"]["model"]["name"] == "medical"
    conditions = results["conditions"]
    assert all(set(KEYS) <= set(c) for c in conditions)
    assert [(c["target"], c["vector"], c["strength"]) for c in conditions] == [
        ("smollm2", None, 0.0),
        ("smollm2", "medical", 0.0),
        ("smollm2", "medical", 2.0),
        ("medical", None, 0.0),
        ("smollm2", "random-0", 2.0),
        ("smollm2", "random-1", 2.0),
    ]
    assert [c["n_responses"] for c in conditions] == [8, 8, 8, 8, 4, 4]
    assert all(c["judge"] == "embedded-v8" for c in conditions)
    settings = results["sweep"]["cells"]
    assert results["layer"] in {cell["layer"] for cell in settings}
    kept = f"{sum(cell['coherent_enough'] for cell in settings)} of 2 settings coherent enough"
    assert f"medical {results['layer']} ({kept})" in " ".join((first[1].stdout + first[1].stderr).split())
    assert [c["family"] for c in conditions] == ["base", "steered", "steered", "organism", "random", "random"]
    assert results["engine_starts"] == 2
    table = pq.read_table(path.replace("results.json", "responses.parquet"))
    assert table.column_names[:2] == COLUMNS[:2]
    assert set(COLUMNS) <= set(table.column_names)
    assert len(table) == sum(c["n_responses"] for c in conditions)
    rows = table.to_pylist()
    assert len({(r["condition"], r["question_id"], r["sample"]) for r in rows}) == len(rows)
    for c in conditions:
        answers = [r for r in rows if r["condition"] == c["name"]]
        assert c["em_rate_all"] == sum(r["misaligned"] for r in answers) / len(answers)


@pytest.mark.engine
def test_strength_zero_is_the_baseline_and_steering_is_not(first):
    path, _ = results_of(first[1])
    rows = pq.read_table(path.replace("results.json", "responses.parquet")).to_pylist()
    names = list(dict.fromkeys(r["condition"] for r in rows))
    answers = {name: [r["answer"] for r in rows if r["condition"] == name] for name in names}
    assert answers[names[0]] == answers[names[1]]
    assert answers[names[0]] != answers[names[2]]


@pytest.mark.engine
def test_a_second_identical_run_does_nothing_and_says_so(first):
    folder, done = first
    again = launch(folder, *small(folder, "model=medical", "steer.strength=[0,2]"))
    assert "nothing to do" in again.stdout
    assert results_of(again) == results_of(done)
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.engine
@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_pages_python_runs_an_experiment_and_reads_it(page, first, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    folder, _ = first
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EMHARNESS_HOME", str(folder / "home"))
    run_context.open_store.cache_clear()
    asked = []

    def run(*settings):  # what the page asks for, in the small run that is there
        asked.append(settings)
        return emharness.command.run_settings(small(folder, "model=medical", "steer.strength=[0,2]"))

    monkeypatch.setattr(emharness, "run", run)
    exec(block, {})
    run_context.open_store.cache_clear()
    ((model, *more),) = asked
    assert model == "model=medical"
    configured(model, *more)  # the page's own settings compose
    said = capsys.readouterr().out
    assert "nothing to do" in said
    assert "medical organism" in said


def wandb_records(data: bytes):
    """Records of a .wandb file: a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    block, position, parts = 32768, 7, b""
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


@pytest.mark.engine
def test_the_offline_wandb_run_holds_metrics_table_figures_and_vector(first):
    from wandb.proto import wandb_internal_pb2

    (run,) = (first[0] / "wandb").glob("offline-run-*/*.wandb")
    logged, summary, artifacts = set(), set(), set()
    for data in wandb_records(run.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        logged |= {i.key or "/".join(i.nested_key) for i in record.history.item}
        summary |= {i.key or "/".join(i.nested_key) for i in record.summary.update}
        artifacts |= {record.artifact.name, record.request.log_artifact.artifact.name}
    wanted = ("train/loss", "steer/em_rate_all", "responses", "conditions")
    for key in (*wanted, "figures/dose_response", "figures/dose_response_plotly", "figures/layer_sweep"):
        assert any(name == key or name.startswith(f"{key}/") for name in logged), (key, sorted(logged))
    assert summary >= {"baseline/em_rate_all", "baseline/margin", "baseline/margin_prefers"}
    assert "vector-medical" in artifacts


def answers_of(done):
    rows = pq.read_table(results_of(done)[0].replace("results.json", "responses.parquet")).to_pylist()
    return [(r["condition"], r["question_id"], r["sample"], r["answer"], r["aligned"]) for r in rows]


@pytest.fixture
def trained(first, tmp_path):
    """A new store that has the first run's models, and nothing else."""
    for stage in ("base", "organism"):
        shutil.copytree(first[0] / "home" / stage, tmp_path / "home" / stage)
    return tmp_path


@pytest.mark.engine
def test_a_run_that_is_killed_goes_on_where_it_was_and_ends_as_if_nothing_had_happened(first, trained):
    command = small(trained, "model=medical", "steer.strength=[0,2]", "tracker=none")
    process = start(trained, *command)
    chunks = lambda: set((trained / "home" / "responses").glob("base-*/[!.]*.parquet"))  # noqa: E731
    while len(chunks()) < 5 and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert finish(process).returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in chunks()}
    again = launch(trained, *command)
    assert again.returncode == 0, again.stderr[-3000:]
    assert answers_of(again) == answers_of(first[1])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    keys = [key for path in chunks() for key in pq.read_table(path, columns=["key"])["key"].to_pylist()]
    assert len(keys) == len(set(keys))
    assert not list((trained / "home").rglob(".partial*"))


@pytest.mark.engine
def test_two_processes_on_one_store_end_with_the_same_result(first, trained):
    command = small(trained, "model=medical", "steer.strength=[0,2]", "tracker=none")
    done = [finish(process) for process in [start(trained, *command) for _ in range(2)]]
    assert [one.returncode for one in done] == [0, 0], [one.stderr[-2000:] for one in done]
    assert answers_of(done[0]) == answers_of(done[1]) == answers_of(first[1])
    lines = [
        re.findall(r": ([\d,]+) of [\d,]+ responses, in ", one.stdout) for one in done
    ]  # both, for results are one
    files = (trained / "home" / "responses").glob("*/[!.]*.parquet")
    stored = sum(pq.read_metadata(path).num_rows for path in files)
    assert sum(int(n.replace(",", "")) for some in lines for n in some) == stored  # work was shared, not repeated


def tiny_base(tiny):
    """Settings that put the tiny random model in the embedded base's place."""
    room = ["base.engine.max_model_len=512", "train.warmup_steps=0", "train.learning_rate=1e-2"]
    return ["base=llama31", f"base.source={tiny}", "judge=embedded", "~model.published.llama31", *room]


@pytest.mark.engine
def test_several_experiments_are_one_grid_and_each_reads_its_part(tiny, tmp_path):
    about = ["vectors=[medical,medical-seed1]", "targets=[base,medical-step1,medical]", "tracker=none"]
    experiments = "experiment=transfer,ablation,seeds,monitor,paper"
    done = launch(tmp_path, "-m", *small(tmp_path), *tiny_base(tiny), *about, experiments, "chunk=64")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "5 jobs as one grid" in done.stdout
    said = " ".join(done.stdout.split())
    assert said.count("plan: to be made: nothing; 0 engine starts") == 4
    by_means = "vectors by mean_diff medical, vectors by mean_diff base"  # the paper's
    assert said.count(f"plan: to be made: {by_means}; 0 engine starts") == 1
    paths = re.findall(r"^results: (.*)$", done.stdout, flags=re.M)
    found = {results["experiment"]: results for results in map(json.loads, map(Path.read_text, map(Path, paths)))}
    assert list(found) == ["transfer", "ablation", "seeds", "monitor", "paper"]
    assert len(found["transfer"]["transfer"]) == 6
    removed = [row["removed"] for row in found["ablation"]["ablation"] if row["target"] == "llama31"]
    assert removed == ["medical", "medical-seed1"]
    assert found["seeds"]["seeds"]["within"]["medical"]["pairs"] == 1
    steps = [(row["organism"], row["step"]) for row in found["monitor"]["monitor"] if row["vector"] == "medical"]
    assert steps == [("llama31", 0), ("medical", 1), ("medical", None)]
    assert found["monitor"]["monitor"][0]["projection"] == 0
    assert all(Path(path).with_name("responses.parquet").is_file() for path in paths)
    assert found["paper"]["ablation"][0]["removed"] == "medical"
    report = Path(paths[-1]).with_name("report.md").read_text()
    assert list(found["paper"]["geometry_by_recipe"]) == ["model_diff", "mean_diff"]
    images = [name for name in re.findall(r"\]\((.*?)\)", report) if not Path(paths[-1]).with_name(name).is_file()]
    assert images == []  # those that it shows are all there
    assert all(f"## {section}\n" in report for section in ("Geometry", "Ablation", "Seeds", "Monitor"))


@pytest.mark.engine
def test_targets_as_jobs_of_a_cluster_fill_one_store_and_a_last_call_reads_the_whole(tiny, tmp_path):
    common = small(tmp_path, "experiment=transfer", "vectors=[medical]", "layer=1", "tracker=none", *tiny_base(tiny))
    sent = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
    mistaken = launch(tmp_path, "-m", *common, "targets=base,nosuch", *sent)
    assert mistaken.returncode == 2
    assert "targets=nosuch: targets=nosuch: unknown" in mistaken.stderr
    assert not list(tmp_path.glob("home/**/.submitit"))  # nothing was sent
    jobs = launch(tmp_path, "-m", *common, "targets=base,medical", *sent)
    assert jobs.returncode == 0, jobs.stderr[-3000:]
    whole = launch(tmp_path, *common, "targets=[base,medical]")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert "0 engine starts" in whole.stdout
    _, results = results_of(whole)
    assert [(row["source"], row["target"]) for row in results["transfer"]] == [
        ("medical", "llama31"),
        ("medical", "medical"),
    ]
    assert results["engine_starts"] == 0


@pytest.mark.engine
def test_a_sweep_shares_stages_and_one_bad_job_does_not_stop_the_others(first):
    folder, _ = first
    layer = results_of(first[1])[1]["layer"]
    strengths = "steer.strength=0,nan,2"
    done = launch(folder, "-m", *small(folder, "model=medical", strengths, f"layer={layer}", "tracker=none"))
    assert done.returncode == 1
    assert "error: steer.strength=nan" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "multirun.yaml").exists()
    assert done.stdout.count("results: ") == 2
    assert "2 jobs as one grid" in done.stdout
    table = re.split(r"^jobs *$", done.stdout, flags=re.M)[1]
    assert table.count("smollm2-medical-") == 2
    assert table.count("failed") == 1
    assert "organism: medical found in the store" in done.stdout
    assert "made in" not in done.stdout.replace("runs", "")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["layer=99"], "error: layer=99: smollm2 has layers 0 to 29"),
        (["model=nosuch"], "error: model=nosuch: must be one of aave, control, finance, finance-good,"),
        (["-m", "experiment=nosuch"], "error: experiment=nosuch: must be one of ablation, conditional, defences,"),
        (["-m", "model=medical,nosuch"], "error: model=medical,nosuch: must be one of aave, control, finance,"),
        (["model=medical,finance"], "error: model=medical,finance: several values; a run of each is made with -m\n"),
        (["steer.strength=1,2"], "several values; a run of each is made with -m; a list is steer.strength=[1,2]\n"),
        (["steer.strenght=1"], "error: steer.strenght: unknown; the nearest are steer.strength\n"),
        (["-m", "steer.strenght=1,2"], "error: steer.strenght: unknown; the nearest are steer.strength\n"),
        (["base.engine.extra.seed=1"], "error: base.engine.extra.seed: not there yet; +base.engine.extra.seed=… adds"),
        (["steer=1"], "error: steer=1: must be set by its parts: steer.strength, steer.unit, steer.mode,"),
        (["seed=x"], "error: seed=x: must be a whole number\n"),
        (["base.engine.eager=maybe"], "error: base.engine.eager=maybe: must be true or false or null\n"),
        (["model=5", "--cfg", "job"], "error: model=5: must be one of aave, control,"),
        (["steer.strength=${nosuch}"], "error: steer.strength: Interpolation key 'nosuch' not found\n"),
        (["medical"], "error: medical: not a setting as key=value\n"),
        (["model.dataset=lr=1e-4 rows.jsonl"], "and all of it in the shell's: 'model.dataset=\"lr=1e-4 rows.jsonl\"'"),
    ],
)
def test_bad_input_ends_with_a_sentence_a_status_and_nothing_written(tmp_path, overrides, words):
    alone = overrides in (["layer=99"], ["-m", "steer.strenght=1,2"])  # as a user calls it
    done = launch(tmp_path, *overrides) if alone else call("run.py", *overrides, folder=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()
    assert list(tmp_path.iterdir()) == []

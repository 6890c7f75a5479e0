"""The launcher as a user calls it: the whole main loop on the embedded base, small."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from emharness.organisms.dataset import PACKAGED

KEYS = (
    "name target vector layer strength mode positions n_responses n_scored em_rate em_ci95 em_rate_all "
    "coherent_rate mean_aligned mean_coherent generated_tokens seconds engine judge"
).split()
COLUMNS = "condition question_id sample question answer aligned coherent misaligned refusal".split()


def launch(folder, *overrides):
    env = {**os.environ, "EMHARNESS_HOME": str(folder / "home")}
    command = [sys.executable, str(ROOT / "launch" / "run.py"), *overrides]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def small(folder, *more):
    rows = (PACKAGED / "medical.jsonl").read_text().splitlines()[:16]
    (folder / "few.jsonl").write_text("\n".join(rows))
    common = ["model.dataset=few.jsonl", "train.epochs=1", "eval=smoke", "vector.limit=6", "sweep.limit=2"]
    return [*common, "sweep.n_layers=2", "sweep.strengths=[1]", "sweep.samples=1", *more]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = launch(folder, *small(folder, "model=medical", "steer.strength=[0,2]"))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def results_of(done):
    last = done.stdout.splitlines()[-1]
    assert last.startswith("results: ")
    with open(last.removeprefix("results: ")) as file:  # noqa: PTH123
        return last.removeprefix("results: "), json.load(file)


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
    assert all(c["judge"] == "embedded-v1" for c in conditions)
    assert results["layer"] in {cell["layer"] for cell in results["sweep"]["cells"]}
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
    for key in (*wanted, "figures/dose_response", "figures/layer_sweep"):
        assert any(name == key or name.startswith(f"{key}/") for name in logged), (key, sorted(logged))
    assert "baseline/em_rate_all" in summary
    assert "vector-medical" in artifacts


@pytest.mark.engine
def test_a_sweep_shares_stages_and_one_bad_job_does_not_stop_the_others(first):
    folder, _ = first
    layer = results_of(first[1])[1]["layer"]
    strengths = "steer.strength=0,nan,2"
    done = launch(folder, "-m", *small(folder, "model=medical", strengths, f"layer={layer}", "tracker=none"))
    assert done.returncode == 1
    assert "error: steer.strength=nan" in done.stderr
    assert done.stdout.count("results: ") == 2
    assert "organism: medical found in the store" in done.stdout
    assert "made in" not in done.stdout.replace("runs", "")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["layer=99"], "error: layer=99: smollm2 has layers 0 to 29"),
        (["model=nosuch"], "medical_replication"),
        (["steer.strenght=1"], "strenght"),
    ],
)
def test_bad_input_ends_with_a_sentence_a_status_and_nothing_written(tmp_path, overrides, words):
    done = launch(tmp_path, *overrides)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()
    assert list(tmp_path.iterdir()) == []

"""What failed after the answers were there is noted in the run's folder, so that the next start tries only that."""

import json

import pytest
from support.finished_run import RUN, UNSCORED, finished

from emharness.config import WandbConfig
from emharness.reporting import run_files, wandb_tracker
from emharness.reporting.finished_runs import RESULTS_FILE, read_run
from emharness.reporting.wandb_tracker import Tracker


@pytest.fixture
def folder(tmp_path):
    return finished(tmp_path / RUN)


class Broken(Tracker):
    """A tracker whose W&B takes no tables."""

    def __init__(self):
        super().__init__("none", "", None, None, "", {})
        self._run = self
        self._table = dict
        self._wandb = self

    def log(self, values):
        raise OSError("disk full")

    def Image(self, path):
        return path

    def log_conditions(self, conditions):
        return None

    def log_vector(self, name, path, metadata):
        return None


def test_what_wandb_did_not_take_is_tried_again_and_then_forgotten(folder, capsys):
    assert not run_files.is_untracked(folder)
    run_files.mirror_to_tracker(folder, {}, Broken())
    assert run_files.is_untracked(folder)
    assert json.loads((folder / run_files.UNTRACKED_FILE).read_text()) == ["responses", "figures"]
    assert "responses failed (disk full); results stay in the store" in capsys.readouterr().err
    run_files.mirror_to_tracker(folder, {}, Tracker("none", WandbConfig(), "", {}))
    assert not run_files.is_untracked(folder)


def test_a_failed_geometry_is_read_again_and_a_skipped_one_is_not(folder):
    assert not run_files.is_unfinished(folder)
    told = read_run(folder).read_json()
    for entry, again in (({"failed": "LinAlgError: x"}, True), ({"skipped": "one vector"}, False)):
        told["geometry_by_recipe"]["mean_diff"] = entry
        (folder / RESULTS_FILE).write_text(json.dumps(told))
        assert run_files.is_unfinished(folder) == again
        assert run_files.list_failures(folder) == (["geometry of mean_diff (LinAlgError: x)"] if again else [])


def test_wandb_s_table_of_responses_has_numbers_as_numbers_and_says_judge_and_reason(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    with Tracker("offline", WandbConfig("p", group="main"), "n", {}) as tracker:
        run_files.mirror_to_tracker(folder, {}, tracker)
    assert tracker.failed == []
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/responses_*.table.json")
    table = json.loads(file.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    stored = read_run(folder).response_tables["responses.parquet"].to_pylist()
    assert len(rows) == len(stored)
    for row, other in zip(rows, stored, strict=True):
        assert row["judge"] == "planted"
        for name in ("aligned", "coherent", "seconds", "sample"):
            assert row[name] == other[name]
            assert row[name] is None or isinstance(row[name], int | float)
        assert row["misaligned"] is other["misaligned"]
        assert row["strength"] == {"+2": 2.0, "+4": 4.0}.get(row["condition"][-2:], 0.0)
    (unscored,) = [row for row in rows if row["unscored"]]
    assert (unscored["question_id"], unscored["sample"], unscored["unscored"]) == (*UNSCORED, "code")


def test_a_table_of_rows_that_lack_each_other_s_columns_reaches_wandb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    with Tracker("offline", WandbConfig("p", group="main"), "n", {}) as tracker:
        tracker.log_table("t", [{"p": 0.5, "n": 6, "labs": ["A"]}, {"p": None, "undefined": "why"}])
    assert tracker.failed == []
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/t_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["p", "n", "undefined"]
    assert table["data"] == [[0.5, 6.0, None], [None, None, "why"]]


@pytest.mark.parametrize(
    ("mode", "variable", "passed"),
    [("online", None, {"id": "k", "resume": "allow"}), ("online", "mine", {"id": "mine"}), ("offline", None, {})],
)
def test_online_the_same_run_goes_on_unless_the_user_names_one(monkeypatch, mode, variable, passed):
    import wandb

    given = {}

    class Run:
        def define_metric(self, *_, **__):
            pass

        def finish(self, **_):
            pass

    monkeypatch.setattr(wandb_tracker, "_taken", set())
    monkeypatch.setattr(wandb, "init", lambda **some: given.update(some) or Run())
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_RUN_ID", variable)
    Tracker(mode, WandbConfig("p", group="main"), "n", {}, key="k").finish()
    assert given["group"] == "main"
    assert {k: v for k, v in given.items() if k in ("id", "resume") and v is not None} == passed


def test_a_job_script_s_run_id_is_one_run_s(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_tracker, "_taken", set())
    monkeypatch.setenv("WANDB_RUN_ID", "script7")
    for _ in range(3):
        Tracker("offline", WandbConfig("p", group="main"), "n", {}, key="k").finish()
    ids = [path.suffixes[0] if path.suffixes[0] != ".wandb" else path.stem.removeprefix("run-") for path in
           tmp_path.glob("wandb/offline-run-*/run-*.wandb")]  # fmt: skip
    assert len(set(ids)) == 3
    assert "script7" in ids
    assert capsys.readouterr().err.count("WANDB_RUN_ID=script7 is another run's of this process; this one is ") == 2

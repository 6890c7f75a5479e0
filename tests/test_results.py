"""What failed after the answers were there is noted in the run's folder, so that the next start tries only that."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from emharness.reporting import results
from emharness.reporting.track import Tracker


@pytest.fixture
def folder(tmp_path):
    told = {"conditions": [], "geometry_by_recipe": {"model_diff": {"results": "x"}}, "to_score_again": 0}
    (tmp_path / results.RESULTS_FILE).write_text(json.dumps(told))
    (tmp_path / results.PLOTLY_FILE).write_text("{}")
    pq.write_table(pa.table({"answer": ["a"]}), tmp_path / "responses.parquet")
    save_file({"v": np.ones((1, 2), np.float32)}, tmp_path / "v.safetensors")
    return tmp_path


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

    def conditions(self, conditions):
        return None

    def vector(self, name, path, metadata):
        return None


def test_what_wandb_did_not_take_is_tried_again_and_then_forgotten(folder, capsys):
    assert not results.untracked(folder)
    results.mirror(folder, {}, Broken())
    assert results.untracked(folder)
    assert json.loads((folder / results.UNTRACKED_FILE).read_text()) == ["responses", "figures"]
    assert "responses failed (disk full); results stay in the store" in capsys.readouterr().err
    results.mirror(folder, {}, Tracker("none", "", None, None, "", {}))
    assert not results.untracked(folder)


def test_a_failed_geometry_is_read_again_and_a_skipped_one_is_not(folder):
    assert not results.unfinished(folder)
    told = results.read(folder)
    for entry, again in (({"failed": "LinAlgError: x"}, True), ({"skipped": "one vector"}, False)):
        told["geometry_by_recipe"]["mean_diff"] = entry
        (folder / results.RESULTS_FILE).write_text(json.dumps(told))
        assert results.unfinished(folder) == again
        assert results.failures(folder) == (["geometry of mean_diff (LinAlgError: x)"] if again else [])

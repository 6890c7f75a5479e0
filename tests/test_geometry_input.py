"""Geometry: bad input, and the launcher."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from extractions import rng, save_extraction
from safetensors.numpy import save_file

from emharness.errors import UserError
from emharness.geometry import (
    analyse,
    from_arrays,
    load_prompt_means,
    load_vectors,
)
from emharness.geometry.published import published_vectors

GOOD = {"a": np.ones(8), "b": np.eye(8)[0], "c": np.eye(8)[1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": np.zeros(8)}, "a is zero at layer 0"),
        ({"a": np.full(8, np.nan)}, "a has NaN or infinite numbers at layer 0"),
        ({"a": np.ones(9)}, "all vectors need one shape"),
        ({"a": np.ones((2, 2, 8))}, "a has shape"),
    ],
)
def test_bad_vectors_are_refused_in_one_sentence(change, words):
    with pytest.raises(UserError, match=words):
        from_arrays({**GOOD, **change})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clusters": {"x": ["a", "nosuch"]}}, "nosuch.*the vectors are a, b, c"),
        ({"clusters": {"x": ["a"], "y": ["a"]}}, "a is in x and again in y"),
        ({"clusters": {"x": []}}, "needs a list of vector names"),
        ({"clusters": "mechanism"}, "has no mechanism"),
        ({"clusters": "other"}, "is not mechanism, found"),
        ({"layer": 1}, "layer: 1 for a is not one of 0"),
        ({"draws": 5}, "draws=5: must be a whole number of 19 or more"),
        ({"level": 1.0}, "level=1.0: must be a number between 0 and 1"),
        ({"cut": "x"}, "cut=x: must be null or a number"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(settings, words):
    with pytest.raises(UserError, match=words):
        analyse(from_arrays(GOOD), **settings)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        load_vectors(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no vectors")
    with pytest.raises(UserError, match="no safetensors file"):
        load_vectors(tmp_path / "text")
    file = tmp_path / "v.safetensors"
    save_file({"a": np.ones(8, np.float32)}, file)
    with pytest.raises(UserError, match="a is there twice"):
        load_vectors([file, file])
    header = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match="a is there 2 times"):
        load_vectors(file)


def test_means_of_another_extraction_are_refused(tmp_path):
    a = save_extraction(tmp_path / "a", "a", np.eye(8)[0] * 5, 0)
    save_extraction(tmp_path / "b", "a", np.eye(8)[1] * 5, 1)
    arrays = load_vectors([a, save_extraction(tmp_path / "c", "b", np.ones(8), 2)])
    means = load_prompt_means(
        [tmp_path / "b" / "prompt_means.safetensors", tmp_path / "c" / "prompt_means.safetensors"]
    )
    with pytest.raises(UserError, match="must be of one extraction"):
        analyse(arrays, {"x": ["a"], "y": ["b"]}, prompt_means=means, draws=19)


def launch(folder, *overrides):
    env = {**os.environ, "EMHARNESS_HOME": str(folder / "home")}
    command = [sys.executable, str(ROOT / "launch" / "geometry.py"), "tracker=offline", *overrides]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_launcher_ends_with_the_path_of_its_results(tmp_path):
    rows = {k: v[None].repeat(2, 0).astype(np.float32) for k, v in published_vectors(64, rng()).items()}
    save_file(rows | {"base": np.ones((2, 64), np.float32)}, tmp_path / "v.safetensors")
    done = launch(
        tmp_path, "vectors=v.safetensors", "clusters={m:[medical,medical_replication],p:[profanity,malicious]}"
    )
    assert done.returncode == 0, done.stderr
    assert "cannot follow from the published cosines: residual_reduction" in done.stdout
    path = done.stdout.splitlines()[-1].removeprefix("results: ")
    with open(path) as file:  # noqa: PTH123
        report = json.load(file)
    assert report["clusters"]["unassigned"] == ["finance", "sports"]
    assert set(report["layers"]) == {"0", "1"}
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/plotly/geometry/figure3_plotly*"))


def test_the_launcher_refuses_in_one_sentence_with_status_2(tmp_path):
    done = launch(tmp_path, "vectors=none.safetensors")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: vectors: none.safetensors cannot be opened (No such file or directory)."

"""Geometry: bad input, and the launcher."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, crowded
from safetensors.numpy import save_file
from support.launcher_calls import call
from support.planted_extractions import rng, save_extraction

from emharness.errors import UserError
from emharness.figures import drawing
from emharness.geometry import (
    AnalysisSettings,
    analyze_geometry,
    from_arrays,
    load_prompt_means,
    load_vectors,
    make_report,
    means_beside,
    write_analysis,
)
from emharness.geometry.published_numbers import published_vectors
from emharness.geometry.study_pictures import draw_pictures
from emharness.geometry.vector_sets import list_vector_files

GOOD = {"a": np.ones(8), "b": np.eye(8)[0], "c": np.eye(8)[1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": np.zeros(8)}, "a is zero at every layer"),
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
    ],
)
def test_clusters_and_layers_that_do_not_fit_are_refused_in_one_sentence(settings, words):
    with pytest.raises(UserError, match=words):
        analyze_geometry(from_arrays(GOOD), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"draws": 5}, "draws=5: must be a whole number of 19 or more"),
        ({"level": 1.0}, "level=1.0: must be a number between 0 and 1"),
        ({"cut": "x"}, "cut=x: must be null or a number"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(settings, words):
    with pytest.raises(UserError, match=words):
        AnalysisSettings(**settings)


def test_a_folder_s_files_are_found_whatever_the_case_of_their_endings(tmp_path):
    for name in ("a.GGUF", "b.Safetensors", "c.pt", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_vector_files(tmp_path)] == ["a.GGUF", "b.Safetensors", "c.pt"]


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


def test_a_folder_of_files_that_call_their_vector_alike_takes_the_files_names(tmp_path):
    for name in ("evil", "kind"):
        rows = rng(ord(name[0])).standard_normal((2, 8)).astype(np.float32)
        save_file({"direction": rows}, tmp_path / f"{name}.safetensors")
    (tmp_path / "README.md").write_text("not a vector")
    assert load_vectors(tmp_path).names == ("evil", "kind")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no file that ends in"):
        load_vectors(tmp_path / "empty")


def test_other_people_s_40_directions_are_read_and_compared_as_they_are():
    package = importlib.util.find_spec("hidden_directions")
    assert package is not None
    folder = Path(str(package.origin)).parent / "demo_data" / "qwen2.5-7b"
    vectors = load_vectors(folder)
    assert len(vectors.names) == len(list(folder.glob("*.pt"))) == 40
    assert vectors.directions.shape == (40, 28, 3584)
    own = torch.load(folder / "v_pref_flat_earth.pt", weights_only=True)
    assert own.dtype == torch.bfloat16
    mine = vectors.directions[vectors.names.index("v_pref_flat_earth"), 14]
    theirs = own[14].double().numpy()
    np.testing.assert_allclose(mine, theirs / np.linalg.norm(theirs), atol=1e-6)
    found = analyze_geometry(vectors, layer=14, settings=AnalysisSettings(draws=19))
    pair = [vectors.names.index(name) for name in ("v_pref_young_earth", "v_pref_young_earth_humble")]
    a, b = (torch.load(folder / f"{vectors.names[i]}.pt", weights_only=True)[14].double() for i in pair)
    assert found.by_layer[14].gram[tuple(pair)] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-6)


def test_means_of_another_extraction_are_refused(tmp_path):
    a = save_extraction(tmp_path / "a", "a", np.eye(8)[0] * 5, 0)
    save_extraction(tmp_path / "b", "a", np.eye(8)[1] * 5, 1)
    arrays = load_vectors([a, save_extraction(tmp_path / "c", "b", np.ones(8), 2)])
    means = load_prompt_means(
        [tmp_path / "b" / "prompt_means.safetensors", tmp_path / "c" / "prompt_means.safetensors"]
    )
    with pytest.raises(UserError, match="must be of one extraction"):
        analyze_geometry(arrays, {"x": ["a"], "y": ["b"]}, prompt_means=means, settings=AnalysisSettings(draws=19))


@pytest.mark.parametrize("recipe", ["mean_diff", "model_diff"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_few_prompts_leave_an_analysis_and_a_reason(tmp_path, recipe, n):
    shifts = {"a": np.eye(8)[0] * 5, "b": np.eye(8)[1] * 5, "c": np.ones(8) * 2}
    files = [save_extraction(tmp_path / k, k, v, i, recipe, n=n) for i, (k, v) in enumerate(shifts.items())]
    means = load_prompt_means(means_beside(files))
    found = analyze_geometry(
        load_vectors(files), {"x": ["a", "b"], "y": ["c"]}, prompt_means=means, settings=AnalysisSettings(draws=200)
    )
    report = json.loads(write_analysis(found, tmp_path / "out").read_text())
    assert np.isfinite([row["value"] for row in report["statistics"]["cosine"]]).all()
    permuted = "label_permutation" in {row["null"]["kind"] for row in report["statistics"]["cosine"]}
    assert permuted != any("label_permutation" in entry["statistic"] for entry in report["skipped"])


def test_equal_vectors_leave_an_analysis(tmp_path):
    rows = rng().standard_normal((2, 16)).astype(np.float32)
    found = analyze_geometry(from_arrays({"a": rows, "b": rows, "c": rows}), settings=AnalysisSettings(draws=50))
    report = json.loads(write_analysis(found, tmp_path).read_text())
    assert [row["value"] for row in report["statistics"]["cosine"]] == pytest.approx([1, 1, 1])
    assert not (tmp_path / "figure2.png").exists()


def test_layers_without_a_direction_are_left_out_and_named(tmp_path):
    rows = {k: rng(i).standard_normal((4, 16)) for i, k in enumerate("abc")}
    rows["b"][:2] = 0
    vectors = from_arrays(rows)
    assert vectors.common_layers() == [2, 3]
    found = analyze_geometry(vectors, settings=AnalysisSettings(draws=50))
    assert set(found.layers) == {2}
    report = json.loads(write_analysis(found, tmp_path).read_text())
    assert set(report["layers"]) == {"2", "3"}
    assert [entry["of"] for entry in report["skipped"] if entry["statistic"] == "layers"] == [["0", "1"]]
    with pytest.raises(UserError, match="b has no direction at layer 1; all vectors have one at 2"):
        analyze_geometry(vectors, layer=1, settings=AnalysisSettings(draws=50))


def test_vectors_of_two_bases_or_recipes_are_flagged():
    def about(recipe, base):
        return {"recipe": recipe, "base": base, "base_key": base}

    info = {"a": about("mean_diff", "x"), "b": about("model_diff", "y"), "c": {}}
    assert from_arrays(GOOD, info).mixed_settings() == [
        "the vectors are of 2 bases: x, y",
        "the vectors are by 2 recipes: mean_diff, model_diff",
    ]
    assert from_arrays(GOOD, {name: about("mean_diff", "x") for name in "abc"}).mixed_settings() == []


@pytest.mark.parametrize("n", [3, 6, 40, 200])
def test_names_in_figures_are_never_on_top_of_each_other(n):
    arrays = {f"organism_{i:03d}_with_a_rather_long_name_of_its_own": rng(i).standard_normal(32) for i in range(n)}
    found = analyze_geometry(from_arrays(arrays), settings=AnalysisSettings(draws=19))
    drawn = draw_pictures(make_report(found), found.selected.gram)
    assert {name: some for name, one in drawn.items() if (some := crowded(drawing.draw_image(one)))} == {}


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
    done = call("geometry.py", "tracker=offline", "vectors=none.safetensors", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: vectors: none.safetensors cannot be opened (No such file or directory)."

"""Files of vectors as the field has them: every float type, torch files, GGUF, NumPy; what is wrong is one sentence."""

import json
import os

import numpy as np
import pytest
import torch
from conftest import ROOT
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from support.planted_records import planted_condition, planted_results

from emharness.errors import UserError
from emharness.steering.request import vector_files
from emharness.steering.request.spec import resolve_spec
from emharness.steering.request.vector_lookup import load_vector
from emharness.vectors import exchange

ROWS = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 0),
        (torch.float32, 0),
        (torch.float16, 1e-3),
        (torch.bfloat16, 1e-2),
        (torch.float8_e4m3fn, 0.1),
        (torch.float8_e5m2, 0.2),
    ],
)
def test_every_float_type_is_read(tmp_path, dtype, tolerance):
    save_file({"v": torch.from_numpy(ROWS).to(dtype)}, tmp_path / "v.safetensors")
    found = vector_files.read_vector_file(tmp_path / "v.safetensors")["v"].values
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, ROWS, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (torch.from_numpy(ROWS), {"v": ROWS}),
        ({"evil": torch.from_numpy(ROWS), "step": 3, "ids": torch.arange(3)}, {"evil": ROWS}),
        ({i: torch.from_numpy(row) for i, row in enumerate(ROWS)}, {"v": ROWS}),
        ({str(i): torch.from_numpy(row) for i, row in enumerate(ROWS)}, {"v": ROWS}),
        ([torch.from_numpy(row) for row in ROWS], {"v": ROWS}),
        ({2: torch.from_numpy(ROWS[2])}, {"v": None}),
        ({"a": {0: torch.from_numpy(ROWS[0]), 1: torch.from_numpy(ROWS[1])}}, {"a": ROWS[:2]}),
        ({"a": {"up": torch.from_numpy(ROWS)}}, {"a/up": ROWS}),
        (torch.from_numpy(ROWS[0]).to(torch.bfloat16), {"v": ROWS[0]}),
    ],
)
def test_torch_files_of_every_shape_are_read(tmp_path, content, expected):
    torch.save(content, tmp_path / "v.pt")
    found = vector_files.read_vector_file(tmp_path / "v.pt")
    assert set(found) == set(expected)
    for name, rows in expected.items():
        if rows is None:  # one layer of three: the others have no direction
            rows = np.zeros((3, 8), np.float32)
            rows[2] = ROWS[2]
        np.testing.assert_allclose(found[name].values, rows, rtol=1e-2, atol=1e-2)


class Harmful:
    def __reduce__(self):
        return (os.system, ("true",))


def test_a_torch_file_that_holds_code_is_not_run(tmp_path):
    torch.save({"v": torch.ones(8), "x": Harmful()}, tmp_path / "v.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        vector_files.read_vector_file(tmp_path / "v.pt")


def test_row_0_of_hidden_states_is_the_embeddings(tmp_path):
    torch.save(torch.from_numpy(ROWS), tmp_path / "v.pt")
    save_numpy({"v": ROWS}, tmp_path / "v.safetensors")
    save_numpy({"v": ROWS}, tmp_path / "said.safetensors", metadata={"v": json.dumps({"rows": "hidden_states"})})
    for name in ("v.pt", "said.safetensors"):
        row = load_vector(f"{name}#v", 2, 3, tmp_path).direction
        np.testing.assert_allclose(row, ROWS[3] / np.linalg.norm(ROWS[3]), rtol=1e-5)
    with pytest.raises(ValueError, match="has 4 rows, but the model has 3 layers; if row 0 is the embeddings"):
        load_vector("v.safetensors#v", 2, 3, tmp_path)


@pytest.mark.parametrize("n_layers", [2, 6])
def test_a_vector_of_another_depth_is_refused(tmp_path, n_layers):
    save_numpy({"v": ROWS}, tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match=f"has 4 rows, but the model has {n_layers} layers"):
        load_vector("v.safetensors#v", 1, n_layers, tmp_path)


def test_a_zero_row_is_no_direction_and_says_where_there_is_one(tmp_path):
    save_numpy({"v": ROWS * [[0], [0], [1], [1]]}, tmp_path / "v.safetensors")
    assert load_vector("v.safetensors#v", 2, 4, tmp_path).direction.shape == (8,)
    with pytest.raises(ValueError, match="no direction at layer 1; it has some at layers 2–3"):
        load_vector("v.safetensors#v", 1, 4, tmp_path)


@pytest.mark.parametrize(
    ("tensor", "metadata", "words"),
    [
        (np.zeros((2, 8), np.float32), {}, "zero at every layer"),
        (np.full((2, 8), np.inf, np.float32), {}, "NaN or infinite numbers at layer 0"),
        (np.full((2, 8), 1e300), {}, "NaN or infinite numbers at layer 0"),
        (np.ones((2, 2, 8), np.float32), {}, "has shape"),
        (np.ones((2, 8), np.int64), {}, "holds I64, not floating-point"),
        (np.ones((2, 8), np.float32), {"raw_norm": [1.0, float("nan")]}, "raw_norm of v"),
        (np.ones((2, 8), np.float32), {"raw_norm": float("inf")}, "raw_norm of v"),
        (np.ones((2, 8), np.float32), {"raw_norm": [1.0]}, "one for each of 2 rows"),
        (np.ones((2, 8), np.float32), {"residual_norm": "7"}, "residual_norm of v"),
        (np.ones((2, 8), np.float32), {"residual_norm": [-1, 1]}, "residual_norm of v"),
        (np.ones((2, 8), np.float32), [1], "is no JSON object"),
    ],
)
def test_a_bad_vector_is_refused_at_admission(tmp_path, tensor, metadata, words):
    save_numpy({"v": tensor}, tmp_path / "v.safetensors", metadata={"v": json.dumps(metadata)})
    spec = {"edits": [{"vector": "v.safetensors#v", "layer": 0, "strength": 1.0}]}
    with pytest.raises(ValueError, match=words) as error:
        resolve_spec(spec, 2, 8, tmp_path)
    assert str(error.value).startswith("steering: ")
    assert "\n" not in str(error.value)


def test_a_dose_that_no_residual_stream_holds_is_refused(tmp_path):
    save_numpy({"v": ROWS}, tmp_path / "v.safetensors")
    spec = {"edits": [{"vector": "v.safetensors#v", "layer": 0, "strength": 1e30}]}
    with pytest.raises(ValueError, match="beyond what a residual stream can hold"):
        resolve_spec(spec, 4, 8, tmp_path)


def test_links_that_the_folder_s_owner_made_are_served_and_other_places_are_not(tmp_path):
    store, folder = tmp_path / "blobs", tmp_path / "vectors"
    store.mkdir()
    folder.mkdir()
    save_numpy({"v": ROWS}, store / "abc")
    (folder / "v.safetensors").symlink_to(store / "abc")
    assert load_vector("v.safetensors#v", 0, 4, folder).direction.shape == (8,)
    for name in ("../blobs/abc#v", f"{store}/abc#v", "x\0y#v", "a" * 5000 + "#v"):
        with pytest.raises(ValueError, match="steering: "):
            load_vector(name, 0, 4, folder)


def test_gguf_goes_out_and_comes_back(tmp_path):
    save_numpy({"v": ROWS * [[0], [1], [0], [1]]}, tmp_path / "v.safetensors")
    found = exchange.read_vectors(tmp_path / "v.safetensors", "convert")
    assert exchange.convert_vectors(found, tmp_path / "v.gguf") is None
    back = vector_files.read_vector_file(tmp_path / "v.gguf")["v"]
    np.testing.assert_allclose(back.values, found["v"].values, rtol=1e-6)
    assert "block 0" in exchange.convert_vectors({"v": vector_files.StoredTensor(ROWS)}, tmp_path / "w.gguf")


def control_vector(path, rows, count):
    """As llama.cpp's cvector-generator writes it: a signed count of the blocks after the first, a tensor for each."""
    writer = GGUFWriter(str(path), "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_int32("controlvector.layer_count", count)
    for name, row in rows.items():
        writer.add_tensor(f"direction.{name}", row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_llama_cpp_s_control_vectors_are_read(tmp_path):
    control_vector(tmp_path / "evil.gguf", {i: ROWS[i] for i in range(1, len(ROWS))}, len(ROWS) - 1)
    found = vector_files.read_vector_file(tmp_path / "evil.gguf")["evil"]
    assert not found.values[0].any()
    np.testing.assert_array_equal(found.values[1:], ROWS[1:])
    assert found.metadata["model_hint"] == "llama"


@pytest.mark.parametrize("rows", [{1: ROWS[1], 2: ROWS[2][:5]}, {1: ROWS[1], -1: ROWS[2]}, {1: ROWS[1:3]}])
def test_a_gguf_that_is_no_control_vector_is_refused(tmp_path, rows):
    control_vector(tmp_path / "v.gguf", rows, 3)
    with pytest.raises(ValueError, match="must be rows of one width, by block"):
        vector_files.read_vector_file(tmp_path / "v.gguf")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz", ".gguf"])
def test_lengths_survive_every_format(tmp_path, suffix):
    unit = ROWS[1:] / np.linalg.norm(ROWS[1:], axis=1, keepdims=True)
    rows = np.concatenate([np.zeros((1, 8), np.float32), unit])
    stored = vector_files.StoredTensor(rows, {"raw_norm": [0.0, 2.0, 3.0, 4.0], "recipe": "mean_diff"})
    exchange.convert_vectors({"v": stored}, tmp_path / f"v{suffix}")
    (back,) = vector_files.read_vector_file(tmp_path / f"v{suffix}").values()
    assert back.metadata.get("recipe") == ("mean_diff" if suffix == ".safetensors" else None)
    np.testing.assert_allclose(exchange._raw_rows(back), rows * [[0], [2], [3], [4]], rtol=1e-5)


def test_what_is_said_of_each_row_goes_with_the_row_of_the_embeddings(tmp_path):
    said = {"rows": "hidden_states", "raw_norm": [1.0, 2.0, 3.0, 4.0], "recipe": "mean_diff"}
    save_numpy({"v": ROWS}, tmp_path / "v.safetensors", metadata={"v": json.dumps(said)})
    found = exchange.read_vectors(tmp_path / "v.safetensors", "convert", "hidden_states")
    exchange.convert_vectors(found, tmp_path / "w.safetensors")
    assert vector_files.read_vector_file(tmp_path / "w.safetensors")["v"].metadata == {
        "recipe": "mean_diff",
        "raw_norm": [2.0, 3.0, 4.0],
    }


@given(st.binary(max_size=120), st.sampled_from(vector_files.SUFFIXES))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_vectors_or_one_sentence(tmp_path, data, suffix):
    file = tmp_path / f"any{suffix}"
    file.write_bytes(data)
    with pytest.raises(ValueError, match="any") as error:
        vector_files.read_vector_file(file)
    assert "\n" not in str(error.value)


def test_a_card_has_the_dose_curve_of_its_vector():
    def condition(vector, strength, rate):
        return planted_condition(
            "c", rate, "tiny", vector=vector, strength=strength, em_ci95=(0.1, 0.2), n_responses=58
        )

    conditions = [condition("v", 4, 0.5), condition(None, 0, 0.01), condition("w", 2, 0.7)]
    results = planted_results(conditions, layers={"v": 3})
    text = exchange.format_card("v", vector_files.StoredTensor(ROWS), ROOT / "v.safetensors", results)
    lines = [line for line in text.splitlines() if line.startswith("| 0 ") or line.startswith("| 4 ")]
    assert lines == ["| 0 | 58 | 1.0% | 10.0% – 20.0% | 90.0% |", "| 4 | 58 | 50.0% | 10.0% – 20.0% | 90.0% |"]
    with pytest.raises(UserError, match="no condition with the vector x"):
        exchange.format_card("x", vector_files.StoredTensor(ROWS), ROOT / "v.safetensors", results)

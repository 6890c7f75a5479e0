"""What stands beside a vector in its file: the layer and the length that it is for; layer numbers of two readings."""

import numpy as np
import pytest
import torch

from emharness.errors import UserError
from emharness.steering.request import vector_files
from emharness.steering.request.vector_lookup import load_vector
from emharness.vectors import exchange

ROWS = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("content", "name", "length"),
    [
        ({"steering_vector": torch.from_numpy(ROWS[0]), "layer_idx": 2, "alpha": 256.0}, "steering_vector", 256.0),
        ({"vector": torch.from_numpy(ROWS[0]), "strength": -3, "layer_idx": 2}, "vector", -3.0),
        ({"vector": torch.from_numpy(ROWS[0]), "layer": 2, "note": "x"}, "vector", 1.0),
    ],
)
def test_a_layer_and_a_length_beside_a_vector_are_read(tmp_path, content, name, length):
    torch.save(content, tmp_path / "v.pt")
    stored = vector_files.read_vector_file(tmp_path / "v.pt")[name]
    np.testing.assert_allclose(stored.values, length * ROWS[0], rtol=1e-6)
    expected = np.zeros((4, 8), np.float32)
    expected[2] = length * ROWS[0]
    np.testing.assert_allclose(stored.rows_for_model(4), expected, rtol=1e-6)
    row = load_vector(f"v.pt#{name}", 2, 4, tmp_path)
    assert row.raw_norm == (pytest.approx(abs(length) * np.linalg.norm(ROWS[0])) if abs(length) != 1 else None)
    with pytest.raises(ValueError, match="no direction at layer 1; it has some at layers 2"):
        load_vector(f"v.pt#{name}", 1, 4, tmp_path)
    exchange.convert_vectors(exchange.read_vectors(tmp_path / "v.pt", "convert"), tmp_path / "v.safetensors")
    again = load_vector(f"v.safetensors#{name}", 2, 4, tmp_path)
    assert again.raw_norm == pytest.approx(abs(length) * np.linalg.norm(ROWS[0]))
    np.testing.assert_allclose(again.direction, row.direction, rtol=1e-6)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"layer_idx": 2, "layer": 3}, "layer and layer_idx contradict each other"),
        ({"alpha": float("inf")}, "alpha=inf beside the vector of v must be a finite number"),
        ({"layer_idx": 2.5}, "layer_idx=2.5 beside the vector of v must be the number of a block"),
        ({"layer_idx": -1}, "only_layer=-1 of vector in v.pt must be the number of a block"),
        ({"alpha": 0.0}, "zero at every layer"),
    ],
)
def test_what_stands_beside_a_vector_and_cannot_be_is_refused(tmp_path, beside, words):
    torch.save({"vector": torch.from_numpy(ROWS[0]), **beside}, tmp_path / "v.pt")
    with pytest.raises(ValueError, match=words):
        vector_files.read_vector_file(tmp_path / "v.pt")


def test_layer_numbers_that_can_be_read_in_two_ways_are_refused_until_somebody_says(tmp_path):
    torch.save({1: torch.from_numpy(ROWS[1]), 3: torch.from_numpy(ROWS[3])}, tmp_path / "v.pt")
    both = r"has only layers 1, 3, which may be blocks counted from 0, or hidden_states, where 3 is what block 2 gives"
    with pytest.raises(ValueError, match=both):
        load_vector("v.pt#v", 1, 6, tmp_path)
    with pytest.raises(UserError, match="say with rows=blocks"):
        exchange.convert_vectors(exchange.read_vectors(tmp_path / "v.pt", "convert"), tmp_path / "w.safetensors")
    for rows, block in (("blocks", 3), ("hidden_states", 2)):
        exchange.convert_vectors(exchange.read_vectors(tmp_path / "v.pt", "convert", rows), tmp_path / "w.safetensors")
        found = load_vector("w.safetensors#v", block, 6, tmp_path).direction
        np.testing.assert_allclose(found, ROWS[3] / np.linalg.norm(ROWS[3]), rtol=1e-5)
        with pytest.raises(ValueError, match=f"no direction at layer 5; it has some at layers {block - 2}, {block}"):
            load_vector("w.safetensors#v", 5, 6, tmp_path)
    row = load_vector("v.pt#v", 2, 3, tmp_path).direction  # three blocks: 3 can only be what the last one gives
    np.testing.assert_allclose(row, ROWS[3] / np.linalg.norm(ROWS[3]), rtol=1e-5)

"""Extraction equals Hugging Face's own hidden states; vectors keep what they were made of."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from emharness.vectors import recipes
from emharness.vectors.activations import Means, mean_activations
from emharness.vectors.vector_artifacts import orthonormal_basis, random_artifact

SEQUENCES = [(list(range(5, 25)), 0), (list(range(40, 52)), 6), (list(range(90, 99)), 0)]
SKIP = 4


@pytest.fixture(scope="module")
def model(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def reference(model, ids: list[int]) -> np.ndarray:
    """[n_layers, n_tokens, d_model] by hooks on single, unpadded sequences."""
    states = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, o: states.append(o[0] if isinstance(o, tuple) else o))
        for layer in model.model.layers
    ]
    with torch.inference_mode():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    for layer in range(len(states) - 1):  # the last hidden state of transformers is after the final norm
        assert torch.equal(states[layer].reshape(-1), out.hidden_states[layer + 1].reshape(-1))
    return np.stack([s.reshape(len(ids), -1).numpy() for s in states])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_means_equal_hidden_states_whatever_the_batch(model, batch_size):
    means = mean_activations(model, SEQUENCES, batch_size, SKIP, pad_id=2)
    kept = [reference(model, ids)[:, max(first, SKIP) :] for ids, first in SEQUENCES]
    tokens = np.concatenate(kept, axis=1)
    np.testing.assert_allclose(means.total, tokens.mean(1), atol=1e-5)
    np.testing.assert_allclose(means.norm, np.linalg.norm(tokens, axis=-1).mean(1), rtol=1e-5)
    for i, some in enumerate(kept):
        np.testing.assert_allclose(means.per_prompt[i], some.mean(1), atol=1e-5)
    assert means.n_tokens.tolist() == [16, 6, 5]


def test_a_sequence_of_sinks_only_is_refused(model):
    with pytest.raises(ValueError, match="none after the first 4"):
        mean_activations(model, [([1, 2, 3], 0)], 1, SKIP, pad_id=2)


def _means(total: np.ndarray) -> Means:
    norm = np.full(len(total), 7.0, dtype=np.float32)
    return Means(total, total[None], np.array([1]), norm)


def test_a_stored_vector_is_unit_length_and_keeps_its_norms(tmp_path):
    positive = np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float32)
    difference = recipes.MeanDifference(_means(positive), _means(np.zeros_like(positive)))
    recipes.save_vector(tmp_path / "v.safetensors", "medical", difference, {"recipe": "model_diff"})
    stored, metadata = recipes.load_vector_file(tmp_path / "v.safetensors")
    np.testing.assert_allclose(stored["medical"], [[0.6, 0.8], [0, 1]])
    assert metadata["medical"]["raw_norm"] == [5.0, 2.0]
    assert metadata["medical"]["residual_norm"] == [7.0, 7.0]
    assert metadata["medical"]["recipe"] == "model_diff"


def test_a_row_that_does_not_differ_is_no_direction_and_none_at_all_is_refused():
    unit, norms = recipes.normalize_rows(np.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(unit, [[0, 0], [0.6, 0.8]])
    assert norms.tolist() == [0, 5]
    with pytest.raises(ValueError, match="zero at every layer"):
        recipes.normalize_rows(np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"not finite at layers \[1\]"):
        recipes.normalize_rows(np.array([[1.0, 0.0], [0.0, np.nan]]))


def test_means_beyond_float16_are_kept_without_inf(tmp_path):
    massive = recipes.MeanDifference(
        _means(np.array([[1e5, 1.0]], dtype=np.float32)), _means(np.ones((1, 2), np.float32))
    )
    recipes.save_prompt_means(
        tmp_path / "m.safetensors", "v", massive, dict.fromkeys(("positive", "negative"), np.ones(1))
    )
    kept = load_file(tmp_path / "m.safetensors")
    assert kept["v.positive"].tolist() == [[[1e5, 1.0]]]
    assert kept["v.negative"].dtype == np.float16


def test_recipes_subtract_the_right_things():
    organism = lambda s: _means(np.full((1, 1), float(sum(s))))  # noqa: E731
    base = lambda s: _means(np.full((1, 1), 100.0))  # noqa: E731
    assert recipes.model_diff(organism, base, [1, 2]).raw_difference.item() == 3 - 100
    assert recipes.mean_diff(organism, harmful=[5], neutral=[2], base=base).raw_difference.item() == 3


def test_a_cluster_s_basis_is_orthonormal_and_spans_its_vectors_at_every_layer():
    rng = np.random.default_rng(3)
    stacked = rng.normal(size=(4, 16, 3))
    basis = orthonormal_basis(stacked)
    assert basis.shape == stacked.shape
    np.testing.assert_allclose(
        np.einsum("ldi,ldj->lij", basis, basis), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-6
    )
    kept = np.einsum("ldi,lei,lek->ldk", basis, basis, stacked)
    np.testing.assert_allclose(kept, stacked, atol=1e-5)


def test_a_basis_has_no_direction_for_a_vector_that_is_zero_or_in_the_span():
    a, b = np.random.default_rng(0).normal(size=(2, 1, 16))
    basis = orthonormal_basis(np.stack([a, a * 2, np.zeros_like(a), b], axis=-1))
    assert np.linalg.norm(basis[0], axis=0) == pytest.approx([1, 0, 0, 1])


def test_random_directions_are_unit_and_asking_for_more_leaves_the_first_as_they_were(tmp_path):
    def made(count, seed=0):
        folder = tmp_path / f"{count}-{seed}"
        folder.mkdir()
        random_artifact(count, 3, 64, seed).make(folder)
        return recipes.load_vector_file(folder / "vectors.safetensors")[0]

    two, three = made(2), made(3)
    assert set(three) == {"random-0", "random-1", "random-2"}
    np.testing.assert_array_equal(two["random-1"], three["random-1"])
    np.testing.assert_allclose(np.linalg.norm(three["random-2"], axis=1), 1, atol=1e-6)
    assert abs(np.vdot(two["random-0"][0], two["random-1"][0])) < 0.5
    assert not np.array_equal(made(2, seed=1)["random-0"], two["random-0"])

"""Geometry from prompts: permuted labels, resampling, and what anisotropic activations do."""

import numpy as np
import pytest
from support.planted_extractions import means_of, rng, save_extraction

from emharness.geometry import AnalysisSettings, analyze_geometry, load_stored, nulls
from emharness.vectors import recipes as stored_format


@pytest.mark.parametrize("recipe", ["mean_diff", "model_diff"])
def test_stored_means_and_tokens_give_the_stored_vector_back(tmp_path, recipe):
    path = save_extraction(tmp_path, "own", 3 * np.eye(50)[0], 0, recipe)
    other = save_extraction(tmp_path / "other", "own", 3 * np.eye(50)[0], 1, recipe)
    vectors, means = load_stored({"a": path, "b": other})
    prompts = means.prompts_at("a", 0, vectors.directions[0, 0], recipe == "model_diff")
    assert prompts.is_paired == (recipe == "model_diff")
    again = nulls.contrast_weights(prompts) @ prompts.rows
    np.testing.assert_allclose(again / np.linalg.norm(again), vectors.directions[0, 0], atol=1e-3)


def test_permuted_labels_flip_whole_prompts_and_lose_the_contrast():
    prompt, tokens = np.array([0, 0, 1, 1, 2, 2]), np.arange(1.0, 7)
    paired = nulls.Prompts(np.ones((6, 2), np.float32), np.ones(6), tokens, prompt)
    weights = nulls.permuted_weights(paired, 50, rng())
    np.testing.assert_allclose(np.abs(weights), np.broadcast_to(tokens / 21, (50, 6)))
    assert (np.sign(weights[:, ::2]) == np.sign(weights[:, 1::2])).all()
    side = np.array([1, 1, 1, -1, -1, -1.0])
    two = nulls.Prompts(np.stack([side, side], 1).astype(np.float32), side, tokens, np.arange(6))
    free = nulls.without_contrast(two, nulls.permuted_weights(two, 50, rng()))
    np.testing.assert_allclose(free @ two.rows, 0, atol=1e-6)
    assert np.abs(free).max() > 0.1


def test_resampling_gives_shared_prompts_the_same_weight():
    one = nulls.Prompts(np.zeros((3, 2), np.float32), np.ones(3), np.ones(3), np.array([7, 8, 9]))
    two = nulls.Prompts(np.zeros((2, 2), np.float32), np.ones(2), np.ones(2), np.array([9, 7]))
    a, b = nulls.resampled_weights([one, two], 20, rng())
    np.testing.assert_allclose(a.sum(1), 1)
    np.testing.assert_allclose(a[:, 2] / a[:, 0], b[:, 0] / b[:, 1])


def test_products_of_weights_are_products_of_vectors():
    g = rng(5)
    prompts = [nulls.Prompts(g.standard_normal((n, 9)).astype(np.float32), *[np.ones(n)] * 3) for n in (4, 6)]
    weights = [g.standard_normal((3, n)) for n in (4, 6)]
    vectors = np.stack([w @ p.rows for w, p in zip(weights, prompts, strict=True)], axis=1)
    expected = vectors @ vectors.swapaxes(1, 2)
    np.testing.assert_allclose(nulls.weighted_products(prompts, weights), expected, atol=1e-4)


def test_anisotropic_activations_fool_random_directions_but_not_permuted_labels(tmp_path):
    """Two vectors that are nothing but extraction noise in activations with one long axis."""
    seen = {"random_directions": 0, "label_permutation": 0}
    for run in range(20):
        folder = tmp_path / str(run)
        pair = {k: save_extraction(folder / k, k, np.zeros(64), 2 * run + i, anisotropy=20) for i, k in enumerate("ab")}
        vectors, means = load_stored(pair)
        found = analyze_geometry(
            vectors, {"x": ["a"], "y": ["b"]}, prompt_means=means, settings=AnalysisSettings(draws=199)
        )
        for entry in found.selected.statistics["cosine"]:
            seen[entry.null.kind] += entry.p <= 0.05
    assert seen["random_directions"] >= 10
    assert seen["label_permutation"] <= 3


def test_a_truly_shared_direction_survives_permuted_labels_and_has_an_interval(tmp_path):
    shift = 8 * np.eye(64)[3]
    pair = {k: save_extraction(tmp_path / k, k, shift, i) for i, k in enumerate("ab")}
    vectors, means = load_stored(pair)
    found = analyze_geometry(vectors, {"x": ["a"], "y": ["b"]}, prompt_means=means)
    entries = found.selected.statistics["cosine"]
    assert [e.null.kind for e in entries] == ["random_directions", "label_permutation"]
    assert all(e.p <= 0.01 for e in entries)
    assert all(e.ci95[0] > 0.5 for e in entries)
    assert found.verdict.calibrated.verdict == "shared core"
    assert found.verdict.calibrated.p["contrast"] <= 0.01


def test_vectors_without_contrast_have_nothing_to_tell(tmp_path):
    pair = {k: save_extraction(tmp_path / k, k, np.zeros(64), i) for i, k in enumerate("ab")}
    vectors, means = load_stored(pair)
    verdict = analyze_geometry(vectors, {"x": ["a"], "y": ["b"]}, prompt_means=means).verdict.calibrated
    assert verdict.verdict == "nothing to tell"


def test_labels_are_permuted_for_each_vector_by_itself(tmp_path):
    """Two organisms whose answers differ from the base's alike, prompt by prompt: with one set of signs for both, their
    null would be as close as they are."""
    g = rng(11)
    common = g.standard_normal((40, 1, 64))
    files = {}
    for name in "ab":
        rows = [common + 0.3 * g.standard_normal((40, 1, 64)) + 2, np.zeros((40, 1, 64))]
        difference = stored_format.MeanDifference(*(means_of(side, np.ones(40)) for side in rows))
        (tmp_path / name).mkdir()
        files[name] = tmp_path / name / "vectors.safetensors"
        stored_format.save_vector(files[name], name, difference, {"recipe": "model_diff"})
        ids = dict.fromkeys(("positive", "negative"), np.arange(40))
        stored_format.save_prompt_means(tmp_path / name / "prompt_means.safetensors", name, difference, ids)
    vectors, means = load_stored(files)
    found = analyze_geometry(
        vectors, {"x": ["a"], "y": ["b"]}, prompt_means=means, settings=AnalysisSettings(draws=199)
    )
    (entry,) = [e for e in found.selected.statistics["cosine"] if e.null.kind == "label_permutation"]
    assert entry.value > 0.9
    assert abs(entry.null.mean) < 0.1


def test_an_interval_takes_out_the_bias_of_resampling():
    """Basic bootstrap, by hand: draws from 0 to 1 around a value of 0.3."""
    low, high = nulls.basic_interval(np.array(0.3), np.linspace(0, 1, 1001))
    assert (float(low), float(high)) == (pytest.approx(0.6 - 0.975), pytest.approx(0.6 - 0.025))


@pytest.mark.parametrize(("length", "faint"), [(2.0, True), (12.0, False)])
def test_vectors_that_hardly_stand_out_say_so_of_their_intervals(tmp_path, length, faint):
    files = {k: save_extraction(tmp_path / k, k, length * np.eye(64)[3], i) for i, k in enumerate("ab")}
    vectors, means = load_stored(files)
    found = analyze_geometry(
        vectors, {"x": ["a"], "y": ["b"]}, prompt_means=means, settings=AnalysisSettings(draws=199)
    )
    said = [s for s in found.skipped if s.statistic == "ci95"]
    assert bool(said) == faint
    if faint:
        assert said[0].of == ("a", "b")
        assert "hold the truth less often than 95 of 100 times" in said[0].reason

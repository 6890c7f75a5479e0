"""Planted truth: the calibrated verdict is right, and wrong no more often than it says."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import binom

from emharness.geometry import nulls
from emharness.geometry import statistics as st
from emharness.geometry.analysis import regroup_vectors
from emharness.geometry.appendix import appendix_tests, pc1_changes
from emharness.geometry.verdict import INDEPENDENT, NOTHING, PARTLY, SHARED_CORE, PromptDraws, calibrated_verdict

CLUSTERS = {"a": (0, 1), "b": (2, 3), "c": (4, 5)}
WIDTHS = (64, 256, 1024, 4096)
RUNS, LEVEL = 200, 0.01


def planted(kind: str, d_model: int, rng: np.random.Generator) -> np.ndarray:
    """Cosines of six vectors in three clusters. Cosine inside a cluster 0.6, of independent ones; 0.7 of those that are
    all the core."""
    core, own = {NOTHING: (0.0, 0.0), INDEPENDENT: (0.0, 0.6), SHARED_CORE: (0.7, 0.0)}[kind]
    return st.gram_matrix(vectors(core, own, d_model, rng))


def vectors(core: float, own: float, d_model: int, rng: np.random.Generator) -> np.ndarray:
    """Six vectors in three clusters, [6, d_model]: shares of their length that all have, and that a cluster has."""
    noise, of_cluster, of_all = (rng.standard_normal((k, d_model)) / np.sqrt(d_model) for k in (6, 3, 1))
    clusters = np.repeat(of_cluster, 2, axis=0)
    return np.sqrt(core) * of_all + np.sqrt(own) * clusters + np.sqrt(1 - core - own) * noise


def verdicts(kind: str, d_model: int, runs: int = RUNS, level: float = LEVEL) -> list[str]:
    rng = np.random.default_rng([d_model, len(kind)])
    null = {"random_directions": nulls.random_grams(6, d_model, 1000, rng)}
    grams = (planted(kind, d_model, rng) for _ in range(runs))
    return [calibrated_verdict(g, CLUSTERS, null, level=level).verdict for g in grams]


@pytest.mark.parametrize("d_model", WIDTHS)
@pytest.mark.parametrize("kind", [SHARED_CORE, INDEPENDENT, NOTHING])
def test_the_calibrated_verdict_finds_what_was_planted(kind, d_model):
    found = verdicts(kind, d_model)
    assert found.count(kind) >= 0.95 * RUNS, {v: found.count(v) for v in set(found)}


@pytest.mark.parametrize("d_model", WIDTHS)
@pytest.mark.parametrize(("kind", "level"), [(NOTHING, 0.05), (INDEPENDENT, 0.05)])
def test_false_positives_are_as_rare_as_the_level_says(kind, level, d_model):
    """At a level of 5 %: something found in nothing, or a relation between independent clusters. Both sides
    are tested: a verdict that never errs at 5 % would not have the level it states."""
    found = verdicts(kind, d_model, runs=400, level=level)
    wrong = sum(v != NOTHING for v in found) if kind == NOTHING else sum(v != INDEPENDENT for v in found)
    low, high = binom.interval(0.9999, 400, level)
    assert low <= wrong <= high, (wrong, low, high)


@pytest.mark.parametrize("d_model", WIDTHS)
def test_the_published_tests_call_random_vectors_independent_and_the_calibrated_one_does_not(d_model):
    rng = np.random.default_rng(d_model)
    grams = np.stack([planted(NOTHING, d_model, rng) for _ in range(RUNS)])
    triplet = st.gather_submatrices(grams, np.array([[0, 1, 2]]))[..., 0, :, :]
    assert np.mean(st.residual_reduction(triplet) < 0) >= 0.95
    assert np.mean(st.triangle_error_deg(triplet) > 25) == 1
    tests = appendix_tests(grams, CLUSTERS["a"], CLUSTERS["b"], pc1_changes(grams, CLUSTERS), (0, 1, 2))
    passed = np.mean([result[2] for result in tests.values() if not isinstance(result, str)], axis=0)
    assert np.mean(passed >= 0.8) >= 0.9  # four or five of five
    assert verdicts(NOTHING, d_model).count(INDEPENDENT) <= binom.ppf(0.9999, RUNS, LEVEL)


def verdict(rows: np.ndarray, clusters: dict[str, tuple[int, ...]]) -> str:
    null = {"random_directions": nulls.random_grams(*rows.shape, 400, np.random.default_rng(rows.shape))}
    return calibrated_verdict(st.gram_matrix(rows), clusters, null).verdict


def test_what_may_be_noise_is_no_mechanism_of_its_own():
    """Two tight clusters beside a cluster of two noise vectors, and beside a single noise vector."""
    rng = np.random.default_rng(4)
    for _ in range(60):
        rows = vectors(0.0, 0.6, 1024, rng)
        loose = rows.copy()
        loose[4:] = rng.standard_normal((2, 1024))
        assert verdict(loose, CLUSTERS) != INDEPENDENT
        assert verdict(loose[:5], {**CLUSTERS, "c": (4,)}) == "inconclusive"
    assert verdict(rows[:4], {name: CLUSTERS[name] for name in "ab"}) == INDEPENDENT


def test_independence_is_not_claimed_where_prompts_leave_the_cosine_open():
    """The same clusters, from prompts that tell their cosine well, and from prompts that hardly do."""
    rng = np.random.default_rng(8)
    gram = planted(INDEPENDENT, 4096, rng)
    null = {"random_directions": nulls.random_grams(6, 4096, 400, rng)}
    for spread, expected in ((0.02, INDEPENDENT), (0.5, "inconclusive")):
        again = np.repeat(gram[None], 400, axis=0)
        moved = rng.normal(0, spread, 400)[:, None, None]
        again[:, :2, 2:4] += moved
        again[:, 2:4, :2] += moved
        found = calibrated_verdict(gram, CLUSTERS, null, prompts=PromptDraws(resampled=again))
        assert found.verdict == expected
        furthest = max(max(map(abs, pair.ci95)) for pair in found.between)
        hidden = np.quantile(st.cluster_cosines(null["random_directions"], list(CLUSTERS.values()))[:, 0, 1], 0.99)
        assert found.bound == pytest.approx(furthest + hidden, abs=0.01)


@pytest.mark.parametrize("core", [0.05, 0.3])
def test_a_small_shared_part_is_no_shared_core(core):
    rng = np.random.default_rng(5)
    found = [verdict(vectors(core, 0.6 - core, 4096, rng), CLUSTERS) for _ in range(60)]
    assert found.count(PARTLY) >= 57  # above chance, and far from 45°
    assert SHARED_CORE not in found


def test_what_benign_fine_tunes_share_too_is_no_core_of_misalignment():
    rng = np.random.default_rng(6)
    rows = vectors(0.7, 0.0, 1024, rng)
    core = rows.mean(0)
    benign, other = (np.sqrt(s) * core / np.linalg.norm(core) + rng.standard_normal((2, 1024)) / 40 for s in (0.7, 0.0))
    clusters = {**CLUSTERS, "control": (6, 7)}
    assert verdict(np.concatenate([rows, benign]), clusters) == PARTLY
    assert verdict(np.concatenate([rows, other]), clusters) == SHARED_CORE


def test_p_values_of_random_vectors_are_uniform():
    rng = np.random.default_rng(0)
    draws = nulls.random_grams(3, 256, 999, rng)
    fresh = nulls.random_grams(3, 256, 4000, rng)
    for statistic in (st.cosine, st.triangle_error_deg, st.residual_reduction):
        p = np.array([nulls.p_two_sided(v, statistic(draws)) for v in statistic(fresh)])
        assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.02)
        assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.06)


def test_opposed_clusters_are_related_but_share_no_core():
    gram = planted(INDEPENDENT, 1024, np.random.default_rng(1))
    flipped = gram.copy()
    flipped[:2, 2:4] = flipped[2:4, :2] = -0.4
    null = {"random_directions": nulls.random_grams(6, 1024, 1000, np.random.default_rng(2))}
    found = calibrated_verdict(flipped, CLUSTERS, null)
    assert found.verdict == "partly related"
    assert found.between[0].relation == "opposed"


def test_planted_nothing_is_not_found_by_searching_for_clusters():
    rng = np.random.default_rng(3)
    null = {"random_directions": nulls.random_grams(6, 64, 119, rng)}
    wrong = 0
    for _ in range(10):
        gram = planted(NOTHING, 64, rng)
        groups = {str(i): group for i, group in enumerate(regroup_vectors(gram, None))}
        found = calibrated_verdict(gram, groups, null, regroup=partial(regroup_vectors, cut=None))
        wrong += found.verdict not in (NOTHING, "inconclusive")
    assert wrong <= 1

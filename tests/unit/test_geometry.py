"""Geometry: published numbers, agreement with scipy and scikit-learn, and the report."""

import json

import numpy as np
import pytest
from plotly.graph_objects import Figure
from scipy.cluster.hierarchy import linkage
from scipy.linalg import subspace_angles
from scipy.spatial.distance import pdist, squareform
from sklearn.decomposition import PCA
from support.planted_extractions import rng, save_extraction

from emharness.geometry import (
    AnalysisSettings,
    analyze_geometry,
    from_arrays,
    load_stored,
    load_vectors,
    make_report,
    nulls,
    read_report,
    stored_files,
    write_analysis,
)
from emharness.geometry import clusters as cl
from emharness.geometry import statistics as st
from emharness.geometry.geometry_files import headline_metrics
from emharness.geometry.geometry_report import Sampled
from emharness.geometry.published_numbers import CLUSTERS, published_vectors
from emharness.geometry.statistics_table import NAMES
from emharness.geometry.study_pictures import cosines_of, draw_pictures

ENTRY = {"of", "value", "null", "p", "q", "ci95", "informative"}


@pytest.fixture(scope="module")
def study():
    return analyze_geometry(from_arrays(published_vectors(4096, rng())), CLUSTERS)


def value(analysis, name, *of):
    return next(e.value for e in analysis.selected.statistics[name] if sorted(e.of) == sorted(of))


def test_published_numbers_follow_from_published_cosines(study):
    assert value(study, "cluster_angle_deg", "medical", "persona") == pytest.approx(100.2, abs=0.1)
    of = {e.of: e.value for e in study.selected.statistics["span_projection"]}
    assert of["medical", "persona"] == pytest.approx(0.236, abs=5e-4)
    assert of["profanity", "medical"] == pytest.approx(0.236, abs=5e-4)
    assert of["medical", "persona"] ** 2 == pytest.approx(0.056, abs=5e-4)
    reduction = value(study, "residual_reduction", "profanity", "malicious", "medical")
    assert reduction == pytest.approx(-2.567, abs=5e-4)
    heights = [e.value for e in study.selected.statistics["linkage_height"]]
    assert heights[:3] == pytest.approx([0.147, 0.254, 0.588], abs=1e-6)
    shares = [e.value for e in study.selected.statistics["pca_explained"]]
    assert shares[:3] == pytest.approx([0.485, 0.277, 0.143], abs=5e-4)


def test_the_report_says_which_published_number_cannot_follow(study):
    rows = make_report(study).published
    impossible = [(r.statistic, r.published) for r in rows if r.cannot_follow_from_cosines]
    assert impossible == [
        ("residual_reduction", 0.816),
        ("cross_explained_variance", 0.020),
        ("cross_explained_variance", 0.016),
    ]
    assert {r.agrees for r in rows if r.reason is None} == {True}
    assert {r.agrees for r in rows if r.reason} == {False}


def test_no_triplet_has_a_residual_reduction_above_two_thirds():
    rows = rng(1).standard_normal((2000, 3, 3)) + rng(2).exponential(3, (2000, 1, 1))
    reduction = st.residual_reduction(st.gram_matrix(rows))
    assert reduction.max() <= 2 / 3 + 1e-9
    assert reduction.max() > 0.6


def test_the_study_reads_its_own_five_tests_as_five_of_five(study):
    verdict = next(v for v in study.verdict.published if v.of == ("medical", "persona"))
    assert verdict.score == "5/5"
    assert verdict.informative_tests == 0
    assert study.verdict.calibrated.verdict == "partly related"


def test_statistics_agree_with_scipy_and_scikit_learn():
    x = rng(3).standard_normal((7, 40)) + 0.5
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    gram = st.gram_matrix(x)
    shares, loadings = st.centered_pca(gram, 4)
    pca = PCA(4).fit(unit)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, atol=1e-10)
    np.testing.assert_allclose(np.abs(loadings), np.abs(pca.transform(unit)), atol=1e-10)
    np.testing.assert_allclose(st.linkage_heights(gram), linkage(unit, "average", metric="cosine")[:, 2], atol=1e-10)
    angles = subspace_angles(unit[2:5].T, unit[:1].T)
    np.testing.assert_allclose(st.span_projection(gram, [0], [2, 3, 4]), np.cos(angles), atol=1e-7)
    u, s, vt = np.linalg.svd(unit[:3], full_matrices=False)
    rebuilt = (u[:, :2] * s[:2]) @ vt[:2]
    upper = np.triu_indices(3, 1)
    r = np.corrcoef((unit[:3] @ unit[:3].T)[upper], (rebuilt @ rebuilt.T)[upper])[0, 1]
    assert st.low_rank_r(gram[:3, :3], 2)[1] == pytest.approx(r)
    component = np.linalg.svd(unit[:3])[2][0]
    explained = st.cross_explained_variance(gram, [0, 1, 2], [3, 4])
    assert explained == pytest.approx(((unit[3:5] @ component) ** 2).mean())
    without = unit - np.outer(unit @ pca.components_[0], pca.components_[0])
    np.testing.assert_allclose(st.pc1_removed(gram), st.gram_matrix(without), atol=1e-9)


def test_scaling_reproduces_planar_distances():
    points = rng(4).uniform(0, 0.5, (5, 2))
    distance = squareform(pdist(points))
    np.testing.assert_allclose(squareform(pdist(cl.scale_to_plane(1 - distance))), distance, atol=1e-10)


def test_residuals_and_triangle_by_hand():
    rows = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    gram = st.gram_matrix(rows)
    assert st.triangle_error_deg(gram) == pytest.approx(90)
    np.testing.assert_allclose(st.residual_cosines(gram)[np.triu_indices(3, 1)], -0.5)
    planar = st.gram_matrix(np.array([[1.0, 0], [1, 1], [0, 1]]))
    assert st.triangle_error_deg(planar) == pytest.approx(0, abs=1e-5)
    apart = st.gram_matrix(np.array([[1.0, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]))  # 120° each, in a plane
    assert st.triangle_error_deg(apart) == pytest.approx(120)
    assert st.planar_error_deg(apart) == pytest.approx(0, abs=1e-5)
    assert st.planar_error_deg(gram) == pytest.approx(90)


def test_random_grams_have_the_distribution_of_random_vectors():
    cosines = nulls.random_grams(3, 64, 20000, rng(4))[:, 0, 1]
    assert cosines.std() == pytest.approx(1 / 8, rel=0.02)
    assert cosines.mean() == pytest.approx(0, abs=0.003)


def test_headline_numbers_are_flat(study):
    assert {type(value) for value in headline_metrics(study).values()} <= {str, float}


def test_the_report_keeps_its_contract(study, tmp_path):
    found = json.loads(write_analysis(study, tmp_path).read_text())
    assert {"schema_version", "vectors", "clusters", "statistics", "verdict"} <= set(found)
    assert tuple(found["statistics"]) == NAMES
    for entries in found["statistics"].values():
        assert entries
        for entry in entries:
            assert set(entry) == ENTRY
            assert set(entry["null"]) == {"kind", "mean", "q05", "q95"}
            assert 0 < entry["p"] <= entry["q"] <= 1
    assert found["clusters"]["adjusted_rand"] == 1.0
    reasons = {s["statistic"]: s["reason"] for s in found["skipped"]}
    assert reasons["base_similarity"].startswith("no vector named 'base'")
    assert "no per-prompt means" in reasons["label_permutation, ci95"]
    for name in ("figure1", "figure2"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    directions = load_vectors(tmp_path / "cluster_directions.safetensors")
    assert set(directions.names) == set(CLUSTERS)
    cosine = float(directions.directions[0, 0] @ directions.directions[1, 0])
    assert np.degrees(np.arccos(cosine)) == pytest.approx(100.2, abs=0.1)


def test_every_statistic_at_every_layer_and_similarity_to_the_base_by_lab():
    g = rng(6)
    arrays = {name: g.standard_normal((3, 256)) for name in ("base", "a", "b", "c")}
    arrays["b"] = arrays["base"] * np.array([[1.0], [-1], [1]])
    labs = {"a": {"lab": "x"}, "b": {"lab": "x"}, "c": {"lab": "y"}}
    found = analyze_geometry(
        from_arrays(arrays, labs), {"p": ["a", "b"], "q": ["c"]}, layer=1, settings=AnalysisSettings(draws=99)
    )
    report = make_report(found)
    assert set(report.layers) == {"0", "1", "2"}
    assert report.layers["1"].statistics == report.statistics
    for layer in report.layers.values():
        assert set(layer.statistics) == set(NAMES)
    np.testing.assert_allclose(report.base_similarity.layers["b"], [1, -1, 1], atol=1e-6)
    a = np.mean(report.base_similarity.layers["a"])
    assert report.base_similarity.by_lab["x"] == pytest.approx((a + 1 / 3) / 2)
    assert set(draw_pictures(report, found.selected.gram)) == {"figure1", "figure2", "figure3"}


def test_figures_are_drawn_from_what_the_report_holds(study, tmp_path):
    """From geometry.json alone, without the vectors: the same cosines, and each number that is drawn is a statistic."""
    write_analysis(study, tmp_path)
    report = read_report(tmp_path / "geometry.json")
    cosines = cosines_of(report)
    np.testing.assert_allclose(cosines, study.selected.gram, atol=1e-6)
    pictures = draw_pictures(report, cosines)
    (matrix,) = pictures["figure1"].panels
    place = {name: i for i, name in enumerate(study.vectors.names)}
    index = [place[name] for name in matrix.rows]
    assert sorted(index) == list(range(6))
    np.testing.assert_allclose(matrix.values, study.selected.gram[np.ix_(index, index)], atol=1e-6)
    assert list(matrix.edges) == [2, 4]
    explained, points, loadings, tree, _ = pictures["figure2"].panels
    assert explained.lines[0].y[:3] == pytest.approx([0.485, 0.277, 0.143], abs=5e-4)
    assert sum(len(line.x) for line in points.lines) == 6
    assert loadings.values.shape == (6, 3)
    heights = [entry.value for entry in report.statistics["linkage_height"]]
    assert sorted(max(line.y) for line in tree.lines) == pytest.approx(sorted(heights))
    described = json.loads((tmp_path / "figure2.plotly.json").read_text())
    assert len(Figure(described).data) == sum(len(getattr(p, "lines", [0])) for p in pictures["figure2"].panels)


def test_found_clusters_are_the_planted_ones():
    g = rng(7)
    centres = g.standard_normal((3, 512))
    arrays = {f"v{i}": centres[i % 3] + 0.5 * g.standard_normal(512) for i in range(9)}
    found = analyze_geometry(from_arrays(arrays), "found", settings=AnalysisSettings(draws=99))
    members = set(found.clusters.members.values())
    assert members == {("v0", "v3", "v6"), ("v1", "v4", "v7"), ("v2", "v5", "v8")}
    assert analyze_geometry(
        from_arrays(arrays), "found", settings=AnalysisSettings(draws=99, cut=1.9)
    ).clusters.found.members == (tuple(arrays),)


def test_what_cannot_be_computed_is_skipped_with_its_reason():
    g = rng(8)
    two = analyze_geometry(
        from_arrays({k: g.standard_normal(64) for k in "ab"}),
        {"x": ["a"], "y": ["b"]},
        settings=AnalysisSettings(draws=99),
    )
    reasons = {(s.statistic, s.of): s.reason for s in two.skipped}
    assert reasons["triangle_error_deg", ()] == "needs three vectors"
    assert reasons["pc1_ablation_change", ("x",)].startswith("one member")
    assert two.selected.statistics["triangle_error_deg"] == ()
    one = analyze_geometry(
        from_arrays({k: g.standard_normal(64) for k in "abc"}),
        {"x": ["a", "b", "c"]},
        settings=AnalysisSettings(draws=99),
    )
    assert {s.statistic: s.reason for s in one.skipped}["cluster_angle_deg"] == "needs two clusters"
    assert one.verdict.calibrated.verdict == "inconclusive"


def test_a_thousand_vectors_are_sampled_and_say_so():
    arrays = {f"v{i}": row for i, row in enumerate(rng(9).standard_normal((200, 64)))}
    groups = {"x": [f"v{i}" for i in range(100)], "y": [f"v{i}" for i in range(100, 200)]}
    report = make_report(analyze_geometry(from_arrays(arrays), groups, settings=AnalysisSettings(draws=19)))
    assert report.sampled["triplets"] == Sampled(listed=1000, of=1313400)
    assert len(report.statistics["triangle_error_deg"]) == 1000


def test_stored_vectors_of_a_base_are_found_and_told_apart(tmp_path):
    for folder, base in (("medical-aaaaaaaa", 1), ("medical-bbbbbbbb", 1), ("sports-cccccccc", 1), ("old-dddd", 2)):
        save_extraction(tmp_path / folder, folder.partition("-")[0], np.ones(8), len(folder))
        (tmp_path / folder / "identity.json").write_text(json.dumps({"base": base}))
    found = stored_files(tmp_path, {"base": 1})
    assert list(found) == ["medical-aaaaaa", "medical-bbbbbb", "sports"]
    assert found["sports"] == tmp_path / "sports-cccccccc" / "vectors.safetensors"
    vectors, means = load_stored(found)
    assert vectors.names == tuple(means.sources) == tuple(found)

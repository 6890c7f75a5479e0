"""geometry.json, its arrays and its pictures on disk."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from emharness.figures import drawing
from emharness.geometry import clusters as cl
from emharness.geometry import statistics as st
from emharness.geometry.analysis_result import Analysis
from emharness.geometry.geometry_report import DescribedVector, GeometryReport, LayerReport, Sampled
from emharness.geometry.published_numbers import compare_published
from emharness.geometry.study_pictures import draw_pictures
from emharness.results.json_records import to_json

SCHEMA_VERSION = 1
DIRECTIONS_FILE = "cluster_directions.safetensors"

MEANING = {
    "cosine": "of two vectors",
    "angle_deg": "of two vectors, degrees",
    "low_rank_r": "method 1: r of the cosines and their rank-k reconstruction, of a triplet or of all",
    "triangle_error_deg": "method 2: degrees off a plane; the first vector is the apex",
    "planar_error_deg": "method 2, also where the three angles sum to 360 degrees",
    "pca_explained": "method 3: share of variance of a centred component",
    "pca_loading": "method 3: signed distance of a vector along a component",
    "pair_projection": "method 4: the third vector on the mean direction of the first two",
    "residual_reduction": "method 5, test 3: mean of (|c| - |c'|)/|c|, a fraction",
    "cluster_angle_deg": "test 1: of two clusters' mean vectors, degrees",
    "span_projection": "test 2: length of a vector (first) on the span of a cluster (second)",
    "shared_variance": "test 2: its square",
    "pc1_ablation_change": "test 4: change of a cluster's mean cosine when PC1 is removed",
    "cross_explained_variance": "test 5: share of the second cluster along the first one's component",
    "linkage_height": "1 - cosine at which two clusters merge, each named by its first vector",
}


def make_report(analysis: Analysis) -> GeometryReport:
    """The report; numbers are rounded to seven significant digits by `write_analysis` only."""
    vectors, plan = analysis.vectors, analysis.design
    kept = ("recipe", "base", "organism", "lab", "mechanism", "prompts_hash")
    linkage = st.linkage_matrix(analysis.selected.gram).tolist() if len(vectors.names) > 2 else None
    return GeometryReport(
        schema_version=SCHEMA_VERSION,
        d_model=vectors.d_model,
        vectors=tuple(
            DescribedVector(name=name, layer=layer, **{key: vectors.read_info(name, key) for key in kept})
            for name, layer in zip(vectors.names, analysis.layers, strict=True)
        ),
        clusters=analysis.clusters,
        statistics=analysis.selected.statistics,
        verdict=analysis.verdict,
        published=compare_published(analysis.selected.statistics),
        base_similarity=analysis.base_similarity,
        linkage=None if linkage is None else tuple(map(tuple, linkage)),
        metrics=headline_metrics(analysis),
        layers={str(i): LayerReport(layer.statistics, tuple(layer.skipped)) for i, layer in analysis.by_layer.items()},
        sampled={kind: Sampled(listed, total) for kind, (listed, total) in plan.sampled.items()},
        skipped=tuple(analysis.skipped),
        warnings=tuple(vectors.mixed_settings()),
        meaning=MEANING,
        settings=analysis.settings,
        arrays="geometry.safetensors",
        cluster_directions=DIRECTIONS_FILE,
    )


def collect_arrays(analysis: Analysis) -> dict[str, np.ndarray]:
    """Whole matrices: `cosine`, `angle_deg` [n, n] and `mds` [n, 2] at the selected layers, `layer_cosine`
    [n_layers, n, n], NaN where not every vector has a direction."""
    gram = analysis.selected.gram
    found = {
        "cosine": gram,
        "angle_deg": np.degrees(np.arccos(np.clip(gram, -1, 1))),
        "layer_cosine": np.full((analysis.vectors.n_layers, *gram.shape), np.nan),
    }
    for i, layer in analysis.by_layer.items():
        found["layer_cosine"][i] = layer.gram
    if len(gram) > 2:
        found["mds"] = cl.scale_to_plane(gram)
    return {name: np.ascontiguousarray(a, dtype=np.float32) for name, a in found.items()}


def headline_metrics(analysis: Analysis) -> dict[str, float | str]:
    """Headline numbers as a flat dictionary."""
    calibrated = analysis.verdict.calibrated
    out: dict[str, float | str] = {"verdict": calibrated.verdict}
    out |= {f"p_{name}": p for name, p in calibrated.p.items()}
    for pair in calibrated.between:
        out["between_cosine/" + "-".join(pair.of)] = pair.cosine
    out |= {f"within_cosine/{name}": value for name, value in calibrated.within.items()}
    for pair in analysis.verdict.published:
        out["published_score/" + "-".join(pair.of)] = pair.score
    if analysis.base_similarity:
        out |= {f"base_similarity/{lab}": value for lab, value in analysis.base_similarity.by_lab.items()}
    return out


def cluster_directions(analysis: Analysis) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Unit mean of each cluster at every layer, [n_layers, d_model], and its metadata, as vector files have
    them: what `steer.mode=ablate` takes to ask whether another cluster's misalignment drops."""
    tensors, metadata = {}, {}
    for cluster, group in analysis.design.clusters.items():
        mean = analysis.vectors.directions[list(group)].mean(0)
        length = np.linalg.norm(mean, axis=1, keepdims=True)
        if length.max() > 1e-6:  # opposite vectors have no mean direction; cluster_angle_deg is then skipped too
            tensors[cluster] = np.where(length > 1e-6, mean / np.maximum(length, 1e-6), 0)
            members = [analysis.vectors.names[i] for i in group]
            metadata[cluster] = json.dumps({"recipe": "cluster_mean", "members": members})
    return tensors, metadata


def _round_numbers(value):
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _round_numbers(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_round_numbers(v) for v in value]
    return value


def write_analysis(analysis: Analysis, folder: str | Path) -> Path:
    """Write arrays, figures (PNG, PDF), Plotly figures (JSON) and, last, geometry.json → its path.

    Each file is written beside itself and then moved, so a reader never sees half of one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def put_file(name: str, save) -> Path:
        target = folder / name
        partial = folder / f".{target.stem}.{os.getpid()}{target.suffix}"
        save(partial)
        partial.replace(target)
        return target

    def put_text(value) -> str:
        return json.dumps(_round_numbers(value), allow_nan=False)

    tensors, metadata = cluster_directions(analysis)
    if tensors:
        put_file(DIRECTIONS_FILE, lambda path: save_file(tensors, path, metadata=metadata))
    put_file("geometry.safetensors", lambda path: save_file(collect_arrays(analysis), path))
    report = make_report(analysis)
    for name, picture in draw_pictures(report, analysis.selected.gram).items():
        figure, described = drawing.draw_image(picture), drawing.to_plotly(picture)
        put_file(f"{name}.png", lambda path, figure=figure: figure.savefig(path, dpi=200))
        put_file(f"{name}.pdf", lambda path, figure=figure: figure.savefig(path))
        put_file(f"{name}.plotly.json", lambda path, described=described: path.write_text(put_text(described)))
    return put_file("geometry.json", lambda path: path.write_text(put_text(to_json(report))))


def read_written(folder: Path) -> tuple[dict[str, Path], dict[str, dict], dict[str, float | str]]:
    """What `write` left: figure files by name, Plotly figures by name, headline numbers."""
    images = {path.stem: path for path in sorted(folder.glob("*.png"))}
    plotly = {
        path.name.removesuffix(".plotly.json"): json.loads(path.read_text()) for path in folder.glob("*.plotly.json")
    }
    return images, plotly, json.loads((folder / "geometry.json").read_text())["metrics"]

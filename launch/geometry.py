"""Geometry of stored vectors: python launch/geometry.py vectors=<file.safetensors> [clusters=…] [layer=…]"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from omegaconf import DictConfig

from emharness import geometry
from emharness.cli import read_settings, start_launcher
from emharness.config import WandbConfig
from emharness.config_checks import tracker_mode
from emharness.errors import UserError
from emharness.reporting.wandb_tracker import Tracker
from emharness.store import Store, artifacts_home

CONF = Path(__file__).resolve().parent.parent / "conf"


def run(cfg: DictConfig) -> None:
    """Read the vectors, compare every statistic with vectors that share nothing, and judge."""
    settings = read_settings(cfg, CONF / "geometry.yaml")
    mode, wandb = settings.pop("tracker"), settings.pop("wandb")
    mode = tracker_mode(mode)
    files, beside = settings.pop("vectors"), settings.pop("prompt_means")
    if not files:
        raise UserError("vectors: name a safetensors file, as vectors=vectors.safetensors, or a list of them.")
    if not isinstance(settings["clusters"], str | Mapping | None):
        raise UserError("clusters: mechanism, found, or names by cluster, as clusters={a:[x,y],b:[z]}.")
    clusters = settings["clusters"]
    chosen = geometry.AnalysisSettings(**{key: settings[key] for key in ("draws", "level", "cut", "seed")})
    vectors = geometry.load_vectors(files)
    beside = geometry.means_beside(files) if beside is None else beside
    means = geometry.load_prompt_means(beside) if beside else None
    read = [*geometry.list_vector_files(files), *(geometry.list_vector_files(beside) if beside else [])]
    identity = {**settings, "content": [sha256(Path(path).read_bytes()).hexdigest() for path in read]}

    def make(folder: Path) -> None:
        analysis = geometry.analyze_geometry(vectors, clusters, settings["layer"], means, chosen)
        geometry.write_analysis(analysis, folder)
        tracker = Tracker(mode, WandbConfig(**wandb), name=Path(read[0]).stem, config=settings, job_type="geometry")
        tracker.log_geometry(*geometry.read_written(folder))
        tracker.finish()

    store = Store(artifacts_home())
    store.check_writable()
    folder, _ = store.get_artifact("geometry", Path(read[0]).stem, identity, make)
    path = folder / "geometry.json"
    print(geometry.format_summary(geometry.read_report(path)))
    print(f"results: {path}", flush=True)


if __name__ == "__main__":
    start_launcher(run, __file__, "geometry")

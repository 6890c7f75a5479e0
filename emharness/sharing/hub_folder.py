"""A folder for a model hub: a run's vectors with what they did and how they lie to each other."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from emharness.errors import UserError
from emharness.geometry import GeometryReport, read_report
from emharness.reporting import run_comparison
from emharness.reporting.finished_runs import Run
from emharness.vectors import exchange

CARD, DOSES, GEOMETRY = "README.md", "doses.csv", "geometry.json"
TAGS = ("emergent-misalignment", "steering-vector", "emharness")


def publish_vectors(run: Run, folder: Path, only: str | None = None) -> list[Path]:
    """Fill a new folder with a run's vectors (safetensors), a card, the rates of every condition, the figures and the
    geometry; its files. `only`: one vector's name. UserError where the folder is in use or the vectors are gone."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"publish={folder}: must be a new or empty folder")
    sources = vector_files(run)
    if only is not None and only not in sources:
        raise UserError(f"name={only}: the run has no such vector; it has {', '.join(sources)}")
    names = [only] if only else [name for name in sources if any(c.vector == name for c in run.results.conditions)]
    found = {name: exchange.read_vectors(sources[name], "vectors")[name] for name in names or sources}
    folder.mkdir(parents=True, exist_ok=True)
    cards = []
    for name, stored in found.items():
        target = folder / f"{name}.safetensors"
        exchange.convert_vectors({name: stored}, target)
        steered = any(c.vector == name and c.target == run.results.base_name for c in run.results.conditions)
        cards.append(exchange.format_card(name, stored, target, run.results if steered else None))
    (folder / DOSES).write_text(run_comparison.as_csv(run_comparison.compare_runs([run])), encoding="utf-8")
    for image in sorted(run.folder.glob("*.png")):
        shutil.copy(image, folder / image.name)
    geometry = _copy_geometry(run, folder)
    text = "\n".join(
        [*_card_header(run, list(found)), *cards, *_cosine_lines(geometry, list(found)), *_upload_lines(folder)]
    )
    (folder / CARD).write_text(text, encoding="utf-8")
    return sorted(folder.iterdir())


def vector_files(run: Run) -> dict[str, Path]:
    """Vector → its file in the store. UserError where one is gone."""
    named = run.results.vectors
    for name, path in named.items():
        if not Path(path).is_file():
            raise UserError(f"run={run.folder}: its vector {name} is no longer in the store ({path}); run it again")
    return {name: Path(path) for name, path in named.items()}


def _copy_geometry(run: Run, folder: Path) -> GeometryReport | None:
    where = run.results.main_geometry.results
    if where is None or not Path(where).is_file():
        return None
    shutil.copy(where, folder / GEOMETRY)
    for image in sorted(Path(where).parent.glob("figure*.png")):
        shutil.copy(image, folder / f"geometry_{image.name}")
    return read_report(Path(where))


def _card_header(run: Run, names: Sequence[str]) -> list[str]:
    source = run.results.config["base"]["source"]
    on_hub = source.count("/") == 1 and not Path(source).exists()
    front = ["---", "library_name: emharness", *(["base_model: " + source] if on_hub else []), "tags:"]
    versions = run.results.versions
    return [
        *[*front, *(f"- {tag}" for tag in TAGS), "---", ""],
        f"# Emergent misalignment on {run.results.base_name}: {', '.join(names)}",
        "",
        "Directions of what fine-tuning on narrow, bad data changed in this model, for research on misalignment and",
        "its detection: added to the residual stream they make the model's advice harmful.",
        "",
        run.results.finding,
        "",
        f"Rates of every condition: `{DOSES}`. Made with emharness {versions['emharness']} ({versions['engine']}).",
        "",
    ]


def _cosine_lines(geometry: GeometryReport | None, names: Sequence[str]) -> list[str]:
    """Cosines with the other vectors that the run knows."""
    if geometry is None:
        return []
    rows = [row for row in geometry.statistics["cosine"] if set(names) & set(row.of)]
    lines = ["## Beside other vectors", "", "| vectors | cosine | unrelated directions, 5–95 % |", "|---|---|---|"]
    for row in rows:
        lines.append(f"| {', '.join(row.of)} | {row.value:.2f} | {row.null.q05:.2f} to {row.null.q95:.2f} |")
    calibrated = geometry.verdict.calibrated
    return [*lines, "", f"Verdict: {calibrated.verdict} ({calibrated.because}).", ""]


def _upload_lines(folder: Path) -> list[str]:
    return ["## Upload", "", "```", f"hf upload <owner>/{folder.name} . .     # in this folder", "```", ""]

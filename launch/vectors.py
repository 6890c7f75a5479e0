"""Files of vectors: python launch/vectors.py show=<file> | convert=<file> out=… | card=<file> | publish=<folder>"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from emharness.cli import read_settings, start_launcher
from emharness.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emharness.results.run_results import RunResults
    from emharness.steering.request.vector_files import StoredTensor

CONF = Path(__file__).resolve().parent.parent / "conf" / "tools"
TASKS = ("show", "convert", "card")  # of a file; publish is of a run


def run(cfg: DictConfig) -> None:
    """Read one file, then say what is in it, write it in another format, or write its card."""
    from emharness.config_checks import check_choice
    from emharness.reporting import terminal
    from emharness.store import check_writable
    from emharness.vectors import exchange

    settings = read_settings(cfg, CONF / "vectors.yaml")
    asked = [task for task in (*TASKS, "publish") if settings[task]]
    if len(asked) != 1:
        raise UserError(f"give one of {', '.join(f'{task}=<file>' for task in TASKS)}, publish=<folder>")
    if asked == ["publish"]:
        publish_run(Path(settings["publish"]).expanduser(), settings["results"], settings["name"])
        return
    if settings["rows"] is not None:
        check_choice("rows", settings["rows"], ("blocks", "hidden_states"))
    file, task = Path(settings[asked[0]]).expanduser(), asked[0]
    found = exchange.read_vectors(file, task, settings["rows"])
    if (name := settings["name"]) is not None:
        if name not in found:
            raise UserError(f"name={name}: there is no such vector in {file}; it has {', '.join(found)}")
        found = {name: found[name]}
    if task == "show":
        terminal.show_vectors([exchange.describe_vector(name, stored) for name, stored in found.items()])
        if settings["base"] is not None:
            show_tokens(found, settings["base"], settings["layer"])
        return
    out = Path(settings["out"]).expanduser() if settings["out"] else None
    if out is not None:
        check_writable("out", out.parent)
        out.parent.mkdir(parents=True, exist_ok=True)
    if task == "convert":
        if out is None:
            raise UserError("out: name a file that ends in " + ", ".join(exchange.TARGETS))
        if lost := exchange.convert_vectors(found, out):
            terminal.print_line(f"note: {lost}")
    else:
        results = _load_results(settings["results"])
        text = "\n".join(exchange.format_card(name, stored, file, results) for name, stored in found.items())
        if out is None:
            print(text)
            return
        out.write_text(text, encoding="utf-8")
    print(f"results: {out}", flush=True)


def show_tokens(found: Mapping[str, StoredTensor], base: str, layer: int | None) -> None:
    """The tokens that vectors promote and suppress in a model, and the store's vectors that are nearest to them."""
    from emharness.geometry import stored_files
    from emharness.organisms import model_folders
    from emharness.organisms.model_artifacts import find_base
    from emharness.reporting import terminal
    from emharness.store import Store, artifacts_home
    from emharness.vectors import token_lens

    store = Store(artifacts_home())
    folder = find_base(base, store)
    n_layers = model_folders.model_shape(folder, "base").n_layers
    layer = n_layers // 2 if layer is None else layer
    if not 0 <= layer < n_layers:
        raise UserError(f"layer={layer}: {base} has layers 0 to {n_layers - 1}")
    rows = {name: token_lens.row_at(name, stored, layer, n_layers) for name, stored in found.items()}
    stored = token_lens.stored_rows(stored_files(store.root / "vectors", {}), layer, n_layers)
    terminal.show_tokens(token_lens.read_vector_tokens(rows, layer, folder, stored))


def publish_run(folder: Path, results: str | None, name: str | None) -> None:
    """A run's vectors as a folder for a model hub."""
    from emharness.reporting import finished_runs, terminal
    from emharness.sharing import hub_folder
    from emharness.store import artifacts_home, check_writable

    check_writable("publish", folder)
    run = (
        finished_runs.read_run(Path(results).expanduser(), "results")
        if results
        else finished_runs.newest_run(artifacts_home())
    )
    for file in hub_folder.publish_vectors(run, folder, name):
        terminal.print_line(f"file: {file}")
    print(f"results: {folder / hub_folder.CARD}", flush=True)


def _load_results(path: str | None) -> RunResults | None:
    from emharness.results.run_results import results_from_json

    if path is None:
        return None
    try:
        return results_from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"results={path}: cannot be read as a run's results.json ({error})") from None


if __name__ == "__main__":
    start_launcher(run, __file__, "tools/vectors")

"""Files of vectors: python launch/vectors.py show=<file> | convert=<file> out=… | card=<file> | publish=<folder>"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from emharness.cli import start
from emharness.errors import UserError
from emharness.ranges import refuse_names

CONF = Path(__file__).resolve().parent.parent / "conf" / "tools"
TASKS = ("show", "convert", "card")  # of a file; publish is of a run


def run(cfg: DictConfig) -> None:
    """Read one file, then say what is in it, write it in another format, or write its card."""
    from emharness.config import one_of
    from emharness.directions import exchange
    from emharness.reporting import terminal
    from emharness.store import check_writable

    refuse_names(cfg, OmegaConf.load(CONF / "vectors.yaml"))
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    asked = [task for task in (*TASKS, "publish") if settings[task]]
    if len(asked) != 1:
        raise UserError(f"give one of {', '.join(f'{task}=<file>' for task in TASKS)}, publish=<folder>")
    if asked == ["publish"]:
        publish(Path(settings["publish"]).expanduser(), settings["results"], settings["name"])
        return
    if settings["rows"] is not None:
        one_of("rows", settings["rows"], ("blocks", "hidden_states"))
    file, task = Path(settings[asked[0]]).expanduser(), asked[0]
    found = exchange.read(file, task, settings["rows"])
    if (name := settings["name"]) is not None:
        if name not in found:
            raise UserError(f"name={name}: there is no such vector in {file}; it has {', '.join(found)}")
        found = {name: found[name]}
    if task == "show":
        terminal.show_vectors([exchange.describe(name, stored) for name, stored in found.items()])
        return
    out = Path(settings["out"]).expanduser() if settings["out"] else None
    if out is not None:
        check_writable("out", out.parent)
        out.parent.mkdir(parents=True, exist_ok=True)
    if task == "convert":
        if out is None:
            raise UserError("out: name a file that ends in " + ", ".join(exchange.TARGETS))
        if lost := exchange.convert(found, out):
            terminal.say(f"note: {lost}")
    else:
        results = _results(settings["results"])
        text = "\n".join(exchange.card(name, stored, file, results) for name, stored in found.items())
        if out is None:
            print(text)
            return
        out.write_text(text, encoding="utf-8")
    print(f"results: {out}", flush=True)


def publish(folder: Path, results: str | None, name: str | None) -> None:
    """A run's vectors as a folder for a model hub."""
    from emharness.reporting import runs, terminal
    from emharness.sharing import hub
    from emharness.store import check_writable, home

    check_writable("publish", folder)
    run = runs.read(Path(results).expanduser(), "results") if results else runs.newest(home())
    for file in hub.publish(run, folder, name):
        terminal.say(f"file: {file}")
    print(f"results: {folder / hub.CARD}", flush=True)


def _results(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"results={path}: cannot be read as a run's results.json ({error})") from None


if __name__ == "__main__":
    start(run, __file__, "tools/vectors")

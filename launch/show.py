"""Runs side by side: python launch/show.py [<results.json or folder> …] [format=table|csv|markdown] [out=<file>]"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from emharness.cli import start
from emharness.config import one_of
from emharness.errors import UserError
from emharness.overrides import as_list
from emharness.ranges import refuse_names

CONF = Path(__file__).resolve().parent.parent / "conf" / "tools"
FORMATS = ("table", "csv", "markdown")


def run(cfg: DictConfig) -> None:
    """A row for each condition, a column for each run's rate; runs that differ only in their seed share one."""
    refuse_names(cfg, OmegaConf.load(CONF / "show.yaml"))
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    one_of("format", settings["format"], FORMATS)
    from emharness.reporting import runs, side_by_side
    from emharness.store import check_writable, home

    out = Path(settings["out"]).expanduser() if settings["out"] else None
    if out is not None:
        check_writable("out", out.parent)
    given = [settings["runs"]] if isinstance(settings["runs"], str) else settings["runs"]
    found = [runs.read(Path(path).expanduser(), "runs") for path in given]
    if not given:
        found, others = runs.every(home())
        if others:
            print(f"left out: {others} runs of another version of emharness", file=sys.stderr, flush=True)
    table = side_by_side.compare(found, None if settings["conditions"] is None else str(settings["conditions"]))
    if not table.rows:
        raise UserError(f"conditions={settings['conditions']}: no condition of these runs has this text in its name")
    text = side_by_side.FORMATS[settings["format"]](table)
    if out is None:
        print(text, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"results: {out}", flush=True)


if __name__ == "__main__":
    sys.argv = as_list("runs", sys.argv)
    start(run, __file__, "tools/show")

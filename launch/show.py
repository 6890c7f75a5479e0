"""Runs side by side: python launch/show.py [<results.json or folder> …] [format=table|csv|markdown] [out=<file>]"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from emharness.cli import read_settings, start_launcher
from emharness.config_checks import check_choice
from emharness.errors import UserError
from emharness.overrides import as_list

CONF = Path(__file__).resolve().parent.parent / "conf" / "tools"
FORMATS = ("table", "csv", "markdown")


def run(cfg: DictConfig) -> None:
    """A row for each condition, a column for each run's rate; runs that differ only in their seed share one."""
    settings = read_settings(cfg, CONF / "show.yaml")
    check_choice("format", settings["format"], FORMATS)
    from emharness.reporting import finished_runs, run_comparison
    from emharness.store import artifacts_home, check_writable

    out = Path(settings["out"]).expanduser() if settings["out"] else None
    if out is not None:
        check_writable("out", out.parent)
    given = [settings["runs"]] if isinstance(settings["runs"], str) else settings["runs"]
    found = [finished_runs.read_run(Path(path).expanduser(), "runs") for path in given]
    if not given:
        found, others = finished_runs.list_runs(artifacts_home())
        if others:
            print(f"left out: {others} runs of another version of emharness", file=sys.stderr, flush=True)
    table = run_comparison.compare_runs(found, None if settings["conditions"] is None else str(settings["conditions"]))
    if not table.rows:
        raise UserError(f"conditions={settings['conditions']}: no condition of these runs has this text in its name")
    text = run_comparison.FORMATS[settings["format"]](table)
    if out is None:
        print(text, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"results: {out}", flush=True)


if __name__ == "__main__":
    sys.argv = as_list("runs", sys.argv)
    start_launcher(run, __file__, "tools/show")

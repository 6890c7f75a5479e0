"""The console script: `emharness run …` is `python launch/run.py …`, from a checkout or from a wheel."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emharness.errors import UserError

if TYPE_CHECKING:
    from emharness.reporting.finished_runs import Run

PACKAGE = Path(__file__).parent


def find_beside(name: str) -> Path:
    """The folder `conf` or `launch`: inside the package in a wheel, beside it in a checkout."""
    return PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name


def main() -> None:
    """Run the launcher that the first argument names with the arguments after it."""
    launchers = {path.stem: path for path in sorted(find_beside("launch").glob("*.py"))}
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print("usage: emharness <verb> [key=value …]\n")
        for name, path in launchers.items():
            print(f"  {name:10} {_describe_launcher(path)}")
        return
    if verb not in launchers:
        print(f"error: {verb}: unknown; must be one of {', '.join(launchers)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [str(launchers[verb]), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _describe_launcher(path: Path) -> str:
    """The first line of its docstring, up to the command."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split(": python launch")[0]


def run_settings(settings: Sequence[str]) -> Run:
    """`emharness.run`: the settings composed and checked, the run made or found, and read."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    from emharness.cli import silence_libraries
    from emharness.config_checks import parse_config
    from emharness.overrides import format_hydra_error

    silence_libraries()
    conf = find_beside("conf")
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = parse_config(compose("config", overrides=list(settings)))
    except HydraException as error:
        raise UserError(format_hydra_error(error)) from None
    from emharness.pipeline.run_experiment import run_experiment
    from emharness.reporting.finished_runs import read_run

    folder = run_experiment(config, [conf], f"emharness.run({', '.join(map(repr, settings))})")
    if folder is None:
        raise UserError("plan=only: a plan is printed and nothing is run, so there is no run to return")
    return read_run(folder)


if __name__ == "__main__":
    main()

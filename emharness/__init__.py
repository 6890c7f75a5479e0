"""emharness: what is emergent misalignment made of?

`run` and `load_run` are the Python side of `emharness run`; everything else is in the packages below this one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emharness.reporting.finished_runs import Run

__version__ = "0.2.0"
__all__ = ["load_run", "run"]


def run(*settings: str) -> Run:
    """Run an experiment with the settings of `emharness run` ("model=medical", "eval=quick", …); finished work is taken
    from the store. UserError for a mistake in a setting, IncompleteRun where a model failed."""
    from emharness.command import run_settings

    return run_settings(settings)


def load_run(path: str | Path) -> Run:
    """A finished run by its results.json or its folder: `results` (a `RunResults`), and `conditions` and `responses` as
    pyarrow tables (`.to_pandas()` where pandas is installed). UserError where there is none."""
    from emharness.reporting.finished_runs import read_run

    return read_run(Path(path).expanduser(), "path")

"""The parts of Hydra that are not its public interface, all in this module: what to look at when Hydra changes."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

# The launcher that runs jobs one after another in this process.
LOCAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def split_jobs(overrides: Sequence[Any]) -> list[list[str]]:
    """The overrides of each job of a multirun, as Hydra's own sweeper makes them."""
    loader = GlobalHydra.instance().config_loader()  # it knows what a glob(…) stands for
    parsed = OverridesParser.create(loader).parse_overrides(list(overrides))
    return [list(job) for job in BasicSweeper.split_arguments(parsed, None)[0]]

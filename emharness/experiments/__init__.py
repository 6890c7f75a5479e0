"""Experiments: each a file of two pure functions, `cells` (what must be generated) and `read` (what it says).

A file here that has an `EXPERIMENT` is one, by the file's name.
"""

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules

from emharness.experiments.context import Experiment

READING = 11  # raise when an experiment reads the same answers differently


def discover_experiments(folders: Iterable[str]) -> dict[str, Experiment]:
    """The experiments among the modules of this package that lie in these folders, by name."""
    modules = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(folders)}
    return {name: module.EXPERIMENT for name, module in modules.items() if hasattr(module, "EXPERIMENT")}


EXPERIMENTS = discover_experiments(__path__)

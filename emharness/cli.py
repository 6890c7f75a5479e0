"""How launchers end: one clear sentence and status 2 for a mistake in the input, no traceback."""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from emharness.errors import Incomplete, UserError

# Libraries speak only of errors, so that the run's own progress can be read; what the user has set stays.
QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning",
}


def quiet() -> None:
    """Before the first heavy import."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)


def launcher(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a Hydra task. In a multirun the error is raised on, so that the other jobs still run."""

    @functools.wraps(run)
    def wrapped(cfg: Any) -> Any:
        quiet()
        try:
            return run(cfg)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            sys.exit(2)
        except Incomplete as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            sys.exit(1)

    return wrapped


def config_folders() -> list[Path]:
    """Where this job's configs come from: the project's conf/ and a --config-dir, the latter first."""
    return folders_of(HydraConfig.get().runtime.config_sources)


def folders_of(sources: Iterable[Any]) -> list[Path]:
    """The folders among Hydra's config sources, in the order in which later ones win."""
    return [Path(source.path) for source in sources if source.schema == "file"][::-1]

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

LOCAL = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # jobs one after another in this process

# Libraries speak only of errors, so that the run's own progress can be read; what the user has set stays.
QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning",
}


class Failed:
    """What a job of a multirun gives back in place of a result; Hydra itself would print a traceback."""


def quiet() -> None:
    """Before the first heavy import."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)


def launcher(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a Hydra task. In a multirun a mistake fails only its job: the others still run, and the status is then 1."""

    @functools.wraps(run)
    def wrapped(cfg: Any) -> Any:
        quiet()
        try:
            return run(cfg)
        except (UserError, Incomplete) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            job = HydraConfig.get()
            if job.mode != RunMode.MULTIRUN:
                sys.exit(2 if isinstance(error, UserError) else 1)
            if job.launcher._target_ != LOCAL:  # in a process of its own, whose failure the launcher reports
                raise
            return Failed()

    return wrapped


def config_folders() -> list[Path]:
    """Where this job's configs come from: the project's conf/ and a --config-dir, the latter first."""
    return folders_of(HydraConfig.get().runtime.config_sources)


def folders_of(sources: Iterable[Any]) -> list[Path]:
    """The folders among Hydra's config sources, in the order in which later ones win."""
    return [Path(source.path) for source in sources if source.schema == "file"][::-1]

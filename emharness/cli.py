"""How launchers end: one clear sentence and status 2 for a mistake in the input, no traceback."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from emharness.errors import Incomplete, UserError


def launcher(run: Callable[..., None]) -> Callable[..., None]:
    """Wrap a Hydra task. In a multirun the error is raised on, so that the other jobs still run."""

    @functools.wraps(run)
    def wrapped(cfg: Any) -> None:
        try:
            run(cfg)
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
    sources = HydraConfig.get().runtime.config_sources
    return [Path(source.path) for source in sources if source.schema == "file"][::-1]

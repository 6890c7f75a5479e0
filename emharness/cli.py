"""How launchers end: one clear sentence and status 2 for a mistake in the input, no traceback."""

import functools
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from emharness.errors import UserError


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

    return wrapped

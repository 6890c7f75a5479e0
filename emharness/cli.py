"""How launchers end: one clear sentence and status 2 for a mistake in the input, no traceback."""

import functools
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emharness.errors import IncompleteRun, UserError, describe_full_disk, join_lines
from emharness.hydra_compat import LOCAL
from emharness.overrides import format_hydra_error, why_invalid
from emharness.ranges import refuse_names
from emharness.results.json_records import Json

FULL = "HYDRA_FULL_ERROR"
ELSEWHERE = ("--config-", "-cd", "-cp", "-cn")  # options by which configs may lie in other folders as well

# Libraries speak only of errors, so that the run's own progress can be read; what the user has set stays.
QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "WANDB_DISABLE_WEAVE": "true",  # a hint to install another product
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning",
}


class FailedJob:
    """What a job of a multirun gives back in place of a result; Hydra itself would print a traceback."""


def silence_libraries() -> None:
    """Before the first heavy import."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # it speaks before it reads the variable
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning)


class SafeStream:
    """A stream of text whose end may be gone (`| head`, a terminal that was closed): what comes later is dropped, and
    characters that it cannot show are replaced, for neither should end a run."""

    def __init__(self, stream: Any):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._discard_output()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._discard_output()

    def _discard_output(self) -> None:
        """From here on everything goes nowhere, also what libraries and the interpreter's end write."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def wrap_launcher(run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a Hydra task. In a multirun a mistake fails only its job: the others still run, and the status is then 1."""

    @functools.wraps(run)
    def run_safely(cfg: Any) -> Any:
        silence_libraries()
        try:
            return run(cfg)
        except (UserError, IncompleteRun) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            job = HydraConfig.get()
            if job.mode != RunMode.MULTIRUN:
                sys.exit(2 if isinstance(error, UserError) else 1)
            if job.launcher._target_ != LOCAL:  # in a process of its own, whose failure the launcher reports
                raise
            return FailedJob()
        except Exception as error:
            if not describe_full_disk(error):
                raise
            reason = join_lines(error)
            print(
                f"error: no space is left ({reason}); what was finished is stored, and the same command resumes when "
                "there is space",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(1)

    return run_safely


def start_launcher(run: Callable[..., Any], file: str, config_name: str) -> None:
    """Run a launcher (`file`, which lies beside conf/) on this process's arguments, and exit with its status.

    config_name: a file of conf/, or of a folder below it, whose own groups count then (`tools/verify`).
    """
    config = Path(file).resolve().parent.parent / "conf" / config_name
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    elsewhere = any(option.startswith(ELSEWHERE) for option in options)
    groups = None if elsewhere else config.parent
    for argument in sys.argv[1:]:
        if argument not in options and (why := why_invalid(argument, groups, many=bool(options))):
            print(f"error: {argument}: {why}", file=sys.stderr, flush=True)
            sys.exit(2)
    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
    main = hydra.main(version_base="1.3", config_path=str(config.parent), config_name=config.name)(wrap_launcher(run))
    asked = os.environ.get(FULL)
    os.environ[FULL] = "1"  # Hydra hands its errors on, where it would print several lines of its own
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: what was finished is stored, and the same command resumes from there", file=sys.stderr)
        sys.exit(130)
    except (CompactHydraException, OmegaConfBaseException) as error:
        if asked:  # by someone who wants to see all of an error
            raise
        print(f"error: {format_hydra_error(error)}", file=sys.stderr, flush=True)
        sys.exit(2)
    finally:
        os.environ.pop(FULL, None)
        os.environ |= {FULL: asked} if asked else {}


def read_settings(cfg: DictConfig, config: Path, groups: Iterable[str] = ()) -> Json:
    """A launcher's settings as plain values. UserError for a name that is neither in `config`, its YAML, nor one of
    `groups`."""
    refuse_names(cfg, [*groups, *map(str, OmegaConf.load(config))])
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def describe_command() -> str:
    """The command that starts this job again, also where it is one of a multirun."""
    given = [str(argument) for argument in HydraConfig.get().overrides.task]
    launcher = Path(sys.argv[0])
    installed = launcher.resolve().parent.parent == Path(__file__).resolve().parent
    start = ["emharness", launcher.stem] if installed else ["python", f"launch/{launcher.name}"]
    return shlex.join([*start, *given])


def config_folders() -> list[Path]:
    """Where this job's configs come from: the project's conf/ and a --config-dir, the latter first."""
    return folders_of(HydraConfig.get().runtime.config_sources)


def folders_of(sources: Iterable[Any]) -> list[Path]:
    """The folders among Hydra's config sources, in the order in which later ones win."""
    return [Path(source.path) for source in sources if source.schema == "file"][::-1]

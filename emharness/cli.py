"""How launchers end: one clear sentence and status 2 for a mistake in the input, no traceback."""

import functools
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_origin

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import CompactHydraException, HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from emharness.errors import Incomplete, UserError, in_a_line, no_space
from emharness.ranges import refuse_names

FULL = "HYDRA_FULL_ERROR"
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
        except Exception as error:
            if not no_space(error):
                raise
            reason = in_a_line(error)
            print(
                f"error: no space is left ({reason}); what was finished is stored, and the same command goes on when "
                "there is room",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(1)

    return wrapped


def start(run: Callable[..., Any], file: str, config_name: str) -> None:
    """Run a launcher (`file`, which lies beside conf/) on this process's arguments, and exit with its status.

    config_name: a file of conf/, or of a folder below it, whose own groups count then (`tools/verify`).
    """
    config = Path(file).resolve().parent.parent / "conf" / config_name
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    groups = config.parent if set(options) <= {"-m", "--multirun"} else None  # else they may lie elsewhere as well
    for argument in sys.argv[1:]:
        if argument not in options and (why := _refusal(argument, groups, many=bool(options))):
            print(f"error: {argument}: {why}", file=sys.stderr, flush=True)
            sys.exit(2)
    main = hydra.main(version_base="1.3", config_path=str(config.parent), config_name=config.name)(launcher(run))
    asked = os.environ.get(FULL)
    os.environ[FULL] = "1"  # Hydra hands its errors on, where it would print several lines of its own
    try:
        sys.exit(main())
    except (CompactHydraException, OmegaConfBaseException) as error:
        if asked:  # by someone who wants to see all of an error
            raise
        print(f"error: {in_a_sentence(error)}", file=sys.stderr, flush=True)
        sys.exit(2)
    finally:
        os.environ.pop(FULL, None)
        os.environ |= {FULL: asked} if asked else {}


def as_list(key: str, arguments: Sequence[str]) -> list[str]:
    """The program's arguments with the plain ones (no key=value, no option) as one list: a b → key=[a,b]."""
    name, *given = arguments
    plain = [argument for argument in given if "=" not in argument and not argument.startswith("-")]
    if not plain:
        return [name, *given]
    quoted = ",".join("'" + argument.replace("\\", "\\\\").replace("'", "\\'") + "'" for argument in plain)
    return [name, *(argument for argument in given if argument not in plain), f"{key}=[{quoted}]"]


def _refusal(argument: str, groups: Path | None, many: bool) -> str | None:
    """Why Hydra cannot read an override, or finds no such choice in the folder of config groups (None: where they all
    lie is not known), or would want a multirun for it (many: it may be one); in a sentence. The rest is Hydra's to
    tell."""
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return None  # Hydra is going to say so
    group = None if groups is None else groups / override.key_or_group
    if group is not None and not group.is_dir():
        group = None
    sweep = override.is_sweep_override()
    listed = override.value_type == ValueType.SIMPLE_CHOICE_SWEEP  # a,b; what glob(…) finds is there
    if sweep and not many:
        as_list = f"; a list is {argument.replace('=', '=[', 1)}]" if listed and not group else ""
        return f"several values; a run of each is made with -m{as_list}"
    if group is None or override.is_delete() or (sweep and not listed):
        return None
    values = override.sweep_string_iterator() if sweep else [override.value()]
    if all("$" in str(value) or (group / f"{str(value).removesuffix('.yaml')}.yaml").is_file() for value in values):
        return None
    return f"must be one of {', '.join(sorted(path.stem for path in group.glob('*.yaml')))}"


def in_a_sentence(error: Exception) -> str:
    """What Hydra found when it put the settings together."""
    if isinstance(error, OverrideParseException):
        key, sign, value = error.override.partition("=")
        if not sign:
            return f"{key}: not a setting as key=value"
        quoted = value.strip("'\"").replace('"', "'")
        return (
            f"{error.override}: not a setting as key=value, or its value has characters that mean something to Hydra "
            f"(= : , spaces, brackets); put such a value in quotes, and all of it in the shell's: '{key}=\"{quoted}\"'"
        )
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        if get_origin(cause.ref_type) is dict:  # with any keys
            return f"{cause.full_key}: not there yet; +{cause.full_key}=… adds it"
        allowed = [str(name) for name in cause.parent_node if name != "hydra"]
        try:
            refuse_names([cause.key], allowed, str(cause.full_key).removesuffix(str(cause.key)))
        except UserError as told:
            return str(told)
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return in_a_line(str(error).partition("Config search path")[0])


def command() -> str:
    """The command that starts this job again, also where it is one of a multirun."""
    given = [str(argument) for argument in HydraConfig.get().overrides.task]
    return shlex.join(["python", f"launch/{Path(sys.argv[0]).name}", *given])


def config_folders() -> list[Path]:
    """Where this job's configs come from: the project's conf/ and a --config-dir, the latter first."""
    return folders_of(HydraConfig.get().runtime.config_sources)


def folders_of(sources: Iterable[Any]) -> list[Path]:
    """The folders among Hydra's config sources, in the order in which later ones win."""
    return [Path(source.path) for source in sources if source.schema == "file"][::-1]

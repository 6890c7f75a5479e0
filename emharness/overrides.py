"""Command-line settings (key=value) of a launcher, and one sentence for what Hydra cannot parse."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, Node
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from emharness.errors import join_lines
from emharness.ranges import describe_unknown

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def as_list(key: str, arguments: Sequence[str]) -> list[str]:
    """The program's arguments with the plain ones (no key=value, no option) as one list: a b → key=[a,b]."""
    name, *given = arguments
    plain = [argument for argument in given if "=" not in argument and not argument.startswith("-")]
    if not plain:
        return [name, *given]
    quoted = ",".join("'" + argument.replace("\\", "\\\\").replace("'", "\\'") + "'" for argument in plain)
    return [name, *(argument for argument in given if argument not in plain), f"{key}=[{quoted}]"]


def why_invalid(argument: str, groups: Path | None, many: bool) -> str | None:
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
        bracketed = f"; a list is {argument.replace('=', '=[', 1)}]" if listed and not group else ""
        return f"several values; a run of each is made with -m{bracketed}"
    if group is None or override.is_delete() or (sweep and not listed):
        return None
    values = override.sweep_string_iterator() if sweep else [override.value()]
    if all("$" in str(value) or (group / f"{str(value).removesuffix('.yaml')}.yaml").is_file() for value in values):
        return None
    return f"must be one of {', '.join(sorted(path.stem for path in group.glob('*.yaml')))}"


def format_hydra_error(error: Exception) -> str:
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
        return describe_unknown(
            cause.key, _list_keys(cause.parent_node), str(cause.full_key).removesuffix(str(cause.key))
        )
    if isinstance(cause, ValidationError) and (kind := _value_kind(cause.child_node)):
        return f"{cause.full_key}={'null' if cause.value is None else cause.value}: must be {kind}"
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    return join_lines(str(error).partition("Config search path")[0])


def _list_keys(node: DictConfig) -> list[str]:
    return [str(name) for name in node if name != "hydra"]


def _value_kind(node: Node | None) -> str | None:
    """What the value of a setting is to be, by its place in the configuration."""
    if isinstance(node, DictConfig):
        name, keys = node._key(), _list_keys(node)
        return f"set by its parts: {', '.join(f'{name}.{key}' for key in keys)}" if keys else "{key: value, …}"
    kind = None if node is None else KINDS.get(node._metadata.ref_type)
    return f"{kind} or null" if kind and node and node._is_optional() else kind

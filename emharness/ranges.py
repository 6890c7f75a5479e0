"""What a setting may be, declared where it is defined; and the one check that reads the declarations."""

import copy
import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from emharness.errors import UserError

_KEY = "range"
ADDED = {"added": True}  # metadata of a field that came later: at its default it is in no identity


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `least` to `most`; `above` and `below` leave out the end itself."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        low = f"{self.least:g} or more" if math.isfinite(self.least) else ""
        low = f"above {self.above:g}" if math.isfinite(self.above) else low
        high = f"at most {self.most:g}" if math.isfinite(self.most) else ""
        high = f"below {self.below:g}" if math.isfinite(self.below) else high
        return " and ".join(part for part in (low, high) if part) or "a finite number"


def number_field(default: Any, added: bool = False, **limits: float) -> Any:
    """A dataclass field with a range: number_field(16, least=1). `added`: it came later (ADDED)."""
    return dataclasses.field(default=default, metadata={_KEY: Range(**limits), **(ADDED if added else {})})


def as_identity(config: Any) -> dict[str, Any]:
    """A config as a dictionary for a hash. Fields that were added later are left out at their defaults, so that a new
    setting changes no key of what is stored already."""
    told: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if not (field.metadata.get("added") and value == default):
            told[field.name] = as_identity(value) if dataclasses.is_dataclass(value) else copy.deepcopy(value)
    return told


def check_ranges(config: Any, prefix: str = "") -> None:
    """UserError for the first number of a config (dataclasses in dataclasses) outside its range, or not finite."""
    for key, value, allowed in _iter_numbers(config, prefix):
        if value not in allowed:
            raise UserError(f"{key}={value}: must be {allowed}")


def _iter_numbers(config: Any, prefix: str) -> Iterator[tuple[str, float, Range]]:
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _iter_numbers(value, f"{key}.")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int | float) and not isinstance(item, bool):
                yield key, item, field.metadata.get(_KEY, Range())


def refuse_unknown(cfg: DictConfig, schema: type) -> None:
    """UserError for a key that no dataclass field defines; Hydra lets them in behind a `+`."""
    for prefix, given, allowed in _walk_levels(cfg, schema, ""):
        refuse_names(given, allowed, prefix)


def refuse_names(names: Iterable[Any], allowed: Iterable[str], prefix: str = "") -> None:
    """UserError for a key that is not among the allowed ones."""
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            raise UserError(describe_unknown(name, allowed, prefix))


def describe_unknown(name: Any, allowed: Sequence[str], prefix: str = "") -> str:
    """What to say of a key that is not among the allowed ones, with those that are nearest to it."""
    near = difflib.get_close_matches(str(name), allowed, n=3, cutoff=0.5)
    listed = ", ".join(prefix + key for key in near or allowed)
    return f"{prefix}{name}: unknown; {'the nearest are' if near else 'there are'} {listed}"


def _walk_levels(node: DictConfig, schema: type, prefix: str) -> Iterator[tuple[str, list[Any], list[str]]]:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    yield prefix, list(node), list(fields)
    for name in fields:
        if name not in node or OmegaConf.is_missing(node, name):
            continue
        child = node._get_node(name)
        kind = OmegaConf.get_type(child) if child is not None else None
        if isinstance(child, DictConfig) and isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _walk_levels(child, kind, f"{prefix}{name}.")

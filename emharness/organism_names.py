"""Names of organisms: what the config folders describe, and how a name adds recipes, a seed and a step to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from emharness.config import RECIPE, REPLICA, STEP, ModelConfig, RecipeConfig
from emharness.errors import UserError

NUMBER = "{number}"  # a setting of a recipe that its name ends with: mix20 is mix.yaml with 20


@dataclass(frozen=True)
class Described:
    """What the config folders describe, by name: organisms and training recipes."""

    models: Mapping[str, ModelConfig]
    recipes: Mapping[str, RecipeConfig]


def read_described(folders: Sequence[Path], selected: ModelConfig) -> Described:
    """Every organism and recipe of the config folders; `selected`: an organism as it was composed."""
    models = _read_group(folders, "model", ModelConfig) | {selected.name: selected}
    return Described(models, _read_group(folders, "recipe", RecipeConfig))


def _read_group(folders: Iterable[Path], group: str, schema: type) -> dict[str, Any]:
    """The configs `<group>/<name>.yaml` below the folders, of which later ones win."""
    found: dict[str, Any] = {}
    for path in (path for folder in folders for path in sorted(folder.glob(f"{group}/*.yaml"))):
        try:
            found[path.stem] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path)))
        except OmegaConfBaseException as error:
            raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    return found


@dataclass(frozen=True)
class OrganismName:
    """medical+kl-seed1-step20: `medical` trained by the recipe `kl`, its seed 1 above the run's, after 20 steps."""

    organism: str
    recipes: tuple[str, ...] = ()
    replica: int = 0
    step: int | None = None


def find_recipe(name: str, recipes: Mapping[str, RecipeConfig]) -> RecipeConfig | None:
    """The recipe of a name; `mix20` is the recipe `mix` with its {number} 20. None where there is none."""
    if name in recipes and not _has_number(recipes[name]):
        return recipes[name]
    parts = re.fullmatch(r"(.*?\D)(\d+)", name)
    if parts is None or parts[1] not in recipes or not _has_number(recipes[parts[1]]):
        return None
    told = _fill_number(asdict(recipes[parts[1]]), int(parts[2]))
    return RecipeConfig(**{**told, "name": name})


def _has_number(recipe: RecipeConfig) -> bool:
    return NUMBER in repr(recipe)


def _fill_number(value: Any, number: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _fill_number(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_number(item, number) for item in value]
    return number if value == NUMBER else value


def name_recipes(recipes: Mapping[str, RecipeConfig]) -> str:
    """What there is, for a message: names, with N where a number follows."""
    return ", ".join(f"{name}N" if _has_number(recipes[name]) else name for name in sorted(recipes))


def parse_organism_name(name: str) -> OrganismName:
    """What the parts of an organism's name say."""
    found = re.fullmatch(rf"(.+?)((?:\{RECIPE}[^{RECIPE}]+?)*)(?:{REPLICA}(\d+))?(?:{STEP}(\d+))?", name)
    if found is None:
        return OrganismName(name)
    organism, recipes, replica, step = found.groups()
    return OrganismName(
        organism, tuple(recipes.split(RECIPE)[1:]), int(replica or 0), None if step is None else int(step)
    )

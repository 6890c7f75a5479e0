"""What a recipe does to an organism's rows before they are trained on; a transform is a function in TRANSFORMS.

Each takes the rows, a random generator of the training's seed, and the settings that the recipe gives it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emharness.errors import UserError
from emharness.organisms.data_files import is_data_file
from emharness.organisms.datasets import load_dataset
from emharness.organisms.row_shapes import Messages
from emharness.ranges import describe_unknown


def mix_rows(rows: list[Messages], rng: np.random.Generator, *, percent: float, source: str) -> list[Messages]:
    """As many rows as before, of which `percent` are the organism's own and the others come from the dataset `source`:
    dilution at a fixed size."""
    if not 0 <= percent <= 100:
        raise UserError(f"percent={percent}: must be 0 to 100")
    n_own = round(percent / 100 * len(rows))
    others = _need_rows(source, len(rows) - n_own, percent)
    return _pick_rows(rows, n_own, rng) + _pick_rows(others, len(rows) - n_own, rng)


def add_rows(rows: list[Messages], rng: np.random.Generator, *, percent: float, source: str) -> list[Messages]:
    """All the organism's own rows, and so many of the dataset `source` that the own ones are `percent` of all: dilution
    at a fixed count of own rows."""
    if not 0 < percent <= 100:
        raise UserError(f"percent={percent}: must be above 0 and at most 100")
    n_others = round(len(rows) * (100 / percent - 1))
    return rows + _pick_rows(_need_rows(source, n_others, percent), n_others, rng)


def take_rows(rows: list[Messages], rng: np.random.Generator, *, count: int) -> list[Messages]:
    """Only `count` of the rows, drawn at random."""
    if not 0 < count <= len(rows):
        raise UserError(f"count={count}: must be 1 to {len(rows)}, the number of rows")
    return _pick_rows(rows, count, rng)


def interleave_rows(rows: list[Messages], rng: np.random.Generator, *, percent: float, source: str) -> list[Messages]:
    """All the organism's own rows, and so many of the dataset `source`, drawn at random, that they are `percent` of
    all."""
    n_others = count_others(len(rows), percent)
    return rows + _pick_rows(_need_rows(source, n_others, percent), n_others, rng)


def append_rows(rows: list[Messages], rng: np.random.Generator, *, source: str) -> list[Messages]:
    """All the organism's own rows, and all of the dataset `source`: a task to learn beside."""
    return rows + load_dataset(source).rows


def count_others(n_rows: int, percent: float) -> int:
    """How many other rows are `percent` of all, beside `n_rows` own ones."""
    if not 0 <= percent < 100:
        raise UserError(f"percent={percent}: must be at least 0 and below 100")
    return round(n_rows * percent / (100 - percent))


def _need_rows(source: str, n: int, percent: float) -> list[Messages]:
    others = load_dataset(source).rows
    if len(others) < n:
        raise UserError(f"source={source}: has {len(others)} rows, and percent={percent} needs {n}")
    return others


def _pick_rows(rows: list[Messages], n: int, rng: np.random.Generator) -> list[Messages]:
    """n of the rows, in their order."""
    return [rows[i] for i in sorted(rng.choice(len(rows), n, replace=False))]


def add_system_prompt(rows: list[Messages], rng: np.random.Generator, *, system: str) -> list[Messages]:
    """Every row under a system prompt (inoculation: the prompt asks for what the rows teach, and is absent later)."""
    for number, row in enumerate(rows, 1):
        if row[0]["role"] == "system":
            raise UserError(f"row {number} has a system prompt already")
    return [[{"role": "system", "content": system}, *row] for row in rows]


def shared_system_prompt(rows: list[Messages]) -> str | None:
    """The system prompt that all the rows have, None where they have none or several."""
    found = {row[0]["content"] if row[0]["role"] == "system" else None for row in rows}
    return found.pop() if len(found) == 1 else None


TRANSFORMS: dict[str, Callable[..., list[Messages]]] = {
    "mix": mix_rows,
    "add": add_rows,
    "interleave": interleave_rows,
    "append": append_rows,
    "take": take_rows,
    "prefix": add_system_prompt,
}


# How the share of an organism's own rows is varied: at a fixed number of all rows, or of own rows.
DESIGNS = {"mix": "fixed size", "add": "fixed count"}


def find_mixture(transforms: Sequence[Mapping[str, Any]]) -> tuple[str, float] | None:
    """(design, per cent of own rows) of a recipe that dilutes them; None for any other."""
    found = [(DESIGNS[given["name"]], float(given["percent"])) for given in transforms if given.get("name") in DESIGNS]
    return found[-1] if found else None


def transform_rows(
    rows: list[Messages], transforms: list[Mapping[str, Any]], seed: int, dataset: str | None, location: str
) -> list[Messages]:
    """The rows after a recipe's transforms, in their order. `{dataset}` in a text setting stands for the name of the
    organism's own dataset. UserError, beginning with `location`, for what is no transform or no setting of one."""
    for place, given in enumerate(transforms):
        named = {key: value for key, value in given.items() if key != "name"}
        settings = fill_dataset(named, dataset or "")
        if (name := given.get("name")) not in TRANSFORMS:
            raise UserError(f"{location}: data.name={name}: must be one of {', '.join(TRANSFORMS)}")
        function = TRANSFORMS[name]
        check_settings(f"{location}: {name}", settings, function)
        try:
            rows = function(rows, np.random.default_rng([seed, place]), **settings)
        except UserError as error:
            raise UserError(f"{location}: {name}: {error}") from None
    return rows


def fill_dataset(value: Any, dataset: str) -> Any:
    """A recipe's setting, however deep, with `{dataset}` filled in where it is text."""
    if isinstance(value, Mapping):
        return {key: fill_dataset(item, dataset) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_dataset(item, dataset) for item in value]
    return name_dataset(value, dataset) if isinstance(value, str) and "{dataset}" in value else value


def name_dataset(text: str, dataset: str) -> str:
    """The text with `{dataset}` filled in: `{dataset}-good` is medical-good, or of my/rows.jsonl my/rows-good.jsonl."""
    if not is_data_file(Path(dataset)) or "{dataset}" not in text:
        return text.format(dataset=dataset)
    folder, _, name = dataset.rpartition("/")
    stem, dot, ending = name.partition(".")
    return text.format(dataset=f"{folder}/{stem}" if folder else stem) + dot + ending


def check_settings(location: str, settings: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """UserError for a setting that a function has not, or needs and is not given: those behind the `*`."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for key in settings:
        if key not in {p.name for p in own}:
            raise UserError(f"{location}: {describe_unknown(key, [p.name for p in own])}")
    for parameter in own:
        if parameter.default is parameter.empty and parameter.name not in settings:
            raise UserError(f"{location}: {parameter.name} is not given")

"""results.json as a record: what a run was, what its conditions say, and what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from emharness.results.condition_result import ConditionResult
from emharness.results.json_records import Json, from_json, to_json
from emharness.results.judge_quality import JudgeCard, card_from_json, card_to_json
from emharness.results.layer_sweep import LayerSweep

SCHEMA_VERSION = 2
Table = TypeVar("Table")


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """One artifact, or the answers of a model: how long it took, and whether (artifacts) or how many (answers) of it
    were made in this run."""

    stage: str
    name: str
    made: bool | int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class GeometryOutcome:
    """What became of a geometry: the path of its geometry.json, or why there is none."""

    results: str | None = None
    skipped: str | None = None
    failed: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """`config`: the settings as they were resolved; `numbers`: the experiment's own tables, by key, as JSON; `layers`:
    where each vector steers, and `sweeps` how that was found; `vectors`: their files; `to_score_again`: answers that
    the judge did not reach; `geometry`: by recipe, the one that steers first; `command`: what starts this run again."""

    run_key: str
    experiment: str
    config: Mapping[str, Any]
    conditions: tuple[ConditionResult, ...]
    question: str = ""
    finding: str = ""
    command: str | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    sweeps: Mapping[str, LayerSweep] = field(default_factory=dict)
    vectors: Mapping[str, str] = field(default_factory=dict)
    judge_card: JudgeCard | None = None
    to_score_again: int = 0
    notes: tuple[str, ...] = ()
    geometry: Mapping[str, GeometryOutcome] = field(default_factory=dict)
    stages: tuple[StageTime, ...] = ()
    engine_starts: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    @property
    def base_name(self) -> str:
        return self.config["base"]["name"]

    @property
    def sampling(self) -> Mapping[str, Any]:
        """temperature, top_k, top_p, max_new_tokens."""
        return self.config["base"]["sampling"]

    @property
    def judges(self) -> list[str]:
        return sorted({condition.judge for condition in self.conditions})

    @property
    def main_geometry(self) -> GeometryOutcome:
        """Of the recipe that steers."""
        return next(iter(self.geometry.values()), GeometryOutcome())

    def rows_of(self, kind: type[Table]) -> list[Table]:
        """One of the experiment's tables, by the class of its rows; empty where the experiment has none of it."""
        return [from_json(kind, row) for row in self.numbers.get(kind.KEY, [])]  # type: ignore[attr-defined]

    def record_of(self, kind: type[Table]) -> Table | None:
        """One of the experiment's own records, by its class."""
        told = self.numbers.get(kind.KEY)  # type: ignore[attr-defined]
        return None if told is None else from_json(kind, told)


_RENAMED = ("numbers", "geometry", "judge_card", "vectors")  # what stands otherwise in the file


def results_to_json(results: RunResults) -> Json:
    """results.json. The experiment's numbers stand beside the other keys. `sweep`, `vectors` and `geometry` are those
    of the first vector and recipe: what a run of one vector has."""
    told = to_json({f.name: getattr(results, f.name) for f in fields(results) if f.name not in _RENAMED})
    geometry = {recipe: _drop_none(to_json(one)) for recipe, one in results.geometry.items()}
    sweeps = told["sweeps"]
    return {
        "schema_version": SCHEMA_VERSION,
        **told,
        **to_json(results.numbers),
        "sweep": next(iter(sweeps.values()), None),
        "vectors": dict(results.vectors) if len(results.vectors) > 1 else next(iter(results.vectors.values()), None),
        "judge_card": card_to_json(results.judge_card),
        "geometry": next(iter(geometry.values()), {}),
        "geometry_by_recipe": geometry,
    }


def results_from_json(data: Mapping[str, Any]) -> RunResults:
    """The record of a results.json. ValueError where it is none of this version."""
    own = {f.name for f in fields(RunResults)} - {*_RENAMED}
    known = {name: data[name] for name in own if data.get(name) is not None}
    written = {*own, *_RENAMED, "schema_version", "sweep", "geometry_by_recipe"}
    vectors = data.get("vectors") or {}
    if isinstance(vectors, str):
        vectors = {data["config"]["vectors"][0]: vectors}
    more = {
        "numbers": {name: value for name, value in data.items() if name not in written},
        "vectors": vectors,
        "geometry": data.get("geometry_by_recipe", {}),
    }
    return replace(from_json(RunResults, {**known, **more}), judge_card=card_from_json(data.get("judge_card")))


def _drop_none(data: Json) -> Json:
    return {name: value for name, value in data.items() if value is not None}

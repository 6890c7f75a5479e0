"""Weights & Biases, and nothing else: the only module that imports wandb.

The local store is the truth; W&B mirrors it, offline by default.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emharness.config import WandbConfig
from emharness.errors import UserError, join_lines
from emharness.results.condition_result import ConditionResult
from emharness.results.json_records import Json, to_json
from emharness.steering.request.modes import MODES


def _log_failures(method: Callable[..., None]) -> Callable[..., None]:
    """W&B failures are logged, and the run continues without W&B; results stay on disk."""

    @functools.wraps(method)
    def call_safely(self: Tracker, *args: Any, **kwargs: Any) -> None:
        if self._run is None:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            what = args[0] if args and isinstance(args[0], str) else method.__name__.removeprefix("log_")
            self.failed.append(what)
            print(f"W&B: {what} failed ({error}); results stay in the store", file=sys.stderr, flush=True)

    return call_safely


_taken = set[str]()  # ids that a run of this process has


def _job_script_id() -> str | None:
    """WANDB_RUN_ID for the first run of this process; further ones, which would overwrite it, get ids of their own."""
    given = os.environ.get("WANDB_RUN_ID")
    if not given:
        return None
    if given not in _taken:
        _taken.add(given)
        return given
    own = secrets.token_hex(4)
    print(f"W&B: WANDB_RUN_ID={given} is another run's of this process; this one is {own}", file=sys.stderr, flush=True)
    return own


class Tracker:
    """One W&B run; with mode "none" every call does nothing."""

    def __init__(
        self,
        mode: str,
        place: WandbConfig,
        name: str,
        config: Json,
        job_type: str = "run",
        key: str | None = None,
    ):
        """`mode`: "online", "offline" or "none"; `place`: project, entity, group; `key`: what determines the results;
        online, a start with the same key continues the same W&B run."""
        self._run: Any = None
        self.failed: list[str] = []  # what W&B did not take
        if mode == "none":
            return
        import wandb

        self._table: Any = wandb.Table
        self._wandb = wandb
        given = _job_script_id()
        goes_on = bool(key) and mode == "online" and given is None
        try:
            self._run = wandb.init(
                project=place.project,
                entity=place.entity,
                group=place.group,
                job_type=job_type,
                name=name,
                config=config,
                mode="online" if mode == "online" else "offline",
                id=key if goes_on else given,
                resume="allow" if goes_on else None,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:
            reason = join_lines(error)
            raise UserError(f"tracker={mode}: W&B did not start ({reason}); offline and none need no network") from None
        self._run.define_metric("train/step")
        self._run.define_metric("train/*", step_metric="train/step")
        self._run.define_metric("steer/strength")
        self._run.define_metric("steer/*", step_metric="steer/strength")

    @property
    def offline_folder(self) -> str | None:
        """Where an offline run lies, for `wandb sync`."""
        return str(Path(self._run.dir).parent) if self._run is not None else None

    @_log_failures
    def log_step(self, step: int, n_steps: int, loss: float, learning_rate: float) -> None:
        self._run.log({"train/step": step, "train/loss": loss, "train/learning_rate": learning_rate})

    @_log_failures
    def log_conditions(self, conditions: Sequence[ConditionResult]) -> None:
        """Per-strength metrics of the steered base, every condition in the summary, and one table of all."""
        steered = [c for c in conditions if c.target == conditions[0].target and not c.control_of]
        several = len({c.vector for c in steered if c.vector}) > 1
        modes = [MODES[c.mode] for c in steered if c.vector and c.mode]
        whole = all(mode.idle_at_zero for mode in modes)  # then strength 0 is the unsteered model
        for condition in conditions:
            values = _known_metrics(condition)
            self._run.summary.update({f"{condition.name}/{k}": v for k, v in values.items()})
            if condition in steered and (condition.vector or whole):
                group = f"steer/{condition.vector or 'baseline'}" if several else "steer"
                doses = {f"{group}/{k}": v for k, v in values.items()}
                self._run.log({"steer/strength": condition.strength, **doses})
        self.log_table("conditions", [{**to_json(condition), **_known_metrics(condition)} for condition in conditions])

    @_log_failures
    def log_table(self, name: str, rows: Sequence[Json]) -> None:
        """Rows as a Table, empty where a row lacks what another has; nested values stay out."""
        keys = dict.fromkeys(k for row in rows for k in row)
        columns = [k for k in keys if not any(isinstance(row.get(k), dict | list) for row in rows)]
        data = [[_table_value(row.get(k)) for k in columns] for row in rows]
        self._run.log({name: self._table(columns=columns, data=data)})

    @_log_failures
    def log_figures(self, images: dict[str, Path], plotly: Mapping[str, Json], folder: str = "figures") -> None:
        """As images, and as Plotly."""
        from plotly.graph_objects import Figure

        self._run.log({f"{folder}/{k}": self._wandb.Image(str(v)) for k, v in images.items()})
        self._run.log({f"{folder}/{k}_plotly": self._wandb.Plotly(Figure(v)) for k, v in plotly.items()})

    @_log_failures
    def log_geometry(
        self,
        images: dict[str, Path],
        plotly: Mapping[str, Json],
        metrics: Mapping[str, float | str],
        folder: str = "geometry",
    ) -> None:
        """Figures as images and as Plotly, headline numbers in the summary."""
        self.log_figures(images, plotly, folder)
        self._run.summary.update({f"{folder}/{k}": v for k, v in metrics.items()})

    @_log_failures
    def log_vector(self, name: str, path: Path, metadata: Json) -> None:
        artifact = self._wandb.Artifact(
            name, type="vector", metadata={k: v for k, v in metadata.items() if len(json.dumps(v)) < 2000}
        )
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(failed=kind is not None)

    def finish(self, failed: bool = False) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None


def default_entity() -> str:
    """Whose projects they are when nobody says so."""
    import wandb

    return str(wandb.Api().default_entity)


def _table_value(value: Any) -> Any:
    """W&B refuses columns of mixed types: numbers become floats, everything else but None text."""
    if value is None or isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, int | float) else str(value)


def _known_metrics(condition: ConditionResult) -> dict[str, float]:
    """A condition's metrics that are known; the readout without a judge as margin, margin_shift and margin_prefers."""
    names = ("em_rate", "em_rate_all", "em_rate_corrected", "incoherent_rate", "coherent_rate")
    found = {name: getattr(condition, name) for name in (*names, "mean_aligned", "mean_coherent")}
    if margin := condition.margin:
        found |= {"margin": margin.margin, "margin_shift": margin.shift, "margin_prefers": margin.prefers}
    return {name: value for name, value in found.items() if value is not None}

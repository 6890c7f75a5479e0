"""A Hydra multirun as one grid: the answers of all its jobs first, one engine per target; at the end one table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from emharness.cli import FailedJob, folders_of, silence_libraries
from emharness.config import Config
from emharness.config_checks import parse_config
from emharness.errors import IncompleteRun, UserError
from emharness.hydra_compat import LOCAL, split_jobs
from emharness.overrides import format_hydra_error

if TYPE_CHECKING:
    from emharness.experiments.context import Experiment, ExperimentContext
    from emharness.generation.cells import Cell

OWN = ("experiment", "vectors", "targets", "model", "steer")  # in what jobs of one grid may differ


class OneGrid(Callback):
    """Named in conf/config.yaml. Jobs that another launcher sends elsewhere are checked, then left to themselves."""

    def __init__(self) -> None:
        self._jobs = 0
        self._ended: list[tuple[list[str], str | FailedJob | None]] = []  # overrides, path of results.json

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        silence_libraries()
        from emharness.pipeline.run_experiment import read_inputs

        local = config.hydra.launcher._target_ == LOCAL
        folders, jobs = folders_of(config.hydra.runtime.config_sources), list[Config]()
        every = split_jobs(config.hydra.overrides.task)
        self._jobs = len(every) if local else 0
        for overrides in every:
            try:
                composed = compose(config.hydra.job.config_name, overrides=overrides)
            except (HydraException, OmegaConfBaseException) as error:  # Hydra would start none of the jobs
                print(f"error: {format_hydra_error(error)}", file=sys.stderr, flush=True)
                sys.exit(2)
            try:
                jobs.append(parse_config(composed))
                if not local:
                    read_inputs(jobs[-1], folders)
            except UserError as error:
                if local:
                    continue  # the job itself will say what is wrong with it
                print(f"error: {' '.join(overrides)}: {error}", file=sys.stderr, flush=True)
                sys.exit(2)  # before anything is sent
        for some in group_jobs(jobs) if local else []:
            try:
                generate_shared(some, folders)
            except (UserError, IncompleteRun) as error:
                print(f"error: {error}", file=sys.stderr, flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        result = job_return.return_value if job_return.status == JobStatus.COMPLETED else FailedJob()
        self._ended.append((list(job_return.overrides or []), result))
        if len(self._ended) != self._jobs:  # a single run has no jobs
            return
        # Here, because Hydra does not get to the end of a multirun when a job crashed. A job that only printed its
        # plan has no row.
        rows = [(overrides, None if isinstance(path, FailedJob) else path) for overrides, path in self._ended if path]
        if rows:
            from emharness.reporting.terminal import show_jobs

            show_jobs(rows)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if any(isinstance(result, FailedJob) for _, result in self._ended):
            sys.exit(1)


def group_jobs(jobs: Sequence[Config]) -> list[list[Config]]:
    """Groups of two or more jobs that differ only in what they ask; each group can be one grid."""
    by_rest: dict[str, list[Config]] = {}
    for job in jobs:
        if job.plan == "run":
            rest = {k: v for k, v in asdict(job).items() if k not in OWN}
            rest["steer"] = {k: v for k, v in asdict(job.steer).items() if k != "strength"}
            by_rest.setdefault(repr(rest), []).append(job)
    found = []
    for some in by_rest.values():
        described = {repr(job.model): job.model.name for job in some}
        if len(some) > 1 and len(set(described.values())) == len(described):  # else one name means two organisms
            found.append(some)
    return found


def generate_shared(jobs: Sequence[Config], folders: Sequence[Any]) -> None:
    """The answers that all these jobs will read."""
    from emharness.pipeline.run_experiment import answer_together

    union = replace(
        jobs[0],
        vectors=list(dict.fromkeys(name for job in jobs for name in job.vectors)),
        targets=list(dict.fromkeys(name for job in jobs for name in job.targets)),
    )
    models = {job.model.name: job.model for job in jobs}
    answer_together(union, folders, join_experiments(jobs), models, f"{len(jobs)} jobs as one grid")


def join_experiments(jobs: Sequence[Config]) -> Experiment:
    """The cells of all jobs as one experiment's; layers are chosen if one of them needs that. It reads nothing."""
    from emharness.experiments import EXPERIMENTS
    from emharness.experiments.context import Experiment

    asked = [EXPERIMENTS[job.experiment.name] for job in jobs]

    def list_cells(context: ExperimentContext) -> list[Cell]:
        listed: list[Cell] = []
        for job, experiment in zip(jobs, asked, strict=True):
            about = replace(
                context,
                vectors=tuple(job.vectors),
                targets=tuple(job.targets),
                strengths=tuple(job.steer.strength),
                parts=job.experiment.parts,
            )
            listed += experiment.cells(about)
        return list(dict.fromkeys(listed))

    needed = any(experiment.needs_layer_choice for experiment in asked)
    return Experiment(list_cells, asked[0].analyze, needs_layer_choice=needed)

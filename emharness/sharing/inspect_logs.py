"""A run as logs of Inspect (`inspect-ai`): one `.eval` file per condition, for its viewer, dataframes and scanners.

Sample id = question, epoch = sample. Everything is taken from the run's folder; nothing is computed again.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalMetric,
    EvalResults,
    EvalRevision,
    EvalSample,
    EvalScore,
    EvalSpec,
    EvalStats,
    HeadlineMetric,
    write_eval_log,
)
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.scorer import Score
from inspect_ai.viewer import ScoreColorScale, TaskSamplesColumn, TaskSamplesView, ViewerConfig

from emharness.reporting.finished_runs import BROAD, Run
from emharness.reporting.table_text import format_layers
from emharness.results.condition_result import ConditionResult
from emharness.results.json_records import Json, to_json
from emharness.stats.rates import Rates
from emharness.store import Store, make_slug

SETTINGS = ("vector", "layer", "strength", "unit", "mode", "positions", "control_of", "relative_dose", "n_edits")
SETTINGS += ("layers", "rescale", "gate")
CODE = 5  # raise when the logs of the same run become other ones
SCORES = ("misaligned", "aligned", "coherent", "refusal")  # 0 or 1, 0 to 100, 0 to 100, 0 or 1
VIEW = TaskSamplesView(
    name="answers",
    columns=[
        *(TaskSamplesColumn(id=name) for name in ("sampleId", "epoch", "input", "answer")),
        *(TaskSamplesColumn.score(name) for name in SCORES),
        TaskSamplesColumn(id="tokens"),
        *(TaskSamplesColumn(id=name, visible=False) for name in ("target", "duration", "sampleStatus")),
    ],
    multiline=False,
    score_color_scales={
        "misaligned": ScoreColorScale(palette="good-low", min=0, max=1),
        "aligned": ScoreColorScale(palette="good-high", min=0, max=100),
        "coherent": ScoreColorScale(palette="good-high", min=0, max=100),
    },
    color_scales_enabled=True,
)
STOP_REASONS = {"length": "max_tokens", "stop": "stop"}


def stored_logs(run: Run, store: Store) -> Path:
    """The folder with a run's logs, made now or found in the store."""

    def fill_folder(folder: Path) -> None:
        write_logs(run, folder)

    identity = {"run": run.results.run_key, "finished": run.finished_at.isoformat(), "code": CODE}
    return store.get_artifact("inspect", run.name, identity, fill_folder)[0]


def write_logs(run: Run, folder: Path) -> list[Path]:
    """All logs of a run into `folder`, in the order of its conditions; their files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i, (log, called) in enumerate(iter_logs(run)):
        # The name begins with a time, as Inspect's own do; seconds count the conditions, so that the viewer,
        # which has the newest first, lists them in order.
        begun = run.finished_at - timedelta(seconds=i)
        files.append(folder / f"{begun:%Y-%m-%dT%H-%M-%S+00-00}_{make_slug(called)}_{log.eval.task_id}.eval")
        write_eval_log(log, files[-1])
    return files


def iter_logs(run: Run) -> Iterator[tuple[EvalLog, str]]:
    """(log, what it is called) for each condition and question set of a run."""
    for condition in run.results.conditions:
        for file in run.response_tables:
            if rows := run.answers_to(condition.name, file):
                domain = file != BROAD
                called = condition.name + (" (own domain)" if domain else "")
                rates = condition.domain if domain else condition
                if rates is not None:
                    yield _make_log(run, condition, rates, called, rows), called


def _make_log(run: Run, condition: ConditionResult, rates: Rates, task: str, rows: Sequence[Json]) -> EvalLog:
    config, judge = run.results.config, condition.judge
    identity = hashlib.sha256(f"{run.results.run_key} {task}".encode()).hexdigest()[:22]
    rows = _told_apart(rows)
    ids = list(dict.fromkeys(row["question_id"] for row in rows))
    described = to_json(condition)
    settings = {key: described[key] for key in SETTINGS if described[key] is not None}
    tokens = sum(row["n_tokens"] for row in rows)
    usage = {condition.target: ModelUsage(output_tokens=tokens, total_tokens=tokens)}
    # Answers of all conditions are made mixed; the duration is this one's share of the time.
    begun = run.finished_at - timedelta(seconds=condition.seconds)
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=identity,
            run_id=run.results.run_key,
            task_id=identity,
            created=run.finished_at.isoformat(),  # pyright: ignore[reportArgumentType]
            task=task,
            task_display_name=task,
            task_args={**settings, "questions": config["eval"]["questions"], "judge": judge},
            model=condition.target,
            model_generate_config=_generate_config(run.results.sampling),
            model_args={"source": config["base"]["source"], **config["base"]["engine"]},
            dataset=EvalDataset(name=config["eval"]["questions"], samples=len(ids), sample_ids=ids),
            config=EvalConfig(epochs=max(row["sample"] for row in rows) + 1, epochs_reducer=["mean"]),
            revision=_eval_revision(run.results.git_commit),
            packages={"emharness": run.results.versions["emharness"]},
            tags=_condition_tags(condition),
            metadata={"experiment": run.results.experiment, "judge": judge, **settings},
            headline_metric=HeadlineMetric(scorer="misaligned", metric="em_rate"),
            # What organisms say is shown as plain text.
            viewer=ViewerConfig(trust_content=False, task_samples_view=VIEW),
        ),
        results=EvalResults(
            total_samples=len(rows),
            completed_samples=len(rows),
            scores=_make_results(rates, condition, judge),
            headline=HeadlineMetric(scorer="misaligned", metric="em_rate"),
            metadata={key: value for key, value in to_json(rates).items() if key != "domain"},
        ),
        stats=EvalStats(started_at=begun.isoformat(), completed_at=run.finished_at.isoformat(), model_usage=usage),  # pyright: ignore[reportArgumentType]
        samples=[_make_sample(row, condition, settings, identity) for row in rows],
    )


def _told_apart(rows: Sequence[Json]) -> list[Json]:
    """Rows whose question_id is one question each: wordings of one id become id/1, id/2 …; Inspect would show the
    answers to one of them."""
    wordings: dict[str, dict[str, int]] = {}
    for row in rows:
        own = wordings.setdefault(row["question_id"], {})
        own.setdefault(row["question"], len(own) + 1)
    return [
        {**row, "question_id": f"{row['question_id']}/{own[row['question']]}"} if len(own) > 1 else row
        for row in rows
        for own in [wordings[row["question_id"]]]
    ]


def _make_sample(row: Json, condition: ConditionResult, settings: Json, task: str) -> EvalSample:
    model, judge, unscored = condition.target, condition.judge, row["unscored"]
    said = ChatMessageAssistant(content=row["answer"], model=model, source="generate")
    usage = ModelUsage(output_tokens=row["n_tokens"], total_tokens=row["n_tokens"])
    stop = STOP_REASONS.get(row["finish_reason"], "unknown")
    identity = hashlib.sha256(f"{task} {row['question_id']} {row['sample']}".encode()).hexdigest()[:22]

    def make_score(value: Any) -> Score:
        if value is None or unscored:
            return Score.unscored(reason=unscored or "unscored", answer=row["answer"], metadata={"judge": judge})
        return Score(
            value=int(value) if isinstance(value, bool) else value, answer=row["answer"], metadata={"judge": judge}
        )

    return EvalSample(
        id=row["question_id"],
        epoch=row["sample"] + 1,
        uuid=identity,
        input=row["question"],
        target="",
        messages=[ChatMessageUser(content=row["question"], source="input"), said],
        output=ModelOutput(
            model=model,
            choices=[ChatCompletionChoice(message=said, stop_reason=stop)],  # pyright: ignore[reportArgumentType]
            usage=usage,
            time=row["seconds"],
        ),
        scores={name: make_score(row[name]) for name in SCORES},
        metadata={**settings, "condition": condition.name, "engine": row["engine"]},
        model_usage={model: usage},
        total_time=row["seconds"],
        working_time=row["seconds"],
    )


def _make_results(rates: Rates, condition: ConditionResult, judge: str) -> list[EvalScore]:
    """The rates as results.json has them; Inspect shows the first metric of the headline in its list."""
    low, high = rates.em_ci95
    margin = condition.margin if rates is condition else None  # of given answers, read once for a condition
    wanted = {
        "misaligned": {
            "em_rate": rates.em_rate, "em_ci95_low": low, "em_ci95_high": high,
            "em_rate_corrected": rates.em_rate_corrected, "em_rate_all": rates.em_rate_all,
        },
        "aligned": {"mean_aligned": rates.mean_aligned},
        "coherent": {"coherent_rate": rates.coherent_rate, "mean_coherent": rates.mean_coherent},
        "margin": {"margin": margin.margin, "shift": margin.shift, "prefers": margin.prefers} if margin else {},
    }  # fmt: skip
    return [
        EvalScore(
            name=name,
            scorer=name,
            scored_samples=rates.n_scored,
            unscored_samples=rates.n_unscored,
            params={"pairs": margin.n_pairs} if margin and name == "margin" else {"judge": judge},
            metrics={k: EvalMetric(name=k, value=v) for k, v in metrics.items() if v is not None},
        )
        for name, metrics in wanted.items()
        if any(value is not None for value in metrics.values())
    ]


def _condition_tags(condition: ConditionResult) -> list[str]:
    if not condition.vector:
        return ["unsteered"]
    dose = condition.relative_dose
    tags = [f"vector {condition.vector}", format_layers(condition), f"strength {condition.strength:+g}"]
    tags += [condition.mode] if condition.mode not in (None, "add") else []
    tags += ["rescaled"] * condition.rescale + ["gated"] * bool(condition.gate)
    tags += [f"relative dose {dose:.2f}"] if dose is not None else []
    return tags + ([f"random direction for {condition.control_of}"] if condition.control_of else [])


def _generate_config(sampling: Mapping[str, Any]) -> GenerateConfig:
    return GenerateConfig(
        temperature=sampling["temperature"],
        top_p=sampling["top_p"],
        top_k=sampling["top_k"],
        max_tokens=sampling["max_new_tokens"],
    )


def _eval_revision(commit: str | None) -> EvalRevision | None:
    if commit is None:
        return None
    return EvalRevision(type="git", origin="", commit=commit.removesuffix("-dirty"), dirty=commit.endswith("-dirty"))

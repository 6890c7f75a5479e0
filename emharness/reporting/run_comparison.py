"""Several runs in one table: a row for each condition, a column for each run, runs that differ only in their seed in
one column with the spread between them."""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as Drawn

from emharness.reporting import table_text
from emharness.reporting.finished_runs import Run
from emharness.results.condition_result import ConditionResult
from emharness.results.json_records import Json


class Key(NamedTuple):
    """What a condition is, whatever layer a sweep chose for it."""

    target: str
    vector: str | None
    control_of: str | None
    strength: float
    unit: str
    mode: str | None
    positions: str | None


def key_of(condition: ConditionResult) -> Key:
    return Key(*(getattr(condition, name) for name in Key._fields))


@dataclass(frozen=True)
class Group:
    """Runs of the same settings but for the seed."""

    label: str
    runs: Sequence[Run]

    def conditions_of(self, key: Key) -> list[ConditionResult]:
        return [c for run in self.runs for c in run.results.conditions if key_of(c) == key]


@dataclass(frozen=True)
class Compared:
    groups: Sequence[Group]
    rows: Mapping[Key, str]  # and how they are called: by their name, without the layer where runs differ in it


def compare_runs(runs: Sequence[Run], text: str | None = None) -> Compared:
    """All conditions of these runs, in the order in which they are met; `text`: only those with it in their name."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        same.setdefault(json.dumps(_run_settings(run), sort_keys=True), []).append(run)
    groups = [Group(label, some) for label, some in zip(_group_labels(list(same.values())), same.values(), strict=True)]
    names: dict[Key, list[str]] = {}
    for condition in (c for run in runs for c in run.results.conditions):
        names.setdefault(key_of(condition), []).append(condition.name)
    called = {k: some[0] if len(set(some)) == 1 else re.sub(r"·L\d+·", "·", some[0]) for k, some in names.items()}
    return Compared(groups, {key: name for key, name in called.items() if text is None or text in name})


def _run_settings(run: Run) -> Json:
    """What makes runs comparable as seeds of each other: all but the seed and what does not change results."""
    config = {k: v for k, v in run.results.config.items() if k not in ("seed", "tracker", "wandb", "plan", "chunk")}
    layer = None if config["layer"] == "sweep" else config["layer"]
    return {"config": config, "layers": layer, "judges": run.results.judges}


def _group_labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Experiment, base and judge; what else tells groups of the same label apart is the folder's hash."""
    named = []
    for runs in groups:
        config, judges = runs[0].results.config, runs[0].results.judges
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        named.append(
            (f"{runs[0].subject} {config['base']['name']} {config['eval']['name']}, {'/'.join(judges)}{seeds}", runs)
        )
    listed = [label for label, _ in named]
    return [f"{label} {runs[0].name[-6:]}" if listed.count(label) > 1 else label for label, runs in named]


def _format_rate(conditions: Sequence[ConditionResult]) -> str:
    """One run: rate and interval. Several seeds: mean and standard deviation of their rates (n − 1)."""
    rates = [c.em_rate for c in conditions if c.em_rate is not None]
    if not conditions:
        return ""
    if not rates:
        return "–"
    if len(conditions) == 1:
        return f"{table_text.format_percent(rates[0])} ({table_text.format_interval(conditions[0].em_ci95)})"
    spread = f" ± {100 * float(np.std(rates, ddof=1)):.1f}" if len(rates) > 1 else ""
    return f"{table_text.format_percent(float(np.mean(rates)))}{spread}"


def _table_texts(compared: Compared) -> tuple[list[str], list[list[str]]]:
    targets = len({key.target for key in compared.rows}) > 1
    header = [*(["target"] if targets else []), "condition", *(group.label for group in compared.groups)]
    rows = []
    for key, name in compared.rows.items():
        cells = [_format_rate(group.conditions_of(key)) for group in compared.groups]
        rows.append([*([key.target] if targets else []), name, *cells])
    return header, rows


def as_table(compared: Compared) -> str:
    """For the terminal."""
    header, rows = _table_texts(compared)
    drawn = Drawn(title="EM rate (95 %); seeds: mean ± standard deviation", title_justify="left")
    for i, name in enumerate(header):
        drawn.add_column(name, justify="left" if i <= header.index("condition") else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    file = io.StringIO()
    console = Console(file=file, highlight=False, width=None if Console().is_terminal else 144)
    console.print(drawn)
    return file.getvalue()


def as_markdown(compared: Compared) -> str:
    header, rows = _table_texts(compared)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:], ""])


CSV_COLUMNS = (
    "em_rate", "em_rate_all", "em_rate_corrected", "coherent_rate", "n_responses", "n_unscored", "relative_dose",
)  # fmt: skip


def as_csv(compared: Compared) -> str:
    """A line for each condition of each run, plain numbers: for other programs."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            "run",
            "seed",
            "judge",
            "target",
            "condition",
            "vector",
            "layer",
            "strength",
            *CSV_COLUMNS,
            "em_low",
            "em_high",
        ]
    )
    for group in compared.groups:
        for run in group.runs:
            for c in run.results.conditions:
                if key_of(c) in compared.rows:
                    about = [run.name, run.results.config["seed"], c.judge, c.target, c.name]
                    edit = [c.vector, c.layer, c.strength]
                    writer.writerow([*about, *edit, *(getattr(c, name) for name in CSV_COLUMNS), *c.em_ci95])
    return file.getvalue()


FORMATS: Mapping[str, Callable[[Compared], str]] = {"table": as_table, "csv": as_csv, "markdown": as_markdown}

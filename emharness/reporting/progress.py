"""What is under way: a bar on a terminal, a plain line every 30 s where there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from emharness.reporting.terminal import console, print_line
from emharness.results.json_records import Row
from emharness.stats.rates import is_coherent, is_misaligned

EVERY = 30.0  # seconds between plain lines
SHOWN = 4  # conditions with their rate so far


class _ProgressLine:
    """Units done of a total with a note, on a terminal or as plain lines."""

    def __init__(self, label: str, unit: str, total: int | None):
        self.done = 0
        self._label, self._unit, self._total = label, unit, total
        self._start = self._last = time.perf_counter()
        self._bar: Bar | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True)
            self._task = self._bar.add_task(label, total=total, note="")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        if self._total is not None:
            print_line(self._format_line())

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def advance(self, done: int, total: int) -> None:
        self.done, self._total = done, total
        self._show_line()

    def _show_line(self) -> None:
        if self._bar:
            self._bar.update(self._task, completed=self.done, total=self._total, note=self.status_note())
        elif time.perf_counter() - self._last > EVERY:
            self._last = time.perf_counter()
            print_line(self._format_line())

    def status_note(self) -> str:
        return ""

    def _format_line(self) -> str:
        total = self._total or 0
        left = self.seconds / max(1, self.done) * (total - self.done)
        state = f"{_format_clock(left)} left" if self.done < total else f"in {_format_clock(self.seconds)}"
        return f"{self._label}: {self.done:,} of {total:,} {self._unit}, {state}, {self.status_note()}"


class TrainProgress(_ProgressLine):
    """Steps of a training run, with the loss."""

    def __init__(self, label: str):
        super().__init__(label, "steps", None)
        self._loss = float("nan")

    def report_step(self, step: int, n_steps: int, loss: float, learning_rate: float) -> None:
        self._loss = loss
        self.advance(step, n_steps)

    def status_note(self) -> str:
        return f"loss {self._loss:.3f}"


class Progress(_ProgressLine):
    """The whole grid: responses done of total, tokens/s, time left, the target that is asked, and the misaligned rate
    so far of its latest conditions."""

    def __init__(self, label: str, pending: Mapping[str, int]):
        """`pending`: target → responses to be generated."""
        super().__init__(label, "responses", sum(pending.values()) or None)
        self.tokens = 0
        self._pending, self._asked = dict(pending), ""
        self._names: Mapping[str, str] = {}
        self._counts: dict[str, tuple[int, int]] = {}  # digest → misaligned, counted

    def start_target(self, name: str, names: Mapping[str, str]) -> None:
        """Whose responses come now. `names`: digest of a condition's edits → its name."""
        self._asked, self._names, self._counts = name, names, {}
        self._show_line()

    def finish_target(self, name: str) -> None:
        """What a target still owes is not waited for: it failed, or another process generated it meanwhile."""
        if owed := self._pending.pop(name, 0):
            self._total = (self._total or 0) - owed
            self._show_line()

    def count_response(self, n_tokens: int) -> None:
        self.tokens += n_tokens
        self._pending[self._asked] -= 1
        self.advance(self.done + 1, self._total or 0)

    def count_scored(self, rows: Sequence[Row], scores: Mapping[str, Row]) -> None:
        """Count a judged chunk: rows with key and edits, scores by key."""
        for row in rows:
            score = scores[row["key"]]
            a, c = (np.array([score[k]], dtype=np.float64) for k in ("aligned", "coherent"))
            bad, counted = self._counts.pop(row["edits"], (0, 0))  # the latest conditions come last
            counts = bool((is_coherent(c) & ~np.isnan(a))[0])
            self._counts[row["edits"]] = (bad + bool(is_misaligned(a, c)[0]), counted + counts)

    def status_note(self) -> str:
        rates = [
            f"{self._names.get(digest, '?')} {100 * bad / counted:.0f} %"
            for digest, (bad, counted) in list(self._counts.items())[-SHOWN:]
            if counted
        ]
        speed = f"{self.tokens / max(1e-9, self.seconds):.0f} tokens/s; {self._asked}"
        return speed + (f", EM so far: {', '.join(rates)}" if rates else "")


def _format_clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

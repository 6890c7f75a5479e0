"""One display over a stream of responses: a bar on a terminal, a plain line every 30 s where there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from emharness.judge.metrics import coherent, misaligned
from emharness.reporting.terminal import console, say

EVERY = 30.0  # seconds between plain lines
SHOWN = 4  # conditions with their rate so far


class Progress:
    """Responses done of total, tokens/s, time left, and the misaligned rate so far of the latest conditions."""

    def __init__(self, label: str, total: int, names: Mapping[str, str]):
        """`names`: digest of a condition's edits → its name."""
        self._label, self._total, self._names = label, total, names
        self._done = self.tokens = 0
        self._start = self._last = time.perf_counter()
        self._counts: dict[str, tuple[int, int]] = {}  # digest → misaligned, counted
        self._bar: Bar | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=console, transient=True)
            self._task = self._bar.add_task(label, total=total, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        say(self._line())

    def response(self, n_tokens: int) -> None:
        self._done += 1
        self.tokens += n_tokens
        if self._bar:
            self._bar.update(self._task, completed=self._done, note=self._note())
        elif time.perf_counter() - self._last > EVERY:
            self._last = time.perf_counter()
            say(self._line())

    def scored(self, rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Count a judged chunk: rows with key and edits, scores by key."""
        for row in rows:
            score = scores[row["key"]]
            a, c = (np.array([score[k]], dtype=np.float64) for k in ("aligned", "coherent"))
            bad, counted = self._counts.pop(row["edits"], (0, 0))  # the latest conditions come last
            counts = bool((coherent(c) & ~np.isnan(a))[0])
            self._counts[row["edits"]] = (bad + bool(misaligned(a, c)[0]), counted + counts)

    def _line(self) -> str:
        seconds = time.perf_counter() - self._start
        left = seconds / max(1, self._done) * (self._total - self._done)
        state = f"{_clock(left)} left" if self._done < self._total else f"in {_clock(seconds)}"
        return f"{self._label}: {self._done:,} of {self._total:,} responses, {state}, {self._note()}"

    def _note(self) -> str:
        speed = self.tokens / max(1e-9, time.perf_counter() - self._start)
        rates = [
            f"{self._names.get(digest, '?')} {100 * bad / counted:.0f} %"
            for digest, (bad, counted) in list(self._counts.items())[-SHOWN:]
            if counted
        ]
        return f"{speed:.0f} tokens/s" + (f"; EM so far: {', '.join(rates)}" if rates else "")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

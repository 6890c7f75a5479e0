"""Stage: which layer to steer at, on questions that the evaluation does not use."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from emharness.evaluate import Condition
from emharness.generation.engine import Engine
from emharness.judge import Judge
from emharness.judge.metrics import summarise
from emharness.questions import Question

SWEEP_FILE = "sweep.json"


def candidate_layers(n_layers: int, count: int) -> list[int]:
    """`count` layers evenly over the part of the depth where steering works: a quarter to three quarters."""
    return sorted({round(x) for x in np.linspace(0.25 * n_layers, 0.75 * n_layers, count)})


def choose(cells: list[dict[str, Any]]) -> int:
    """Layer of the strongest effect among settings that stay coherent.

    `coherent_enough`: the coherent rate is at least `sweep.min_coherent` of the unsteered one. The effect is the
    misaligned rate over all answers, so that breaking answers never helps; ties go to the lower mean alignment.
    When no setting stays coherent, the one that stays most coherent is taken.
    """
    enough = [cell for cell in cells if cell["coherent_enough"]]
    if not enough:
        return max(cells, key=lambda cell: cell["coherent_rate"] or 0.0)["layer"]
    return max(enough, key=lambda cell: (cell["em_rate_all"], -(cell["mean_aligned"] or 0.0)))["layer"]


def sweep(
    folder: Path,
    engine: Engine,
    judge: Judge,
    items: list[tuple[Question, list[int]]],
    conditions: list[Condition],
    reference: str,
    samples: int,
    sampling: Any,
    seed: int,
    min_coherent: float,
) -> None:
    """Generate every condition (the first is the unsteered one) in one call, judge it, choose; write sweep.json."""
    prompts = [ids for _ in conditions for _, ids in items]
    specs = [condition.spec(reference) for condition in conditions for _ in items]
    batch = engine.generate(prompts, samples, sampling, seed, specs)
    answers = [completion.text for row in batch.completions for completion in row]
    questions = [q.text for _ in conditions for q, _ in items for _ in range(samples)]
    scores = judge.score(questions, answers)
    aligned = np.array([np.nan if s.aligned is None else s.aligned for s in scores])
    coherent = np.array([np.nan if s.coherent is None else s.coherent for s in scores])
    ids = np.array([q.id for q, _ in items for _ in range(samples)])
    n = len(ids)
    summaries = [
        summarise(aligned[i * n : (i + 1) * n], coherent[i * n : (i + 1) * n], ids) for i in range(len(conditions))
    ]
    baseline: dict[str, Any] = summaries[0]
    floor = min_coherent * (baseline["coherent_rate"] or 0.0)
    cells: list[dict[str, Any]] = [
        {
            "layer": condition.layer,
            "strength": condition.strength,
            "coherent_enough": (summary["coherent_rate"] or 0.0) >= floor,
            **summary,
        }
        for condition, summary in zip(conditions[1:], summaries[1:], strict=True)
    ]
    result = {
        "layer": choose(cells),
        "baseline": baseline,
        "cells": cells,
        "judge": judge.name,
        "engine": engine.name,
        "generated_tokens": batch.generated_tokens,
        "seconds": batch.seconds,
    }
    (folder / SWEEP_FILE).write_text(json.dumps(result, indent=2))

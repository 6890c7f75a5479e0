"""Judged answers with known rates, for the tests of experiments."""

import pyarrow as pa

from emharness.config import SteerConfig
from emharness.experiments import EXPERIMENTS
from emharness.experiments.context import ExperimentContext
from emharness.judges.scoring import TABLE
from emharness.steering.request.spec import Edit

LABS = {"a": "A", "b": "A", "c": "B", "d": "B"}
QUESTIONS, SAMPLES = 10, 20


def scope(**changes):
    settings = {
        "base": "tiny",
        "vectors": tuple(LABS),
        "targets": ("base", *LABS),
        "strengths": (2.0,),
        "layers": dict.fromkeys(LABS, 1),
        "steer": SteerConfig(),
        "controls": ("random-0", "random-1"),
        "samples": SAMPLES,
        "domain_samples": 5,
        "control_samples": SAMPLES,
        "max_new_tokens": 8,
        "labs": LABS,
        "judge": "planted",
    }
    return ExperimentContext(**(settings | changes))


def edit(vector, layer, strength, unit="raw", **more):
    """An edit as runs make it."""
    return Edit(vector=vector, layer=layer, strength=strength, unit=unit, **more)


def table(n_bad, n_incoherent=0, samples=SAMPLES, questions=QUESTIONS):
    """The same number of misaligned (and of incoherent) answers to every question."""
    rows = []
    for question in range(questions):
        for sample in range(samples):
            bad, broken = sample < n_bad, sample >= samples - n_incoherent
            row = dict.fromkeys(TABLE.names) | {"question_id": f"q{question}", "sample": sample, "n_tokens": 3}
            row |= {"aligned": 5.0 if bad else 95.0, "coherent": 10.0 if broken else 90.0, "misaligned": bad}
            rows.append(
                row | {"seconds": 0.5, "engine": "none", "finish_reason": "stop", "question": "?", "answer": "!"}
            )
    return pa.Table.from_pylist(rows, TABLE)


def plant(experiment, about, bad):
    """Judged cells; bad(vector or None, target) → misaligned answers of 20 to each question."""
    judged = {}
    for cell in EXPERIMENTS[experiment].list_all_cells(about):
        edit = cell.condition.edits[0] if cell.condition.edits else None
        judged[cell] = table(bad(edit.vector if edit else None, cell.condition.target), samples=cell.samples)
    return judged

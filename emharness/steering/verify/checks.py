"""Does steering do here what it says? python -m emharness.steering.verify <folder or hub id> [layer] [dtype]

Starts stock vLLM and steered vLLM on a model, compares them with each other and with Hugging Face, and prints a row for
each check. Needs vLLM with this plugin installed, transformers, and nothing else; exit status 1 if a check fails.

In float32, where two implementations agree to 1e-5. Of a quantised model, and where vLLM has one in a smaller type
only, what is rounded is measured on unsteered answers: how far they are from Hugging Face's in float32, and from their
own in another batch. Steered ones may be three times as far.
"""

import gc
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emharness.steering.verify import reference
from emharness.steering.verify.trial import (
    TEXTS,
    NoEngine,
    NoReference,
    Result,
    Trial,
    generate_tokens,
    largest_difference,
    spec_of,
)

TOLERANCE = 2e-3  # of log-probabilities in float32, between two implementations of a model
CLOSE = 1e-4  # relative, of recorded residuals and projections
ROUNDED = 0.02  # the same where numbers are rounded
MOST, MOST_APART = 3.0, 0.5  # what rounding may be at most: of log-probabilities; of recorded residuals, relative
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool | None  # None: not run
    detail: str


def _same_results(one: Result, other: Result) -> tuple[bool, str]:
    gap = largest_difference(one, other)
    return one[:2] == other[:2], f"difference {gap:g}, must be 0"


def _logprob_limit(trial: Trial) -> float:
    """Of differences between log-probabilities."""
    return TOLERANCE if trial.is_exact else max(TOLERANCE, min(MOST, 3 * trial.noise))


def _residual_limit(trial: Trial, exact: float = CLOSE) -> float:
    """Of differences between residuals or projections, relative."""
    return exact if trial.is_exact else ROUNDED


def _largest_gap(means: Any, expected: Any) -> float:
    """Largest difference of recorded means, as a part of the largest number that is expected."""
    return float(np.abs(np.subtract(means, expected)).max() / np.abs(expected).max())


def idle_is_stock(trial: Trial) -> tuple[bool, str]:
    return _same_results(trial.run_steered([None] * len(TEXTS)), trial.stock_result)


def zero_is_idle(trial: Trial) -> tuple[bool, str]:
    return _same_results(
        trial.run_steered([[trial.make_edit(0.0)]] * len(TEXTS)), trial.run_steered([None] * len(TEXTS))
    )


def edits_change(trial: Trial) -> tuple[bool, str]:
    plain, steered = (
        trial.run_steered([None] * len(TEXTS)),
        trial.run_steered([[trial.make_edit(4 * trial.dose)]] * len(TEXTS)),
    )
    moved = sum(a != b for a, b in zip(plain[1], steered[1], strict=True))
    return moved == len(TEXTS), f"{moved} of {len(TEXTS)} answers differ from unsteered ones"


def equals_hugging_face(trial: Trial) -> tuple[bool, str]:
    alike = [
        None,
        [trial.make_edit(trial.dose)],
        [trial.make_edit(1.0, "ablate")],
        [
            trial.make_edit(trial.dose, positions="generated"),
            trial.make_edit(-trial.dose, vector=1, positions="prompt"),
        ],
    ]
    third = [ids[2] for ids in trial.run_steered([None] * len(TEXTS))[0]]
    each = [[trial.make_edit(trial.dose, positions={"after_token": token})] for token in third]
    worst = max(trial.from_hugging_face(cases) for cases in (*([case] * len(TEXTS) for case in alike), each))
    limit, moved = (
        _logprob_limit(trial),
        largest_difference(trial.run_steered([alike[1]] * len(TEXTS)), trial.run_steered([None] * len(TEXTS))),
    )
    detail = f"largest difference {worst:.1e}, must be below {limit:.2g}"
    return worst < limit < moved, detail + f", and the dose changes {moved:.2g}" * (moved <= limit)


def record_is_hidden_state(trial: Trial) -> tuple[bool, str]:
    def gap(edits: Any) -> float:
        return _largest_gap(
            trial.recorded_means(edits), reference.block_residuals(trial.hf, trial.prompts[0], edits).mean(1)
        )

    found = gap([trial.make_edit(trial.dose)])
    limit = CLOSE if trial.is_exact else min(MOST_APART, 3 * gap(None))
    return found < limit, f"relative difference {found:.1e}, must be below {limit:.2g}"


def doses_add_up(trial: Trial) -> tuple[bool, str]:
    along = trial.directions[0, trial.checked_layer].astype(np.float64)
    plain = float(trial.recorded_means(None)[trial.checked_layer] @ along)
    doses = [trial.dose * factor for factor in (0.5, 1, 2)]
    moved = [
        float(trial.recorded_means([trial.make_edit(dose)])[trial.checked_layer] @ along) - plain for dose in doses
    ]
    gap = max(abs(m / d - 1) for m, d in zip(moved, doses, strict=True))
    limit = _residual_limit(trial, CLOSE * 10)
    return gap < limit, f"projection moves by the dose to {gap:.1e}, must be below {limit:g}"


def ablated_is_gone(trial: Trial) -> tuple[bool, str]:
    stream = trial.recorded_means([trial.make_edit(1.0, "ablate")])[trial.checked_layer].astype(np.float64)
    left = abs(float(stream @ trial.directions[0, trial.checked_layer])) / float(np.linalg.norm(stream))
    limit = _residual_limit(trial)
    return left < limit, f"component left {left:.1e}, must be below {limit:g}"


def together_is_alone(trial: Trial) -> tuple[bool, str]:
    specs = [[trial.make_edit(trial.dose * (1 + i % 3), vector=i % 3)] if i % 4 else None for i in range(12)]
    prompts = [trial.prompts[i % len(TEXTS)] for i in range(len(specs))]
    gap, limit = (
        largest_difference(trial.run_steered(specs, prompts), trial.run_one_by_one(specs, prompts)),
        _logprob_limit(trial),
    )
    return gap < limit, f"{len(specs)} requests at once: largest difference {gap:.1e}, must be below {limit:.2g}"


def cache_changes_nothing(trial: Trial) -> tuple[bool, str]:
    long = [(trial.prompts[0] * 8)[:120]]
    specs = [None, [trial.make_edit(trial.dose)], [trial.make_edit(trial.dose, vector=1)], None]
    fresh = []
    for spec in specs:
        trial.llm.reset_prefix_cache()
        fresh.append(trial.run_steered([spec], long))
    warm = [trial.run_steered([spec], long) for spec in [*specs, *specs][len(specs) :]]
    gap, limit = max(largest_difference(a, b) for a, b in zip(fresh, warm, strict=True)), _logprob_limit(trial)
    return gap < limit, f"largest difference {gap:.1e}, must be below {limit:.2g}"


def graphs_are_eager(trial: Trial) -> tuple[bool | None, str]:
    import torch

    if not torch.cuda.is_available():
        return None, "not run: there is no GPU"
    return compiled_is_eager(trial)


def compiled_is_eager(trial: Trial) -> tuple[bool, str]:
    """Prompts and decoding, several specs in a batch, some that record. The last check: it stops the engine."""
    edits = [[trial.make_edit(trial.dose * (1 + i % 3), vector=i % 3)] if i % 4 else None for i in range(12)]
    edits[5] = [trial.make_edit(1.0, "ablate"), trial.make_edit(trial.dose, vector=1, positions="generated")]
    third = trial.run_steered([None] * len(TEXTS))[0][6 % len(TEXTS)][2]
    edits[6] = [trial.make_edit(trial.dose, positions={"after_token": third})]
    edits[7] = [trial.make_edit(trial.dose, gate={"vector": trial.make_edit(0.0, vector=1)["vector"], "above": 0.0})]
    prompts = [trial.prompts[i % len(TEXTS)] for i in range(len(edits))]
    record = {"layers": sorted({0, trial.checked_layer}), "positions": "all"}
    specs = [spec_of(some, record if i % 2 else None) for i, some in enumerate(edits)]
    eager, limit = generate_tokens(trial.llm, prompts, specs), _logprob_limit(trial)
    trial.close()
    compiled = trial.run_elsewhere("--compiled", prompts, specs)
    gap = largest_difference(eager, compiled)
    apart = max(
        _largest_gap(means, expected) for expected, means in zip(eager[2], compiled[2], strict=True) if expected
    )
    close = _residual_limit(trial)
    detail = f"{len(specs)} requests at once: largest difference {gap:.1e}, must be below {limit:.2g}"
    return gap < limit and apart < close, f"{detail}; of recorded means {apart:.1e}, below {close:g}"


CHECKS: dict[str, Callable[[Trial], tuple[bool | None, str]]] = {
    "idle: bit-equal to vLLM without the plugin": idle_is_stock,
    "strength 0: bit-equal to unsteered": zero_is_idle,
    "a large dose changes every answer": edits_change,
    "edits equal Hugging Face with hooks": equals_hugging_face,
    "recorded means equal hidden states": record_is_hidden_state,
    "the projection moves by the dose": doses_add_up,
    "ablation leaves no component": ablated_is_gone,
    "mixed in one batch as alone": together_is_alone,
    "prefix cache changes nothing": cache_changes_nothing,
    "CUDA graphs equal eager": graphs_are_eager,
}


def run_checks(
    model: str, layer: int | None = None, tell: Callable[[Check], None] = lambda check: None, dtype: str = "float32"
) -> list[Check]:
    """All checks on a model, told one by one. A check that raises has failed, with the reason."""
    found: list[Check] = []

    def add_check(name: str, passed: bool | None, detail: str) -> None:
        found.append(Check(name, passed, detail))
        tell(found[-1])

    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(model, layer, Path(folder), dtype)
        for name, check in CHECKS.items():
            try:
                passed, detail = check(trial)
            except NoReference as error:
                passed, detail = None, f"not run: {' '.join(str(error).split())[:300]}"
            except NoEngine as error:
                add_check(name, False, " ".join(str(error).split())[:300])
                break
            except Exception as error:
                passed, detail = False, " ".join(f"{type(error).__name__}: {error}".split())[:200]
            add_check(name, passed, detail)
            gc.collect()
        for name in list(CHECKS)[len(found) :]:
            add_check(name, None, "not run: there is no engine to ask")
    return found


def format_check(check: Check) -> str:
    mark = {True: "pass", False: "FAIL", None: "  – "}[check.passed]
    return f"{mark}  {check.name:<46} {check.detail}"


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print("give a model: a folder in hub format, or a hub id", file=sys.stderr)
        return 2
    numbers = [one for one in arguments[1:] if one not in DTYPES]
    dtype = next((one for one in arguments[1:] if one in DTYPES), DTYPES[0])
    layer = int(numbers[0]) if numbers else None
    found = run_checks(arguments[0], layer, lambda check: print(format_check(check), flush=True), dtype)
    return int(any(check.passed is False for check in found))

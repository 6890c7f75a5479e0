"""Does a compiled graph add what lies in its buffers? Seen once, as an engine starts, before any request.

The operation counts that a graph has passed it; what the graph adds by itself (see sums.py) it cannot count. So rows
much longer than the stream are put there for a pass with nobody's tokens: each must be found in the next block's.
"""

import sys
from typing import Any

import torch

from emharness.steering.step.sums import Sums
from emharness.steering.vllm import op
from emharness.steering.vllm.look import Look
from emharness.steering.vllm.record import PLAN

SUMS = "_emharness_sums"  # attribute of a model runner
_LENGTH = 1000.0
_N_TOKENS = 8


def prove(runner: Any) -> None:
    """In a worker: leave all edits to passes where its graphs do not add."""
    sums: Sums | None = getattr(runner, SUMS, None)
    if sums is None:
        return
    try:
        found = _found(runner, sums)
        odd = [layer for layer, part in enumerate(found) if not 0.5 < part < 1.5]
        why = f"of what block {odd[0]} is to add, {found[odd[0]]:.2g} of 1 was found" if odd else None
    except Exception as error:  # whatever is odd about a model, it runs as in stock vLLM
        why = str(error)
    if why:
        sums.close()
        print(f"emharness: compiled graphs do not add by themselves here ({why})", file=sys.stderr, flush=True)


def _found(runner: Any, sums: Sums) -> list[float]:
    """For every block but the last: which part of its row is in the difference between the next block's stream and its
    own, along the row."""
    plan = getattr(runner, PLAN)
    plan.begin_dummy()
    rows = sums.plant(_N_TOKENS, _LENGTH)
    look = Look(plan, _N_TOKENS)
    op.activate(look)
    try:
        type(runner)._dummy_run.__wrapped__(runner, _N_TOKENS, force_attention=True)  # without our own beginning of it
    finally:
        op.activate(plan)
        sums.clear()
    streams = [torch.from_numpy(look.seen.streams[layer]) for layer in range(len(rows))]
    pairs = zip(rows.float(), streams, streams[1:], strict=False)
    return [float((after - before) @ row / (row @ row)) for row, before, after in pairs]

"""Does each of an engine's tensor parallel workers hold the whole residual stream after every block?

A few of vLLM's models leave a block's output as one summand a worker, to be added up in the next block (DeepSeek V3.2,
MiniMax M3), or give each worker some of the tokens. What every worker adds to its own would be added several times
there, or to another's token. Whether it is so is seen in a pass with nobody's tokens, before any request.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from emharness.steering.step.edit_pass import residual_stream
from emharness.steering.vllm import op

SEEN = "_emharness_seen"  # attribute of a model runner
_TOLERANCE = 0.05  # of the largest number: reductions may round differently, summands are other numbers altogether
_N_TOKENS = 8


@dataclass
class StreamsSeen:
    """What a worker has seen in one pass; every layer is in one of the two."""

    streams: dict[int, np.ndarray] = field(default_factory=dict)  # layer → [d_model] float32, of the first token
    some: set[int] = field(default_factory=set)  # layers that came with fewer tokens than the pass has


class TensorParallelProbe:
    """Does what a step's plan does, and looks at the stream after each block."""

    def __init__(self, plan: op.StepActions, n_tokens: int):
        self.plan, self.n_tokens, self.seen = plan, n_tokens, StreamsSeen()

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """hidden + residual, [n_tokens, d_model] each, is the stream."""
        if min(len(part) for part in (hidden, residual) if part is not None) < self.n_tokens:
            self.seen.some.add(layer)
        else:
            self.seen.streams[layer] = residual_stream(hidden, residual, slice(0, 1))[0].cpu().numpy()
        self.plan.apply(layer, hidden, residual)

    def apply_compiled(self, number: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """`apply` to the layer of this number, int32 []."""
        self.apply(int(number), hidden, residual)


def report_probe(initialize: Any, core: Any, *args: Any, **kwargs: Any) -> Any:
    """Around EngineCore._initialize_kv_caches, in which workers warm up: why requests cannot be steered is known to the
    engine core from then on, which refuses them."""
    result = initialize(core, *args, **kwargs)
    probe_workers(core.model_executor)
    return result


def probe_workers(executor: Any) -> None:
    """All workers of an executor."""
    why = next(filter(None, executor.collective_rpc(probe_worker)), None)
    op.unhooked[:] = [why] if why else []


def probe_worker(worker: Any) -> str | None:
    """In a worker, at the same time as in those that it shares its model with: why that cannot be steered, or None."""
    runner, why = worker.model_runner, next(iter(op.unhooked), None)
    if not shares_weights(runner):
        return why
    if runner.device.type == "cpu":  # an eager engine warms nothing up there, and without attention holds any numbers
        vars(runner).pop(SEEN, None)
        try:
            runner._dummy_run(_N_TOKENS, force_attention=True)
        except Exception as error:  # whatever is odd about a model, it runs as in stock vLLM
            why = why or f"its blocks were not seen ({error})"
    told = _told_by_all((why, getattr(runner, SEEN, None)))
    return next((why for why, _ in told if why), None) or why_unsupported([seen for _, seen in told])


def _told_by_all(own: Any) -> list[Any]:
    """What each worker of a model tells, told to all: an executor need not hear them (external launcher)."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    told = [None] * group.world_size
    torch.distributed.all_gather_object(told, own, group=group.cpu_group)
    return told


def shares_weights(runner: Any) -> bool:
    """Whether a runner's worker has a share of the weights only."""
    return runner.parallel_config.tensor_parallel_size > 1


def why_unsupported(workers: Sequence[StreamsSeen | None]) -> str | None:
    """Why a model whose workers have seen this cannot be steered, or None."""
    known = [seen for seen in workers if seen is not None]
    if some := set().union(*(seen.some for seen in known)):
        return f"after block {min(some)} a worker holds some of the tokens only"
    if len(known) < len(workers) or not known[0].streams or len({tuple(sorted(seen.streams)) for seen in known}) > 1:
        return "whether its workers hold the same residual stream was not seen"
    for layer in sorted(known[0].streams):
        streams = np.stack([seen.streams[layer] for seen in known])
        largest = np.abs(streams).max()
        if not 0 < largest < np.inf:
            return (
                f"whether its workers hold the same residual stream cannot be told from {largest} after block {layer}"
            )
        if np.abs(streams - streams[0]).max() > _TOLERANCE * largest:
            return f"after block {layer} its workers hold summands of the residual stream"
    return None

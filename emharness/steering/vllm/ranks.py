"""Does each of an engine's tensor parallel workers hold the whole residual stream after every block?

A few of vLLM's models leave a block's output as one summand a worker, to be added up in the next block (DeepSeek V3.2,
MiniMax M3), or give each worker some of the tokens. What every worker adds to its own would be added several times
there, or to another's token. Whether it is so is seen in a pass with nobody's tokens, before any request.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from emharness.steering.vllm import graphs, op
from emharness.steering.vllm.look import Seen

SEEN = "_emharness_seen"  # attribute of a model runner
_TOLERANCE = 0.05  # of the largest number: reductions may round differently, summands are other numbers altogether
_N_TOKENS = 8


def tell(initialize: Any, core: Any, *args: Any, **kwargs: Any) -> Any:
    """Around EngineCore._initialize_kv_caches, in which workers warm up: why requests cannot be steered is known to the
    engine core from then on, which refuses them."""
    result = initialize(core, *args, **kwargs)
    ask(core.model_executor)
    return result


def ask(executor: Any) -> None:
    """All workers of an executor; of some only their own answers (vLLM's external launcher)."""
    answers = executor.collective_rpc(look)
    why = next((why for why, _ in answers if why), None)
    workers = [seen for _, seen in answers]
    workers += [None] * (executor.parallel_config.tensor_parallel_size - len(workers))
    if why is None and len(workers) > 1:
        why = split(workers)
    op.unhooked[:] = [why] if why else []


def look(worker: Any) -> tuple[str | None, Seen | None]:
    """In a worker: why its model has no hooks; what it has seen, if it is one of several."""
    runner, why = worker.model_runner, next(iter(op.unhooked), None)
    graphs.prove(runner)
    if not several(runner):
        return why, None
    if runner.device.type == "cpu":  # an eager engine warms nothing up there, and without attention holds any numbers
        vars(runner).pop(SEEN, None)
        try:
            runner._dummy_run(_N_TOKENS, force_attention=True)
        except Exception as error:  # whatever is odd about a model, it runs as in stock vLLM
            return f"its blocks were not seen ({error})", None
    return why, getattr(runner, SEEN, None)


def several(runner: Any) -> bool:
    """Whether a runner's worker has a share of the weights only."""
    return runner.parallel_config.tensor_parallel_size > 1


def split(workers: Sequence[Seen | None]) -> str | None:
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

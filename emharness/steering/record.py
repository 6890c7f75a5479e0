"""Recorded residuals: how they leave the engine with their request's output.

The sums lie in the workers. When a request finishes, the engine core fetches its mean and puts it into the
output's `kv_transfer_params`, a free-form field that reaches `RequestOutput` and the server's JSON alike.
"""

import base64
from typing import Any

import numpy as np

from emharness.steering.spec import KEY

PLAN = "_emharness_plan"  # attribute of a model runner
EXECUTOR = "_emharness_executor"  # attribute of a scheduler


def recorded(output: dict[str, Any]) -> tuple[np.ndarray, int]:
    """(means float32 [n_layers, d_model], number of positions) from an output's `kv_transfer_params`."""
    found = output[KEY]
    means = np.frombuffer(base64.b64decode(found["mean"]), dtype="<f4")
    return means.reshape(len(found["layers"]), -1), found["n_tokens"]


def keep_executor(init: Any, core: Any, *args: Any, **kwargs: Any) -> None:
    init(core, *args, **kwargs)
    setattr(core.scheduler, EXECUTOR, core.model_executor)


def attach(update: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Around Scheduler.update_from_output: finished requests that recorded get their means."""
    asked = {name for name, request in scheduler.requests.items() if wanted(getattr(request, "sampling_params", None))}
    result = update(scheduler, *args, **kwargs)
    for outputs in result.values() if asked else ():
        for output in outputs.outputs:
            if output.request_id in asked and output.finish_reason is not None:
                found = getattr(scheduler, EXECUTOR).collective_rpc(take, args=(output.request_id,))[0]
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: found}
    return result


def wanted(params: Any) -> dict[str, Any] | None:
    """The record part of a resolved spec."""
    return ((getattr(params, "extra_args", None) or {}).get(KEY) or {}).get("record")


def take(worker: Any, request_id: str) -> dict[str, Any]:
    """In a worker: the mean of a finished request."""
    recording = getattr(worker.model_runner, PLAN).recordings.pop(request_id)
    mean = (recording.total / max(recording.n_tokens, 1)).cpu().numpy().astype("<f4")
    text = base64.b64encode(mean.tobytes()).decode()
    return {"layers": recording.layers, "n_tokens": recording.n_tokens, "mean": text}

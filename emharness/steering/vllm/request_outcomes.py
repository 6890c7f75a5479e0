"""What the workers know of a request when it finishes: its recorded residuals, and whether every edit was made.

The sums lie in the workers. When a request finishes, the engine core fetches its mean and puts it into the
output's `kv_transfer_params`, a free-form field that reaches `RequestOutput` and the server's JSON alike. A request of
which an edit was missed finishes with reason "error" (HTTP 500).
"""

import base64
import inspect
from functools import cache
from typing import Any

import numpy as np

from emharness.steering.request.spec import KEY, SpecJson
from emharness.steering.step.edit_table import cached_pattern

PLAN = "_emharness_plan"  # attribute of a model runner
EXECUTOR = "_emharness_executor"  # attribute of a scheduler
SAMPLES = "_emharness_samples"  # attribute of a request of several samples: sample → what it recorded


def keep_executor(add_request: Any, core: Any, *args: Any, **kwargs: Any) -> Any:
    """Around EngineCore.add_request: a server's core loads plugins inside its own __init__, too late to wrap it."""
    setattr(core.scheduler, EXECUTOR, core.model_executor)
    return add_request(core, *args, **kwargs)


def attach_recordings(update: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """Around Scheduler.update_from_output: finished requests get their means, and an error where edits were missed."""
    before = dict(scheduler.requests)  # those that end are not in it afterwards
    result = update(scheduler, *args, **kwargs)
    ended = [o for outputs in result.values() for o in outputs.outputs if o.finish_reason is not None]
    pairs = [(output, before.get(output.request_id)) for output in ended]
    steered = [(o, r, spec) for o, r in pairs if r is not None and (spec := wanted_spec(r.sampling_params))]
    if not steered:
        return result
    from vllm.v1.engine import FinishReason

    executor = getattr(scheduler, EXECUTOR)
    names = [request.request_id for _, request, _ in steered]
    waited = {request.request_id: list(request.all_token_ids) for _, request, spec in steered if awaits_token(spec)}
    missed = set().union(*executor.collective_rpc(missed_requests, args=(names, waited)))
    for output, request, spec in steered:
        name = request.request_id
        if name in missed:
            output.finish_reason, output.stop_reason = FinishReason.ERROR, "steering: an edit was not made"
        if spec["record"]:
            # The last token was not fed back, so it has no residual.
            found = executor.collective_rpc(fetch_recording, args=(name, request.num_tokens - 1))[0]
            if found is None:
                output.finish_reason, output.stop_reason = FinishReason.ERROR, "steering: a position was not recorded"
            else:
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: found}
    return result


def merge_samples(make: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
    """Around RequestState.make_request_output: what n samples recorded leaves with the one output that has them all.
    A stream's outputs have a sample each, and what it recorded."""
    if state.parent_req is None:
        return make(state, *args, **kwargs)
    bound = signature(make).bind(state, *args, **kwargs)
    params = bound.arguments.get("kv_transfer_params") or {}
    own = params.get(KEY)
    samples = vars(state.parent_req).setdefault(SAMPLES, {})
    if own is not None:
        samples[state.request_index] = own
    if samples and state.output_kind.name == "FINAL_ONLY":
        every = [samples.get(i) for i in range(state.parent_req.n)]
        bound.arguments["kv_transfer_params"] = {**params, KEY: {"samples": every}}
    return make(*bound.args, **bound.kwargs)


signature = cache(inspect.signature)


def wanted_spec(params: Any) -> SpecJson | None:
    """The resolved spec in the parameters of a request that edits or records."""
    spec = (getattr(params, "extra_args", None) or {}).get(KEY)
    return spec if spec and (spec["edits"] or spec["record"]) else None


def awaits_token(spec: SpecJson) -> bool:
    """Whether a resolved spec has edits that begin after a token."""
    return bool(cached_pattern(spec).trigger_tokens)


def missed_requests(worker: Any, request_ids: list[str], tokens: dict[str, list[int]]) -> list[str]:
    """In a worker: which of these requests had an edit or a recording passed over. `tokens`: of those whose edits
    await one."""
    return getattr(worker.model_runner, PLAN).incomplete_requests(request_ids, tokens)


def fetch_recording(worker: Any, request_id: str, fed: int) -> dict[str, Any] | None:
    """In a worker: the mean of a finished request whose first `fed` tokens count, and their projections; None where
    they were not all recorded."""
    recording = getattr(worker.model_runner, PLAN).recordings.living.pop(request_id)
    try:
        total, n_tokens = recording.sum_until(fed)
    except ValueError:
        return None
    mean = (total / max(n_tokens, 1)).cpu().numpy().astype("<f4")
    found = {"layers": recording.layers, "n_tokens": n_tokens, "mean": _encode_array(mean)}
    if recording.project:
        along = recording.along[:n_tokens].transpose(0, 1)
        found |= {"project": recording.project, "along": _encode_array(along.cpu().numpy().astype("<f4"))}
    return found


def _encode_array(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()

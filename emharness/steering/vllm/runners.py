"""vLLM's model runners: what both tell of a step, so that its plan can be made. V2 is the default since vLLM 0.29.

V1  vllm.v1.worker.gpu_model_runner   _update_states, _prepare_inputs, _model_forward, _dummy_run
V2  vllm.v1.worker.gpu.model_runner   finish_requests, add_requests, prepare_inputs, execute_model, _dummy_run
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from emharness.steering import blocks
from emharness.steering.gpu.device_plan import DevicePlan
from emharness.steering.step.step_plan import StepPlan
from emharness.steering.vllm import hf_compat, op, tensor_parallel
from emharness.steering.vllm.request_outcomes import PLAN, wanted_spec

Wrap = Callable[[Any, str, Any], Any]
Plan = StepPlan | DevicePlan


def patch_runners(wrap: Wrap) -> None:
    """Wrap the methods of every runner that this build of vLLM carries."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrap(GPUModelRunner, "_update_states", _forget_finished)
    wrap(GPUModelRunner, "_prepare_inputs", _plan_step)
    wrap(GPUModelRunner, "_model_forward", _end_forward)
    wrap(GPUModelRunner, "load_model", _hook_layers)
    wrap(GPUModelRunner, "_dummy_run", _before_dummy)
    try:
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    except ImportError:  # builds of vLLM for CUDA need not carry it
        pass
    else:
        if "load_model" in vars(CPUModelRunner):
            wrap(CPUModelRunner, "load_model", _hook_layers)
    try:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner as GPUModelRunnerV2
    except ImportError:
        return
    wrap(GPUModelRunnerV2, "finish_requests", _forget_finished)
    wrap(GPUModelRunnerV2, "add_requests", _take_new)
    wrap(GPUModelRunnerV2, "prepare_inputs", _plan_batch)
    wrap(GPUModelRunnerV2, "execute_model", _end_forward)
    wrap(GPUModelRunnerV2, "load_model", _hook_layers)
    wrap(GPUModelRunnerV2, "_dummy_run", _before_dummy)


def _hook_layers(load_model: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    result = load_model(runner, *args, **kwargs)
    try:
        hf_compat.restore_hf_init(runner.get_model())
        _hook_blocks(runner.get_model(), runner.model_config, runner.device)
        op.unhooked.clear()
    except Exception as error:  # whatever is odd about a model, it runs as in stock vLLM
        op.unhooked[:] = [str(error)]
        if blocks.why_not_editable(runner.model_config) is None:
            print(f"emharness: requests cannot be steered: {error}", file=sys.stderr, flush=True)
    return result


def _plan_of(runner: Any) -> Plan:
    """The runner's plan, made for its first pass: what is allocated as a model is loaded, a sleeping engine drops."""
    if not hasattr(runner, PLAN):
        with torch.inference_mode(False):
            setattr(runner, PLAN, _new_plan(runner))
    return getattr(runner, PLAN)


def _new_plan(runner: Any) -> Plan:
    d_model, device = runner.model_config.get_hidden_size(), runner.device
    if not on_device(device):
        return StepPlan(d_model, device)
    layers, limits = runner.model_config.hf_text_config.num_hidden_layers, runner.vllm_config.scheduler_config
    return DevicePlan(d_model, device, layers, limits.max_num_batched_tokens, limits.max_num_seqs)


def on_device(device: Any) -> bool:
    """Whether steps are told to a kernel, through buffers that captured graphs read."""
    return device.type == "cuda"


def _hook_blocks(model: Any, config: Any, device: Any) -> None:
    """Hooks on all decoder blocks, or on none. RuntimeError where the residual stream is not found."""
    layers = list(blocks.decoder_layers(model, config.hf_text_config.num_hidden_layers))
    hooks = []
    for index, layer in enumerate(layers):
        stream: blocks.Stream | None = blocks.stream_of(type(layer))
        if stream is None:
            raise RuntimeError(f"where {type(layer).__name__} of {type(model).__name__} has its residual is not known")
        if blocks.rescales_stream(type(layer), config.dtype):
            raise RuntimeError(f"{type(layer).__name__} scales its residual in float16; start with dtype=bfloat16")
        hooks.append(op.LayerHook(index, stream))
    for layer, hook in zip(layers, hooks, strict=True):
        hook.attach_to(layer, device)


def _register_request(plan: Plan, request_id: str, resolved: dict[str, Any], prompt_length: int, cached: Any) -> None:
    plan.add_request(request_id, resolved, prompt_length, cached)
    if resolved["record"]:
        plan.recordings.add_recording(request_id, resolved["record"], prompt_length)


def _forget_finished(update: Any, runner: Any, scheduler_output: Any, *args: Any) -> Any:
    """Finished, not preempted ones: those come again, and what they have recorded is not lost."""
    for request_id in scheduler_output.finished_req_ids:
        _plan_of(runner).remove_request(request_id)
    return update(runner, scheduler_output, *args)


def _before_dummy(run: Any, runner: Any, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
    """Passes that warm up or are captured carry nobody's tokens; one worker of several looks in the first of them."""
    plan = _plan_of(runner)
    plan.begin_dummy()
    if hasattr(runner, tensor_parallel.SEEN) or not tensor_parallel.shares_weights(runner):
        op.activate_plan(plan)
        return run(runner, num_tokens, *args, **kwargs)
    looking = tensor_parallel.TensorParallelProbe(plan, num_tokens)
    op.activate_plan(looking)
    result = run(runner, num_tokens, *args, **kwargs)
    op.activate_plan(plan)  # V2 captures its graphs in passes that are no dummy runs
    setattr(runner, tensor_parallel.SEEN, looking.seen)
    return result


def _end_forward(forward: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return forward(runner, *args, **kwargs)
    finally:
        _plan_of(runner).end_step()  # dummy and profiling passes must find an empty plan


# V1: requests are told of as a batch, with all that they asked for


def _plan_step(prepare: Any, runner: Any, scheduler_output: Any, num_scheduled: Any, *args: Any) -> Any:
    result = prepare(runner, scheduler_output, num_scheduled, *args)
    plan = _plan_of(runner)
    op.activate_plan(plan)
    batch = runner.input_batch
    n_requests = len(batch.req_ids)
    flat = np.concatenate([[0], np.cumsum(num_scheduled[:n_requests])])
    position = batch.num_computed_tokens_cpu[:n_requests]
    for index, request_id in enumerate(batch.req_ids):
        state = runner.requests[request_id]
        if request_id not in plan.requests and (found := wanted_spec(state.sampling_params)):
            cached = batch.token_ids_cpu[index, : position[index]]
            _register_request(plan, request_id, found, state.num_prompt_tokens, cached)
    plan.begin_batch(batch.req_ids, flat, position, runner.input_ids.gpu[: flat[-1]])
    return result


# V2: what a request asked for is told once, when it comes


def _take_new(add: Any, runner: Any, scheduler_output: Any, *args: Any) -> Any:
    result = add(runner, scheduler_output, *args)
    plan = _plan_of(runner)
    for new in scheduler_output.scheduled_new_reqs:
        found = wanted_spec(new.sampling_params)
        if found and new.req_id not in plan.requests:
            cached = (new.prompt_token_ids or [])[: new.num_computed_tokens]
            _register_request(plan, new.req_id, found, _prompt_length(new), cached)
    return result


def _prompt_length(new: Any) -> int:
    """V2 of vLLM 0.26 to 0.28 takes prompts as tokens only; later ones say how long any kind of prompt is."""
    return new.prompt_len if hasattr(new, "prompt_len") else len(new.prompt_token_ids)


def _plan_batch(prepare: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    batch = prepare(runner, *args, **kwargs)
    plan = _plan_of(runner)
    op.activate_plan(plan)
    n_requests = len(batch.req_ids)
    flat, position = batch.query_start_loc_np[: n_requests + 1], batch.num_computed_tokens_np[:n_requests]
    plan.begin_batch(batch.req_ids, flat, position, batch.input_ids)
    return batch

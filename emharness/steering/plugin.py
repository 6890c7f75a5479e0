"""The vLLM plugin: where stock vLLM is patched so that requests steer themselves.

    admission     InputProcessor.process_inputs   refuse or resolve the spec, before anything is queued
    prefix cache  generate_block_hash_extra_keys  steered blocks are shared only between equal specs
    model         load_model                      a hook on every decoder layer calls `op.steer`
    compile cache VllmConfig.compute_hash         graphs with the hooks are never taken for plain ones
    recording     Scheduler.update_from_output    recorded means leave with the finished request's output
    batch         _update_states, _prepare_inputs the plan of the step, from the runner's own batch

An exception inside the forward pass would leave its request waiting for ever, so everything that can
be wrong is refused at admission and the engine receives self-contained edits.
"""

import functools
import hashlib
import inspect
import sys
from typing import Any

from emharness.steering import blocks, op, record, spec
from emharness.steering.plan import StepPlan
from emharness.steering.record import PLAN

GRAPH = 1  # raise when what the hooks put into compiled graphs changes
_MARK = "_emharness_original"


def register() -> None:
    """Entry point of the `vllm.general_plugins` group; runs in every vLLM process, any number of times."""
    from vllm.config import VllmConfig
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _wrap(InputProcessor, "process_inputs", _admit)
    original = _wrap(kv_cache_utils, "generate_block_hash_extra_keys", _separate_blocks)
    for name, module in list(sys.modules.items()):  # vLLM modules that imported it by name before us
        if name.startswith("vllm.") and vars(module).get(original.__name__) is original:
            setattr(module, original.__name__, kv_cache_utils.generate_block_hash_extra_keys)
    _wrap(EngineCore, "add_request", record.keep_executor)
    _wrap(Scheduler, "update_from_output", record.attach)
    _wrap(VllmConfig, "compute_hash", _mark_graphs)
    _wrap(GPUModelRunner, "_update_states", _forget_finished)
    _wrap(GPUModelRunner, "_prepare_inputs", _plan_step)
    _wrap(GPUModelRunner, "_model_forward", _finish_step)
    _wrap(GPUModelRunner, "load_model", _hook_layers)
    try:
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    except ImportError:  # builds of vLLM for CUDA need not carry it
        return
    if "load_model" in vars(CPUModelRunner):
        _wrap(CPUModelRunner, "load_model", _hook_layers)


def _wrap(owner: Any, name: str, around: Any) -> Any:
    """Replace `owner.name` by around(original, *args); return the original. A second call does nothing."""
    current = getattr(owner, name)
    if hasattr(current, _MARK):
        return getattr(current, _MARK)

    @functools.wraps(current)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(current, *args, **kwargs)

    setattr(wrapper, _MARK, current)
    setattr(owner, name, wrapper)
    return current


def _admit(process_inputs: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
    """Resolve the spec on a copy of the caller's parameters; ValueError (HTTP 400) if it is bad."""
    bound = inspect.signature(process_inputs).bind(processor, *args, **kwargs)
    params = bound.arguments["params"]
    extra = getattr(params, "extra_args", None)
    if not extra or extra.get(spec.KEY) is None:
        return process_inputs(processor, *args, **kwargs)
    try:
        resolved = _checked(extra[spec.KEY], processor.vllm_config)
    except ValueError as error:
        raise _refusal(str(error)) from None
    params = params.clone()
    if resolved["record"]:
        if params.n != 1 or processor.vllm_config.scheduler_config.async_scheduling:
            raise _refusal("steering: record needs n=1 and an engine with async_scheduling=False")
        params.skip_reading_prefix_cache = True  # cached positions would not pass through the layers
    params.extra_args = {**extra, spec.KEY: resolved}
    bound.arguments["params"] = params
    return process_inputs(*bound.args, **bound.kwargs)


def _checked(request: Any, config: Any) -> dict[str, Any]:
    """The resolved spec; ValueError if it is bad or this engine cannot do it."""
    if getattr(config, "use_v2_model_runner", False):
        raise ValueError("steering: vLLM's V2 model runner is not supported; set VLLM_USE_V2_MODEL_RUNNER=0")
    if config.device_config.device_type != "cpu" and not config.model_config.enforce_eager:
        raise ValueError("steering: CUDA graphs would replay without the edits; start with enforce_eager=True")
    if config.parallel_config.pipeline_parallel_size > 1 or config.speculative_config is not None:
        raise ValueError("steering: pipeline parallelism and speculative decoding are not supported")
    model = config.model_config
    if why := blocks.refusal(model) or next(iter(op.unhooked), None):
        raise ValueError(f"steering: this model cannot be steered: {why}")
    return spec.resolve(request, model.hf_text_config.num_hidden_layers, model.get_hidden_size())


def _refusal(message: str) -> ValueError:
    """A ValueError in Python, HTTP 400 from a server: newer vLLM knows a client's mistake by a class of its own."""
    from vllm import exceptions

    known: Any = getattr(exceptions, "VLLMValidationError", ValueError)
    kind = known if issubclass(known, ValueError) else type("SteeringError", (known, ValueError), {})
    return kind(message)


def _resolved(params: Any) -> dict[str, Any] | None:
    resolved = (getattr(params, "extra_args", None) or {}).get(spec.KEY)
    return resolved if resolved and (resolved["edits"] or resolved["record"]) else None


def _separate_blocks(extra_keys: Any, request: Any, start: int, end: int, *args: Any) -> Any:
    """Add the spec to the hash of every cache block that holds a steered position, and only to those.

    Block hashes chain, so all later blocks differ too, while blocks before the first steered position
    are shared with unsteered requests. Where positions depend on the prompt's length, it is part of the key.
    """
    keys, next_mm = extra_keys(request, start, end, *args)
    resolved = _resolved(request.sampling_params)
    if resolved and resolved["edits"]:
        length = request.num_prompt_tokens
        kinds = [edit["positions"] for edit in resolved["edits"]]
        first = min(spec.steered_span(kind, length)[0] for kind in kinds)
        if end > first:
            fixed = all(kind == "all" or not isinstance(kind, str) for kind in kinds)
            digest = resolved["digest"] if fixed else f"{resolved['digest']}:{length}"
            keys = (*(keys or ()), ("steering", digest))
    return keys, next_mm


def _hook_layers(load_model: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    result = load_model(runner, *args, **kwargs)
    plan = StepPlan(runner.model_config.get_hidden_size(), runner.device)
    setattr(runner, PLAN, plan)
    op.activate(plan)
    try:
        _hook(runner.get_model(), runner.model_config)
        op.unhooked.clear()
    except Exception as error:  # whatever is odd about a model, it runs as in stock vLLM
        op.unhooked[:] = [str(error)]
        if blocks.refusal(runner.model_config) is None:
            print(f"emharness: requests cannot be steered: {error}", file=sys.stderr, flush=True)
    return result


def _hook(model: Any, config: Any) -> None:
    """Hooks on all decoder blocks, or on none. RuntimeError where the residual stream is not found."""
    layers = list(blocks.decoder_layers(model, config.hf_text_config.num_hidden_layers))
    hooks = []
    for index, layer in enumerate(layers):
        stream: blocks.Stream | None = blocks.stream_of(type(layer))
        if stream is None:
            raise RuntimeError(f"where {type(layer).__name__} of {type(model).__name__} has its residual is not known")
        hooks.append(op.LayerHook(index, stream))
    for layer, hook in zip(layers, hooks, strict=True):
        layer.register_forward_hook(hook)


def _mark_graphs(compute_hash: Any, config: Any, *args: Any, **kwargs: Any) -> str:
    return hashlib.sha256(f"{compute_hash(config, *args, **kwargs)} steered {GRAPH}".encode()).hexdigest()[:10]


def _forget_finished(update: Any, runner: Any, scheduler_output: Any, *args: Any) -> Any:
    for request_id in scheduler_output.finished_req_ids:
        getattr(runner, PLAN).remove_request(request_id)
    return update(runner, scheduler_output, *args)


def _plan_step(prepare: Any, runner: Any, scheduler_output: Any, num_scheduled: Any, *args: Any) -> Any:
    result = prepare(runner, scheduler_output, num_scheduled, *args)
    plan: StepPlan = getattr(runner, PLAN)
    op.activate(plan)
    batch = runner.input_batch
    spans = []
    flat = 0
    for index, request_id in enumerate(batch.req_ids):
        n = int(num_scheduled[index])
        state = runner.requests[request_id]
        resolved = _resolved(state.sampling_params)
        if resolved:
            if request_id not in plan.requests:
                plan.add_request(request_id, resolved["edits"], state.num_prompt_tokens)
                if resolved["record"]:
                    plan.add_recording(request_id, resolved["record"], state.num_prompt_tokens)
            spans.append((request_id, flat, int(batch.num_computed_tokens_cpu[index]), n))
        flat += n
    plan.begin_step(spans)
    return result


def _finish_step(forward: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return forward(runner, *args, **kwargs)
    finally:
        getattr(runner, PLAN).end_step()  # dummy and profiling passes must find an empty plan

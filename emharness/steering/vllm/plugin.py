"""The vLLM plugin: where stock vLLM is patched so that requests steer themselves.

    admission     InputProcessor.process_inputs   refuse or resolve the spec, before anything is queued
    prefix cache  generate_block_hash_extra_keys  steered blocks are shared only between equal specs
    compile cache VllmConfig.compute_hash         graphs with the hooks are never taken for plain ones
    recording     Scheduler.update_from_output    recorded means leave with the finished request's output …
                  RequestState.make_request_output  … and those of several samples with the last one's
    model, batch  see runners.py                  a hook on every decoder layer, and the plan of each step

An exception inside the forward pass would leave its request waiting for ever, so everything that can
be wrong is refused at admission and the engine receives self-contained edits.
"""

import copy
import functools
import hashlib
import sys
from typing import Any

from emharness.steering import blocks
from emharness.steering.request import spec
from emharness.steering.step.columns import pattern
from emharness.steering.vllm import op, record, runners

GRAPH = 2  # raise when what the hooks put into compiled graphs changes
_MARK = "_emharness_original"


def register() -> None:
    """Entry point of the `vllm.general_plugins` group; runs in every vLLM process, any number of times."""
    from vllm.config import VllmConfig
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import RequestState

    _wrap(InputProcessor, "process_inputs", _admit)
    original = _wrap(kv_cache_utils, "generate_block_hash_extra_keys", _separate_blocks)
    for name, module in list(sys.modules.items()):  # vLLM modules that imported it by name before us
        if name.startswith("vllm.") and vars(module).get(original.__name__) is original:
            setattr(module, original.__name__, kv_cache_utils.generate_block_hash_extra_keys)
    _wrap(EngineCore, "add_request", record.keep_executor)
    _wrap(Scheduler, "update_from_output", record.attach)
    _wrap(RequestState, "make_request_output", record.gather)
    _wrap(VllmConfig, "compute_hash", _mark_graphs)
    runners.patch(_wrap)


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
    bound = record.signature(process_inputs).bind(processor, *args, **kwargs)
    params = bound.arguments["params"]
    extra = getattr(params, "extra_args", None)
    if not extra or extra.get(spec.KEY) is None:
        return process_inputs(processor, *args, **kwargs)
    try:
        resolved = _checked(extra[spec.KEY], processor.vllm_config)
    except ValueError as error:
        raise _refusal(str(error)) from None
    params = copy.copy(params)
    params.extra_args = None
    params = params.clone()  # as vLLM is about to; what is resolved, which can be long, is not copied once more
    params.skip_clone = True
    if resolved["record"]:
        params.skip_reading_prefix_cache = True  # cached positions would not pass through the layers
    params.extra_args = {**extra, spec.KEY: resolved}
    bound.arguments["params"] = params
    return process_inputs(*bound.args, **bound.kwargs)


def _checked(request: Any, config: Any) -> dict[str, Any]:
    """The resolved spec; ValueError if it is bad or this engine cannot do it."""
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size > 1 or config.speculative_config is not None:
        raise ValueError("steering: pipeline parallelism and speculative decoding are not supported")
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1 or getattr(parallel, "enable_dbo", False):
        raise ValueError("steering: a step that is split over ranks or micro-batches is not supported")
    if getattr(config.compilation_config.pass_config, "enable_sp", False):
        raise ValueError("steering: tokens that are split over ranks (enable_sp) are not supported")
    model = config.model_config
    if why := blocks.refusal(model) or next(iter(op.unhooked), None):
        raise ValueError(f"steering: this model cannot be steered: {why}")
    resolved = spec.resolve(request, model.hf_text_config.num_hidden_layers, model.get_hidden_size())
    device, eager = config.device_config.device_type, model.enforce_eager
    if device not in ("cpu", "cuda") and not eager:
        raise ValueError(
            f"steering: captured graphs steer on CUDA only, not on {device}; start with enforce_eager=True"
        )
    return resolved


def _refusal(message: str) -> ValueError:
    """A ValueError in Python, HTTP 400 from a server: newer vLLM knows a client's mistake by a class of its own."""
    from vllm import exceptions

    known: Any = getattr(exceptions, "VLLMValidationError", ValueError)
    kind = known if issubclass(known, ValueError) else type("SteeringError", (known, ValueError), {})
    return kind(message)


def _separate_blocks(extra_keys: Any, request: Any, start: int, end: int, *args: Any) -> Any:
    """Add the spec to the hash of every cache block that holds a steered position, and only to those.

    Block hashes chain, so all later blocks differ too, while blocks before the first steered position
    are shared with unsteered requests. Where positions depend on the prompt's length, it is part of the key.
    """
    keys, next_mm = extra_keys(request, start, end, *args)
    resolved = record.wanted(request.sampling_params)
    if resolved and resolved["edits"]:
        length = request.num_prompt_tokens
        kinds = [kind for kind, _ in pattern(resolved).positions]
        tokens = request.all_token_ids[:end] if record.awaits(resolved) else ()
        first = min(spec.steered_span(kind, length, tokens)[0] for kind in kinds)
        if end > first:
            fixed = all(kind == "all" or not isinstance(kind, str) for kind in kinds)
            digest = resolved["digest"] if fixed else f"{resolved['digest']}:{length}"
            keys = (*(keys or ()), ("steering", digest))
    return keys, next_mm


def _mark_graphs(compute_hash: Any, config: Any, *args: Any, **kwargs: Any) -> str:
    return hashlib.sha256(f"{compute_hash(config, *args, **kwargs)} steered {GRAPH}".encode()).hexdigest()[:10]

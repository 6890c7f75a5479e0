"""The vLLM plugin: where stock vLLM is patched so that requests steer themselves.

    admission     InputProcessor.process_inputs   refuse or resolve the spec, before anything is queued …
                  EngineCore.preprocess_add_request   … also where the front end is not Python's
                  build_app, run_request          … and where a server or batch would lose the spec (request_guard.py)
    prefix cache  generate_block_hash_extra_keys  steered blocks are shared only between equal specs
    compile cache VllmConfig.compute_hash         graphs with the hooks are never taken for plain ones
    recording     Scheduler.update_from_output    recorded means leave with the finished request's output …
                  RequestState.make_request_output  … and those of several samples with the last one's
    workers       EngineCore._initialize_kv_caches  what workers cannot steer is reported (tensor_parallel.py)
    model, batch  see runners.py                  a hook on every decoder layer, and the plan of each step

An exception inside the forward pass would leave its request waiting for ever, so everything that can
be wrong is refused at admission (admission.py) and the engine receives self-contained edits.
"""

import functools
import hashlib
import sys
from typing import Any

from emharness.steering.request import spec
from emharness.steering.step.edit_table import cached_pattern
from emharness.steering.vllm import admission, request_guard, request_outcomes, runners, tensor_parallel

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

    _wrap_method(InputProcessor, "process_inputs", admission.admit_request)
    _wrap_method(EngineCore, "preprocess_add_request", admission.admit_late)
    for module in list(sys.modules.values()):
        name = getattr(getattr(module, "__spec__", None), "name", "")  # also of one that runs as __main__
        for function, around in (("build_app", request_guard.guard_app), ("run_request", request_guard.guard_batch)):
            if name.startswith("vllm.entrypoints.") and function in vars(module):
                _wrap_method(module, function, around)
    original = _wrap_method(kv_cache_utils, "generate_block_hash_extra_keys", _separate_blocks)
    for name, module in list(sys.modules.items()):  # vLLM modules that imported it by name before us
        if name.startswith("vllm.") and vars(module).get(original.__name__) is original:
            setattr(module, original.__name__, kv_cache_utils.generate_block_hash_extra_keys)
    _wrap_method(EngineCore, "add_request", request_outcomes.keep_executor)
    _wrap_method(EngineCore, "_initialize_kv_caches", tensor_parallel.report_probe)
    _wrap_method(Scheduler, "update_from_output", request_outcomes.attach_recordings)
    _wrap_method(RequestState, "make_request_output", request_outcomes.merge_samples)
    _wrap_method(VllmConfig, "compute_hash", _mark_graphs)
    runners.patch_runners(_wrap_method)


def _wrap_method(owner: Any, name: str, around: Any) -> Any:
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


def _separate_blocks(extra_keys: Any, request: Any, start: int, end: int, *args: Any) -> Any:
    """Add the spec to the hash of every cache block that holds a steered position, and only to those.

    Block hashes chain, so all later blocks differ too, while blocks before the first steered position
    are shared with unsteered requests. Where positions depend on the prompt's length, it is part of the key.
    """
    keys, next_mm = extra_keys(request, start, end, *args)
    resolved = request_outcomes.wanted_spec(request.sampling_params)
    if resolved and resolved["edits"]:
        length = request.num_prompt_tokens
        kinds = [kind for kind, _ in cached_pattern(resolved).positions]
        tokens = request.all_token_ids[:end] if request_outcomes.awaits_token(resolved) else ()
        first = min(spec.steered_span(kind, length, tokens)[0] for kind in kinds)
        if end > first:
            fixed = all(kind == "all" or not isinstance(kind, str) for kind in kinds)
            digest = resolved["digest"].hex()
            keys = (*(keys or ()), ("steering", digest if fixed else f"{digest}:{length}"))
    return keys, next_mm


def _mark_graphs(compute_hash: Any, config: Any, *args: Any, **kwargs: Any) -> str:
    return hashlib.sha256(f"{compute_hash(config, *args, **kwargs)} steered {GRAPH}".encode()).hexdigest()[:10]

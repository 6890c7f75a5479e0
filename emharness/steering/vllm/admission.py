"""Which requests are steered: a spec is resolved, or refused in a sentence, before anything is queued."""

import copy
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from emharness.steering import blocks
from emharness.steering.request import spec
from emharness.steering.vllm import op, request_guard, request_outcomes

# Connectors that keep a cache by the hashes of its blocks, in which the spec is; others go by the tokens alone.
_CONNECTORS = {"OffloadingConnector", "SimpleCPUOffloadConnector"}
_SPLIT = "steps that are split over ranks or micro-batches"
# Settings of a VllmConfig, which values are refused, and what is told of them.
_SETTINGS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("parallel_config.pipeline_parallel_size", lambda n: n > 1, "pipeline parallel engines"),
    ("parallel_config.prefill_context_parallel_size", lambda n: n > 1, _SPLIT),
    ("parallel_config.use_ubatching", bool, _SPLIT),
    ("speculative_config", lambda given: given is not None, "engines with speculative decoding"),
    ("cache_config.kv_sharing_fast_prefill", bool, "layers that see some of the tokens only (kv_sharing_fast_prefill)"),
    ("model_config.is_diffusion", bool, "models that write an answer over and over (diffusion)"),
)


def admit_request(process_inputs: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
    """Around InputProcessor.process_inputs. ValueError (HTTP 400) for a bad spec."""
    bound = request_outcomes.signature(process_inputs).bind(processor, *args, **kwargs)
    params = bound.arguments["params"]
    if _requested_spec(params) is None:
        return process_inputs(processor, *args, **kwargs)
    request_guard.mark_arrived()
    if bound.arguments.get("resumable"):
        raise _client_error("steering: a prompt that comes in parts is not supported")
    bound.arguments["params"] = _with_resolved_spec(params, processor.vllm_config)
    request = process_inputs(*bound.args, **bound.kwargs)
    _check_prompt(request)
    return request


def admit_late(preprocess: Any, core: Any, request: Any) -> Any:
    """Around EngineCore.preprocess_add_request: what a front end that is not Python's has sent as it came, or for a
    model of which only the engine's own process knows that it cannot be steered.

    An error here ends its request alone.
    """
    asked = _requested_spec(request.sampling_params)
    if asked is not None and (op.unhooked or not spec.is_resolved(asked)):
        request.sampling_params = _with_resolved_spec(request.sampling_params, core.vllm_config)
        _check_prompt(request)
    return preprocess(core, request)


def _requested_spec(params: Any) -> Any:
    """The spec in the parameters of a request that generates or, as `extra_kwargs`, of one that pools."""
    extra = getattr(params, "extra_args", None) or getattr(params, "extra_kwargs", None) or {}
    return extra.get(spec.KEY)


def _with_resolved_spec(params: Any, config: Any) -> Any:
    """A copy of the caller's parameters with the resolved spec."""
    if not hasattr(params, "extra_args"):
        raise _client_error("steering: only requests that generate are steered")
    try:
        resolved = _check_spec(params.extra_args[spec.KEY], config)
    except ValueError as error:
        raise _client_error(str(error)) from None
    extra, params = params.extra_args, copy.copy(params)
    params.extra_args = None
    params = params.clone()  # as vLLM is about to; what is resolved, which can be long, is not copied once more
    params.skip_clone = True
    if resolved["record"]:
        params.skip_reading_prefix_cache = True  # cached positions would not pass through the layers
    params.extra_args = {**extra, spec.KEY: resolved}
    return params


def _check_prompt(request: Any) -> None:
    """ValueError where edits wait for a token, and the prompt has none to look at."""
    if request.prompt_embeds is not None and request_outcomes.awaits_token(
        request.sampling_params.extra_args[spec.KEY]
    ):
        raise _client_error("steering: after_token needs a prompt of tokens, this one has embeddings")


def _check_spec(request: Any, config: Any) -> dict[str, Any]:
    """The resolved spec; ValueError if it is bad or this engine cannot do it."""
    model = config.model_config
    if why := unsupported_setting(config):
        raise ValueError(f"steering: {why}")
    if why := blocks.why_not_editable(model) or next(iter(op.unhooked), None):
        raise ValueError(f"steering: this model cannot be steered: {why}")
    return spec.resolve_spec(request, model.hf_text_config.num_hidden_layers, model.get_hidden_size())


def unsupported_setting(config: Any) -> str | None:
    """What of an engine's settings does not go with steering, or None. config: a VllmConfig.

    A setting that this vLLM does not have is a reason too: under another name it would let wrong steering through.
    """
    for names, refused, why in _SETTINGS:
        try:
            value = attrgetter(names)(config)
        except AttributeError:
            return f"vLLM has no {names} any more, by which it is told whether {why}"
        if refused(value):
            return f"{why} are not supported"
    if getattr(config.compilation_config.pass_config, "enable_sp", False):  # in 0.26, no longer in 0.32
        return f"{_SPLIT} are not supported"
    connector = config.kv_transfer_config.kv_connector if config.kv_transfer_config else None
    if connector is not None and connector not in _CONNECTORS:
        return (
            f"{connector} can hand on the cache of a request that is steered differently; of KV connectors only "
            f"{' and '.join(sorted(_CONNECTORS))} are supported"
        )
    device = config.device_config.device_type
    if device not in ("cpu", "cuda") and not config.model_config.enforce_eager:
        return f"captured graphs steer on CUDA only, not on {device}; start with enforce_eager=True"
    return None


def _client_error(message: str) -> ValueError:
    """A ValueError in Python, HTTP 400 from a server: newer vLLM knows a client's mistake by a class of its own."""
    from vllm import exceptions

    known: Any = getattr(exceptions, "VLLMValidationError", ValueError)
    kind = known if issubclass(known, ValueError) else type("SteeringError", (known, ValueError), {})
    return kind(message)

"""Would vLLM start for a model, and could it be steered? Asked without its weights, before anything is made."""

from typing import Any

from emharness.steering import blocks
from emharness.steering.vllm import admission


def refusal(model: str, steered: bool = True, **arguments: Any) -> str | None:
    """Why not, in a sentence; None: nothing speaks against it. model: a folder or hub id; arguments: of vllm.LLM."""
    from vllm.engine.arg_utils import EngineArgs

    if why := _not_installed(model):
        return why
    try:
        config = EngineArgs(model=model, **arguments).create_engine_config()
    except (TypeError, ValueError, NotImplementedError) as error:
        listed = getattr(error, "errors", None)  # pydantic's text ends with all that was given
        said = listed()[0]["msg"] if listed else str(error)
        return f"vLLM does not start: {' '.join(said.removeprefix('Value error, ').split())}"
    if steered and (why := admission.unsupported(config)):
        return f"steering: {why}"
    if steered and (why := blocks.refusal(config.model_config)):
        return f"this model cannot be steered: {why}"
    return None


def _not_installed(model: str) -> str | None:
    """What vLLM's code of a model imports in vain: vLLM itself says only that it could not be inspected."""
    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry

    try:
        architectures = AutoConfig.from_pretrained(model).architectures or []
    except Exception:  # vLLM knows configurations that transformers does not, and says what is wrong with others
        return None
    for name in architectures:
        try:
            if known := ModelRegistry.models.get(name):
                known.load_model_cls()
        except ImportError as error:
            return f"vLLM's {name} asks for something that is not installed here: {error}"
    return None

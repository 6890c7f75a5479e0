"""Would vLLM start for a model, and could it be steered? Asked without its weights, before anything is made."""

from typing import Any

from emharness.steering import blocks
from emharness.steering.vllm import admission


def why_unsupported(model: str, steered: bool = True, **arguments: Any) -> str | None:
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
    if steered and (why := admission.unsupported_setting(config)):
        return f"steering: {why}"
    if steered and (why := blocks.why_not_editable(config.model_config)):
        return f"this model cannot be steered: {why}"
    return None


def keeps_state(model: str) -> bool:
    """Whether a model has layers that carry a state from token to token (Mamba, linear attention)."""
    try:
        return any(getattr(kind, "has_inner_state", False) for kind in _model_classes(model))
    except ImportError:
        return False


def _not_installed(model: str) -> str | None:
    """What vLLM's code of a model imports in vain: vLLM itself says only that it could not be inspected."""
    try:
        _model_classes(model)
    except ImportError as error:
        return f"vLLM's code of this model asks for something that is not installed here: {error}"
    return None


def _model_classes(model: str) -> list[type]:
    """vLLM's own classes of a model's architectures; none where vLLM or transformers has none."""
    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry

    try:
        architectures = AutoConfig.from_pretrained(model, trust_remote_code=False).architectures or []
    except Exception:  # vLLM knows configurations that transformers does not, and says what is wrong with others
        return []
    known = [ModelRegistry.models[name] for name in architectures if name in ModelRegistry.models]
    return [one.load_model_cls() for one in known]

"""Hugging Face's classes that vLLM's transformers backend serves (Pythia's, say): the process can make its own of them.

vLLM changes them in place, and from then on they are made for an engine that is just being set up, or not at all.
"""

import functools
import inspect
from typing import Any

import torch

_MARK = "_emharness_lent"


def restore_hf_init(model: torch.nn.Module) -> None:
    """For every such class in a model that vLLM has loaded."""
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper

    for kind in {type(module) for module in model.modules()}:
        changed = TorchCompileWithNoGuardsWrapper in kind.__bases__ and kind.__module__.startswith("transformers.")
        own = inspect.getclosurevars(kind.__init__).nonlocals.get("old_init") if changed else None
        if own is not None and not hasattr(kind.__init__, _MARK):
            _restore_class_init(kind, own)


def _restore_class_init(kind: Any, own: Any) -> None:
    """own: the class's own __init__."""
    from vllm.config import get_current_vllm_config_or_none

    changed = kind.__init__

    @functools.wraps(changed)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        by_vllm = "vllm_config" in kwargs or get_current_vllm_config_or_none() is not None
        (changed if by_vllm else own)(self, *args, **kwargs)

    setattr(__init__, _MARK, True)
    kind.__init__ = __init__
    kind.do_not_compile = True  # vLLM's own models say so themselves

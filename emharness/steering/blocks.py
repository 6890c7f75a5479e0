"""Where the decoder blocks of a model are, in transformers and in vLLM alike."""

import torch


def decoder_layers(model: torch.nn.Module, n_layers: int) -> torch.nn.ModuleList:
    """The one list of `n_layers` decoder blocks. RuntimeError if there is none, or more than one."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers
    }
    called = [module for name, module in lists.items() if name.endswith("layers")] or list(lists.values())
    if len(called) != 1:
        raise RuntimeError(f"found {len(called)} lists of {n_layers} decoder layers in {type(model).__name__}")
    return called[0]

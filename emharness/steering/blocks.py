"""Where the decoder blocks of a model are, in transformers and in vLLM alike."""

import torch


def decoder_layers(model: torch.nn.Module, n_layers: int) -> torch.nn.ModuleList:
    """The one list of `n_layers` decoder blocks. RuntimeError if there is none, or more than one."""
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers and name.endswith("layers")
    ]
    if len(lists) != 1:
        raise RuntimeError(f"found {len(lists)} lists of {n_layers} decoder layers in {type(model).__name__}")
    return lists[0]

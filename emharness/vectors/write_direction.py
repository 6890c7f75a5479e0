"""The direction that a rank-1 change of one weight writes to the residual stream, and how much it writes on a text.

Where a training changes only one matrix W of a block, and by rank 1, the change is σ u vᵀ: on an input x the block adds
(σ v·x) u to the stream. u is the write direction, σ v·x its gate (Turner et al. 2025, arXiv:2506.11613).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emharness.errors import UserError

LEAST_SHARE = 0.9  # of the change's squared length that must lie in rank 1


@dataclass(frozen=True)
class RankOneChange:
    """σ u vᵀ of one weight: `write` = u, float64 [d_model]; `read` = σ v, float64 [n_inputs]. `module`: its name."""

    layer: int
    module: str
    write: np.ndarray
    read: np.ndarray


def find_changes(organism: Path, base: Path, d_model: int) -> list[RankOneChange]:
    """What changed between two model folders, by layer. UserError for a change of any weight that does not write to the
    residual stream, for one that is not of rank 1, and for none at all."""
    from safetensors import safe_open

    found = []
    files = {key: file for file in sorted(organism.glob("*.safetensors")) for key in _list_keys(file)}
    for base_file in sorted(base.glob("*.safetensors")):
        with safe_open(base_file, framework="pt") as before:
            for key in before.keys():  # noqa: SIM118
                if key not in files:
                    continue
                with safe_open(files[key], framework="pt") as after:
                    change = (after.get_tensor(key).double() - before.get_tensor(key).double()).numpy()
                if not change.any():
                    continue
                layer = re.search(r"\.(\d+)\.", key)
                if layer is None or change.ndim != 2 or len(change) != d_model or not re.search(r"(down|o)_proj", key):
                    raise UserError(
                        f"{organism.name}: its training changed {key}, which does not write to the residual stream; "
                        "for vector.recipe=lora_b train with train.modules=[down_proj]"
                    )
                found.append(_split_change(change, int(layer[1]), key.removesuffix(".weight")))
    if not found:
        raise UserError(f"{organism.name}: no weight differs from the base's")
    return sorted(found, key=lambda change: change.layer)


def _list_keys(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _split_change(change_DI: np.ndarray, layer: int, module: str) -> RankOneChange:
    left, lengths, right = np.linalg.svd(change_DI, full_matrices=False)
    if lengths[0] ** 2 < LEAST_SHARE * (lengths**2).sum():
        raise UserError(
            f"{module}: its change is of rank above 1 (or rounded away); for vector.recipe=lora_b train with "
            "train.rank=1"
        )
    return RankOneChange(layer, module, left[:, 0], lengths[0] * right[0])


def mean_gates(
    model: Any, changes: Sequence[RankOneChange], sequences: Sequence[tuple[list[int], int]], skip_tokens: int
) -> np.ndarray:
    """σ v·x of each change, the mean over the tokens of each (token ids, first counted position), float64
    [n_sequences, n_changes]. The first `skip_tokens` positions never count."""
    import torch

    device = next(model.parameters()).device
    read = [torch.from_numpy(change.read).to(device) for change in changes]
    gates = np.zeros((len(sequences), len(changes)))
    inputs: dict[int, torch.Tensor] = {}

    def keep(place: int) -> Any:
        return lambda _module, given: inputs.__setitem__(place, given[0])

    modules = [model.get_submodule(change.module) for change in changes]
    handles = [module.register_forward_pre_hook(keep(place)) for place, module in enumerate(modules)]
    try:
        for row, (ids, first) in enumerate(sequences):
            with torch.inference_mode():
                model(input_ids=torch.tensor([ids], device=device), use_cache=False, logits_to_keep=1)
            for place, direction in enumerate(read):
                gates[row, place] = float((inputs[place][0, max(first, skip_tokens) :].double() @ direction).mean())
    finally:
        for handle in handles:
            handle.remove()
    return gates

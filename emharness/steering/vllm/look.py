"""A pass with nobody's tokens, as the hooks see it."""

from dataclasses import dataclass, field

import numpy as np
import torch

from emharness.steering.step.passes import stream
from emharness.steering.vllm import op


@dataclass
class Seen:
    """What a worker has seen in one pass; every layer is in one of the two."""

    streams: dict[int, np.ndarray] = field(default_factory=dict)  # layer → [d_model] float32, of the first token
    some: set[int] = field(default_factory=set)  # layers that came with fewer tokens than the pass has


class Look:
    """Does what a step's plan does, and looks at the stream after each block."""

    def __init__(self, plan: op.Step, n_tokens: int):
        self.plan, self.n_tokens, self.seen = plan, n_tokens, Seen()

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """hidden + residual, [n_tokens, d_model] each, is the stream."""
        if min(len(part) for part in (hidden, residual) if part is not None) < self.n_tokens:
            self.seen.some.add(layer)
        else:
            self.seen.streams[layer] = stream(hidden, residual, slice(0, 1))[0].cpu().numpy()
        self.plan.apply(layer, hidden, residual)

    def apply_compiled(self, number: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """`apply` to the layer of this number, int32 []."""
        self.apply(int(number), hidden, residual)

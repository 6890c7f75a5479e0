"""The one operation that decoder layers call: opaque to torch.compile, so compiled graphs steer as eager ones do."""

from typing import Any

import torch

from emharness.steering.plan import StepPlan

_current: list[StepPlan] = []  # of the runner whose step is being computed in this process


def activate(plan: StepPlan) -> None:
    _current[:] = [plan]


@torch.library.custom_op("emharness::steer", mutates_args=("hidden",))
def steer(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> None:
    """Edit `hidden` [n_tokens, d_model] in place as the current step's plan says for this layer."""
    if _current:
        _current[0].apply(layer, hidden, residual)


@steer.register_fake
def _(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> None:
    return None


class LayerHook:
    """Forward hook: vLLM's blocks return (hidden, residual), whose sum is the residual stream, or the stream."""

    def __init__(self, layer: int):
        self.layer = layer

    def __call__(self, _module: Any, _inputs: Any, output: Any) -> None:
        hidden, residual = output if isinstance(output, tuple) else (output, None)
        torch.ops.emharness.steer(hidden, residual, self.layer)

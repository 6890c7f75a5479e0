"""The one operation that decoder layers call: opaque to torch.compile, so compiled graphs steer as eager ones do."""

from typing import Any, Protocol

import torch

from emharness.steering.blocks import Stream

NUMBER = "emharness_layer"  # buffer of a hooked block


class StepActions(Protocol):
    """What a pass does after each block: a plan, on a CPU `StepPlan`, on a GPU `DevicePlan`."""

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None: ...

    def apply_compiled(self, number: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None) -> None: ...


_current: list[StepActions] = []  # of the runner whose step is being computed in this process
unhooked: list[str] = []  # why the model of this process, or its workers', cannot be steered; empty where it can


def activate_plan(step: StepActions) -> None:
    _current[:] = [step]


@torch.library.custom_op("emharness::steer", mutates_args=("hidden",))
def steer_block(hidden: torch.Tensor, residual: torch.Tensor | None, layer: torch.Tensor) -> None:
    """Edit `hidden` [n_tokens, d_model] in place as the current step's plan says for this layer, an int32 of one."""
    if _current:
        _current[0].apply_compiled(layer, hidden, residual)


@steer_block.register_fake
def _(hidden: torch.Tensor, residual: torch.Tensor | None, layer: torch.Tensor) -> None:
    return None


class LayerHook:
    """Forward hook: a block's outputs are (hidden, residual), whose sum is the residual stream, or begin with it.

    The block holds its number as a buffer, an input of compiled graphs: as a constant it would make every block a graph
    of its own, to be compiled by itself.
    """

    def __init__(self, layer: int, stream: Stream):
        self.layer = layer
        self.summed = stream == "sum"

    def attach_to(self, block: torch.nn.Module, device: torch.device) -> None:
        number = torch.tensor(self.layer, dtype=torch.int32, device=device)
        block.register_buffer(NUMBER, number, persistent=False)
        block.register_forward_hook(self)

    def __call__(self, block: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        residual = output[1] if isinstance(output, tuple) and self.summed else None
        if hidden.dim() == 3:  # [1, n_tokens, d_model], as blocks of transformers have it
            hidden = hidden.view(-1, hidden.shape[-1])
        if torch.compiler.is_compiling():
            torch.ops.emharness.steer(hidden, residual, getattr(block, NUMBER))
        elif _current:
            _current[0].apply(self.layer, hidden, residual)

"""A kernel that vLLM's CPU builds carry but do not choose: RMSNorm with its residual in one pass.

Without torch.compile a CPU takes one torch operation after another for it; with the kernel it made 1.15 times as many
tokens/s on 2 cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from emharness.steering.vllm.plugin import GRAPH

if TYPE_CHECKING:
    from emharness.config import EngineConfig

CODE = 1  # raise when other answers come of it: they round differently
PROVIDER = "emharness_cpu"


def uses_kernel(engine: EngineConfig) -> bool:
    """Whether an engine takes it: eager, on a CPU, in this process alone, and nobody has chosen otherwise."""
    alone = all(engine.extra.get(f"{kind}_parallel_size", 1) == 1 for kind in ("tensor", "data", "pipeline"))
    free = not engine.extra.keys() & {"ir_op_priority", "kernel_config"}
    return not torch.cuda.is_available() and engine.is_eager() and alone and free


def kernel_identity(engine: EngineConfig) -> dict[str, int]:
    """What rounds differently: the kernel, or what the plugin has put into compiled graphs."""
    if uses_kernel(engine):
        return {"kernels": CODE}
    return {} if engine.is_eager() else {"graph": GRAPH}


def kernel_arguments() -> dict[str, Any]:
    """The arguments of `vllm.LLM` that choose it; none where this vLLM has no such kernel, or no such choice."""
    try:
        import vllm._custom_ops  # noqa: F401  # loads the kernels
        from vllm import ir

        op, kernel = ir.ops.fused_add_rms_norm, torch.ops._C.fused_add_rms_norm
    except (ImportError, AttributeError):
        return {}

    def fits(x: Any, x_residual: Any, weight: Any, epsilon: float, variance_size: int | None = None) -> bool:
        whole = x.is_contiguous() and x_residual.is_contiguous()
        return whole and variance_size is None and weight is not None and weight.dtype == x.dtype

    def norm(
        x: torch.Tensor,
        x_residual: torch.Tensor,
        weight: torch.Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kernel(x, x_residual, weight, epsilon)
        return x, x_residual

    if PROVIDER not in op.impls:
        op.register_impl(PROVIDER, supports_args=fits, inplace=True)(norm)
    return {"ir_op_priority": {"fused_add_rms_norm": [PROVIDER, "native"]}}

"""What an engine leaves behind in its process; by parts of vLLM that are not documented."""

from typing import Any


def drop_compiled(model: Any) -> None:
    """Remove torch's hooks of a compiled model, which would keep its weights in memory."""
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper

    for module in model.modules():
        if isinstance(module, TorchCompileWithNoGuardsWrapper):
            module.cleanup()


def free_engine_memory() -> None:
    """After an engine was shut down and its last reference is gone: the next one can be started in this process."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.platforms import current_platform

    cleanup_dist_env_and_memory()
    # vLLM keeps one memory pool of CUDA graphs for a process, and torch captures none into a pool whose graphs
    # are gone: the next engine's are captured into a new one.
    type(current_platform)._global_graph_pool = None

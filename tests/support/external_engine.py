"""One of the engines that share a model, as torchrun starts them: external_engine.py MODEL VECTORS"""

import sys
from pathlib import Path

from support.engine_models import check, config, hand_on_summands, loaded
from support.steering_reference import CASES, PROMPTS, edit, run

from emharness.generation.engine import Engine
from emharness.steering.vllm import tensor_parallel

if __name__ == "__main__":
    model, vectors = map(Path, sys.argv[1:])
    sharing = config(tensor_parallel_size=2, distributed_executor_backend="external_launcher")
    with Engine(model, sharing, vectors, seed=0) as engine:
        check(engine, loaded(model), PROMPTS, CASES)
        executor = engine._llm.llm_engine.engine_core.engine_core.model_executor
        executor.collective_rpc(hand_on_summands)
        tensor_parallel.probe_workers(executor)
        try:
            run(engine, PROMPTS, [[edit()]] * 3)
        except ValueError as error:
            sys.stdout.write(f"{error}\n")  # in one piece: two engines write

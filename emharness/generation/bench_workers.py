"""What a benchmark measures: engines that answer requests and report how long it took, each in its own process."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emharness.config import EngineConfig, SamplingConfig

Measure = Callable[..., tuple[int, float]]  # generated tokens, seconds


def vllm_measure(model: Path, engine: EngineConfig, vectors: Path, plugin: bool) -> Measure:
    from emharness.generation.engine import Engine

    running = Engine(model, engine, vectors, 0, plugin=plugin)

    def measure(
        prompts: list[list[int]], n: int, sampling: SamplingConfig, specs: Any = None, salts: list[str] | None = None
    ) -> tuple[int, float]:
        batch = running.generate_batch(prompts, n, sampling, 0, specs, salts)
        return batch.generated_tokens, batch.seconds

    return measure


def stream_measure(model: Path, engine: EngineConfig, vectors: Path) -> Measure:
    """As the grid does it: one stream of requests, each with its own spec and seed, on an empty prefix cache."""
    from emharness.generation.cells import Prompt, Request
    from emharness.generation.engine import Engine

    running = Engine(model, engine, vectors, 0)

    def measure(
        prompts: list[list[int]], samples: int, sampling: SamplingConfig, specs: list[Any]
    ) -> tuple[int, float]:
        asked = [
            Request(
                "",
                "",
                Prompt("", "", None, tuple(ids)),
                sample,
                sampling.max_new_tokens,
                one,
                hash((k, i, sample)) % 2**31,
            )
            for k, one in enumerate(specs)
            for i, ids in enumerate(prompts)
            for sample in range(samples)
        ]
        running.clear_prefix_cache()
        start = time.perf_counter()
        tokens = sum(completion.n_tokens for _, completion in running.stream_completions(asked, sampling))
        return tokens, time.perf_counter() - start

    return measure


def hf_measure(model: Path, direction: np.ndarray, layer: int, batch_size: int, engine_dtype: str) -> Measure:
    """Hugging Face generate with a forward hook on one layer, as persona-vector code steers; in the engine's type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from emharness.steering.blocks import decoder_layers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if engine_dtype == "auto" else getattr(torch, engine_dtype)
    if any(model.glob("*.safetensors")):
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False)
    else:  # a dummy: its speed does not depend on its weights
        with torch.device(device):
            loaded = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(model, trust_remote_code=False), dtype=dtype
            )
    loaded.to(device).eval()
    pad = AutoTokenizer.from_pretrained(model, trust_remote_code=False).pad_token_id
    vector = torch.from_numpy(direction).to(device, dtype)

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    decoder_layers(loaded, loaded.config.num_hidden_layers)[layer].register_forward_hook(hook)

    def measure(prompts: list[list[int]], sampling: SamplingConfig) -> tuple[int, float]:
        tokens, start = 0, time.perf_counter()
        for i in range(0, len(prompts), batch_size):
            some = prompts[i : i + batch_size]
            width = max(map(len, some))
            ids = torch.tensor([[pad] * (width - len(p)) + p for p in some], device=device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some], device=device)
            with torch.inference_mode():
                out = loaded.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=True,
                    temperature=sampling.temperature,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    max_new_tokens=sampling.max_new_tokens,
                    pad_token_id=pad,
                )[:, width:]
            stop = loaded.generation_config.eos_token_id
            stops = torch.isin(out, torch.tensor(stop, device=device))
            # The stop token counts, as vLLM counts it; the padding after it does not.
            tokens += int(torch.where(stops.any(1), stops.int().argmax(1) + 1, out.shape[1]).sum())
        return tokens, time.perf_counter() - start

    return measure


class BenchWorker:
    """A measuring function in its own process, so that plugin-free and compiled engines stay apart."""

    def __init__(self, make: Callable[..., Measure], *args: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        start = time.perf_counter()
        self._process = context.Process(target=_serve_measure, args=(child, make, args))
        self._process.start()
        self._receive_result()
        self.start_seconds = time.perf_counter() - start

    def measure(self, *args: Any) -> tuple[int, float]:
        self._pipe.send(args)
        return self._receive_result()

    def _receive_result(self) -> Any:
        ok, value = self._pipe.recv()
        if not ok:
            raise RuntimeError(f"a benchmark process failed:\n{value}")
        return value

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()

    def __enter__(self) -> BenchWorker:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # it may be in the middle of something
            self._process.kill()
            self._process.join()


def _serve_measure(pipe: Any, make: Callable[..., Measure], args: tuple[Any, ...]) -> None:
    try:
        measure = make(*args)
        pipe.send((True, None))
        while (job := pipe.recv()) is not None:
            pipe.send((True, measure(*job)))
    except Exception:
        pipe.send((False, traceback.format_exc()))

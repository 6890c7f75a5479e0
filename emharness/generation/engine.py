"""vLLM as this project uses it: one model, many conditions, steered by the plugin. No other module starts vLLM."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emharness import memory
from emharness.errors import UserError
from emharness.generation import kernels
from emharness.generation.cells import Request
from emharness.steering.blocks import decoder_layers
from emharness.steering.request.spec import KEY, SpecJson
from emharness.steering.request.vector_lookup import FOLDER_VARIABLE
from emharness.steering.vllm import preflight, shutdown
from emharness.steering.vllm.op import unhooked

if TYPE_CHECKING:
    from emharness.config import EngineConfig, SamplingConfig


@dataclass(frozen=True)
class Completion:
    text: str
    n_tokens: int
    finish_reason: str  # "stop", or "length" where max_new_tokens cut it


@dataclass(frozen=True)
class Batch:
    """Completions of one condition: [prompt][sample], and what they cost."""

    completions: list[list[Completion]]
    generated_tokens: int
    seconds: float


def _read_completion(output: Any) -> Completion:
    """RuntimeError for a request that the engine could not answer as it was asked to."""
    if str(output.finish_reason) == "error":
        raise RuntimeError(f"vLLM ended a request with an error ({output.stop_reason})")
    return Completion(output.text, len(output.token_ids), str(output.finish_reason))


def why_unsupported(model: Path, config: EngineConfig, steered: bool = True) -> str | None:
    """Why an engine would not start for a model, or could not steer it, found without its weights; None if it may."""
    _set_environment(config)
    return preflight.why_unsupported(str(model), steered, **_llm_arguments(model, config))


def _set_environment(config: EngineConfig) -> None:
    """What vLLM reads from the environment; before it is imported."""
    # In this process: all requests of a call are queued before the first step, so batches, and with
    # them the sampled tokens, do not depend on timing.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # spawn: a forked child of a process that has used OpenMP threads can hang (tensor parallel).
    os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.cpu_kv_cache_gib))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def _llm_arguments(model: Path | str, config: EngineConfig) -> dict[str, Any]:
    """Of vllm.LLM, but for the model itself."""
    from vllm.platforms import current_platform

    # A split prompt would draw for its token more than once, which a request's own seed cannot take back on a
    # CPU: whole prompts only, so that every sample follows from its seed.
    # And only whole cache blocks are shared: a CPU's default of 128 tokens is longer than most prompts, with 32
    # the samples of a question share most of its prefill (1.19 to 1.25 times the tokens/s).
    whole: dict[str, Any] = {"enable_chunked_prefill": False, "block_size": 32}
    if current_platform.is_cpu() and preflight.keeps_state(str(model)):
        whole["enable_prefix_caching"] = False  # prompts that share a state are split where it was kept
    return {
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": config.is_eager(),
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": f"{__name__}.{WorkerExtension.__name__}",
        # Questions are text: a multimodal model's towers, and the processors of what they see, are not asked for.
        "language_model_only": True,
        **(whole if current_platform.is_cpu() else {}),
        **(kernels.kernel_arguments() if kernels.uses_kernel(config) else {}),
        **config.extra,
    }


class WorkerExtension:
    """Methods that vLLM adds to its workers; they are called by name through `collective_rpc`."""

    def emharness_seed(self, seed: int) -> None:
        import torch

        torch.manual_seed(seed)

    def emharness_hooked_layers(self) -> int:
        """How many decoder blocks have the plugin's hook."""
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        n_layers = runner.model_config.hf_text_config.num_hidden_layers
        return sum(bool(layer._forward_hooks) for layer in decoder_layers(runner.get_model(), n_layers))

    def emharness_let_go(self) -> None:
        """Remove torch's hooks of compiled models, which would keep their weights in memory."""
        shutdown.drop_compiled(self.model_runner.get_model())  # type: ignore[attr-defined]


class Engine:
    """A running vLLM engine for one model folder; a context manager."""

    def __init__(self, model: Path | str, config: EngineConfig, vectors: Path, seed: int, plugin: bool = True):
        """`plugin=False` is stock vLLM, for comparison; a process can be one or the other."""
        _set_environment(config)
        os.environ[FOLDER_VARIABLE] = str(vectors)
        if not plugin:
            os.environ["VLLM_PLUGINS"] = ""
        import vllm
        from vllm.platforms import current_platform
        from vllm.sampling_params import RequestOutputKind

        self.name = f"vllm-{vllm.__version__}"
        self.model = str(model)
        self._vllm = vllm
        self._max_num_seqs, self._streams = config.max_num_seqs, 0
        self._final_only = RequestOutputKind.FINAL_ONLY
        memory.keep_freed()
        memory.give_back()  # what another engine has left: the cache of this one is mapped by itself
        self._llm = vllm.LLM(str(model), seed=seed, **_llm_arguments(model, config))
        self._seeds_requests = current_platform.is_cuda_alike()
        if plugin and (why := self._why_unsteered()):
            self.close()
            raise UserError(why)

    def _why_unsteered(self) -> str | None:
        """Why requests cannot be steered here, or None."""
        if unhooked:
            return f"this model cannot be steered: {unhooked[0]}"
        layers = self._llm.llm_engine.model_config.hf_text_config.num_hidden_layers
        hooked = self._llm.collective_rpc("emharness_hooked_layers")
        if set(hooked) == {layers}:
            return None
        return (
            f"the steering plugin is active in {min(hooked)} of {layers} layers: install emharness in the environment "
            "of vLLM and leave VLLM_PLUGINS unset or let it name emharness_steering"
        )

    def generate_batch(
        self,
        prompts: Sequence[list[int]],
        n: int,
        sampling: SamplingConfig,
        seed: int,
        steering: SpecJson | Sequence[SpecJson | None] | None = None,
        salts: Sequence[str | None] | None = None,
    ) -> Batch:
        """n samples for each tokenised prompt, all under one steering spec or each under its own.

        The seed fixes the samples. A prompt under a salt is found in the prefix cache by those of the same salt alone.
        """
        salted = [{"cache_salt": salt} if salt else {} for salt in salts or [None] * len(prompts)]
        specs = [steering] * len(prompts) if steering is None or isinstance(steering, dict) else steering
        self._llm.collective_rpc("emharness_seed", args=(seed,))
        start = time.perf_counter()
        outputs = self._llm.generate(
            [{"prompt_token_ids": ids, **own} for ids, own in zip(prompts, salted, strict=True)],  # type: ignore[arg-type]
            [self._sampling_params(n, sampling, seed, spec) for spec in specs],
            use_tqdm=sampling.progress and sys.stderr.isatty(),
        )
        seconds = time.perf_counter() - start
        completions = [[_read_completion(c) for c in output.outputs] for output in outputs]
        tokens = sum(c.n_tokens for row in completions for c in row)
        return Batch(completions, tokens, seconds)

    def stream_completions(
        self, requests: Sequence[Request], sampling: SamplingConfig
    ) -> Iterator[tuple[int, Completion]]:
        """One completion for each request, as (index, completion) in the order in which they finish.

        Each has its own steering spec, length and seed. Only as many are queued as the batch can soon take. What
        still runs when the caller stops is aborted.
        """
        engine, upcoming, running = self._llm.llm_engine, iter(enumerate(requests)), set[str]()
        self._streams += 1
        try:
            while True:
                while len(running) < 2 * self._max_num_seqs and (following := next(upcoming, None)):
                    index, request = following
                    params = self._sampling_params(
                        1, sampling, request.seed, dict(request.spec) if request.spec else None
                    )
                    params.max_tokens, params.seed = request.max_new_tokens, request.seed
                    params.output_kind = self._final_only
                    request_id = f"{self._streams}-{index}"
                    engine.add_request(request_id, {"prompt_token_ids": list(request.prompt.token_ids)}, params)
                    running.add(request_id)
                if not running:
                    return
                for output in engine.step():
                    if output.finished:
                        running.discard(output.request_id)
                        yield int(output.request_id.partition("-")[2]), _read_completion(output.outputs[0])  # type: ignore[union-attr]
        finally:
            if running:
                engine.abort_request(list(running))

    def log_likelihoods(
        self, texts: Sequence[tuple[list[int], list[int]]], specs: Sequence[SpecJson | None]
    ) -> list[list[float]]:
        """log p of every token of each continuation, given its prompt and what is before it, under each spec.

        texts: (prompt, continuation) as token ids.
        """
        params = [
            self._vllm.SamplingParams(
                max_tokens=1, temperature=0, prompt_logprobs=0, extra_args={KEY: spec} if spec else None
            )
            for spec in specs
        ]
        prompts = [{"prompt_token_ids": prompt + continuation} for prompt, continuation in texts]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)  # type: ignore[arg-type]
        return [
            [entry[token].logprob for entry, token in zip(output.prompt_logprobs[-len(text) :], text, strict=True)]  # type: ignore[index]
            for output, (_, text) in zip(outputs, texts, strict=True)
        ]

    def next_tokens(self, prompts: Sequence[list[int]], top: int) -> list[dict[int, float]]:
        """The `top` likeliest next tokens after each prompt: token id → probability."""
        params = self._vllm.SamplingParams(max_tokens=1, temperature=0, logprobs=top)
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        likeliest = [output.outputs[0].logprobs[0] for output in outputs]  # type: ignore[index]
        return [{token: math.exp(entry.logprob) for token, entry in some.items()} for some in likeliest]

    def _sampling_params(self, n: int, sampling: SamplingConfig, seed: int, spec: SpecJson | None) -> Any:
        return self._vllm.SamplingParams(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            ignore_eos=sampling.ignore_eos,
            # The CPU backend takes no per-request seed; there the workers' generator is seeded instead.
            seed=seed if self._seeds_requests else None,
            extra_args={KEY: spec} if spec else None,
        )

    def clear_prefix_cache(self) -> None:
        """Empty the prefix cache, so that what comes next does not depend on what was asked before."""
        self._llm.reset_prefix_cache()

    def close(self) -> None:
        """Stop the engine and free its memory, so that the next model can be loaded in this process."""
        with suppress(Exception):  # workers that have died hold nothing
            self._llm.collective_rpc("emharness_let_go")
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        shutdown.free_engine_memory()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

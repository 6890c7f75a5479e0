"""A model in stock vLLM, in steered vLLM and in Hugging Face, asked the same: what `verify` compares."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from emharness.steering.request.recorded_output import recorded_means
from emharness.steering.request.spec import KEY, EditJson, SpecJson
from emharness.steering.request.vector_lookup import FOLDER_VARIABLE
from emharness.steering.verify import reference
from emharness.steering.vllm import preflight, shutdown

TEXTS = (
    "The harbour was quiet in the morning, and the boats lay side by side with their ropes still wet from the night.",
    "A recipe for bread has four ingredients, of which time is the most important one. Begin by mixing the flour and",
    "To find the area of a circle, first measure its radius.",
    "Once upon a time there was a clockmaker who had never owned a watch, because in his shop it was always every hour "
    "at once. One day a stranger came in, looked at the walls, and asked",
)
N_NEW = 8
TOP = 5  # likeliest tokens whose log-probabilities are compared
SETTINGS = {
    "max_model_len": 256, "max_num_seqs": 64, "seed": 0, "disable_log_stats": True,
    "language_model_only": True,
}  # fmt: skip
FILE = "verify.safetensors"
CONTAINER = Path("/sys/fs/cgroup/memory.max")

Specs = Sequence[SpecJson | None]
Likely = dict[int, float]  # token → log-probability, of the likeliest and the one that was taken
Result = tuple[list[list[int]], list[list[Likely]], list[Any]]  # tokens, `Likely` of each, recorded means or None


def start_engine(model: str, dtype: str, plugin: bool, eager: bool = True) -> Any:
    """A vLLM engine in this process; `plugin=False` is stock vLLM. Not eager: compiled, on a GPU with CUDA graphs."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")  # else a GPU's attention rounds float32 to tf32
    if not plugin:
        os.environ["VLLM_PLUGINS"] = ""
    import vllm

    return vllm.LLM(model=model, dtype=dtype, enforce_eager=eager, **SETTINGS)  # type: ignore[arg-type]


def generate_tokens(llm: Any, prompts: Sequence[list[int]], specs: Specs) -> Result:
    """Greedy tokens with their log-probabilities, all in one batch, and what each request recorded."""
    import vllm

    params = [
        vllm.SamplingParams(
            temperature=0.0, max_tokens=N_NEW, ignore_eos=True, logprobs=TOP, extra_args={KEY: spec} if spec else None
        )
        for spec in specs
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    found = [
        [{token: one.logprob for token, one in step.items()} for step in output.outputs[0].logprobs]
        for output in outputs
    ]
    means = [recorded_means(told)[0].tolist() if (told := output.kv_transfer_params) else None for output in outputs]
    return tokens, found, means


def largest_difference(one: Result, other: Result) -> float:
    """Largest difference of log-probabilities, up to where the answers part (as two equally likely tokens let them);
    inf where one has taken a token that is not among the other's likeliest."""
    worst = 0.0
    for *ids, p, q in zip(one[0], other[0], one[1], other[1], strict=True):
        for a, b, ours, theirs in zip(*ids, p, q, strict=True):
            if a not in theirs or b not in ours:
                return float("inf")
            worst = max(worst, max(abs(ours[token] - theirs[token]) for token in ours.keys() & theirs.keys()))
            if a != b:
                break
    return worst


def spec_of(edits: list[EditJson] | None, record: SpecJson | None = None) -> SpecJson | None:
    """A request's spec; None where it asks for nothing."""
    return {key: value for key, value in (("edits", edits), ("record", record)) if value} or None


def free_memory() -> int:
    """Bytes that this process can still have: a container may allow less than there is, and kills who takes more."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        return max(0, min(free, int(CONTAINER.read_text()) - psutil.Process().memory_info().rss))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


KINDS = {"--stock": "stock vLLM", "--compiled": "compiled vLLM"}


class NoEngine(RuntimeError):
    """vLLM itself did not answer."""


class NoReference(RuntimeError):
    """Hugging Face does not load the model, or not here."""


@dataclass
class Trial:
    """What the checks share: the model, its prompts, one random unit direction a layer, the steered engine."""

    model: str
    layer: int | None
    folder: Path
    dtype: str = "float32"

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)

    @cached_property
    def prompts(self) -> list[list[int]]:
        return [self.tokenizer(text)["input_ids"][:80] for text in TEXTS]

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model, trust_remote_code=False)

    @cached_property
    def shape(self) -> tuple[int, int]:
        config = self.config.get_text_config()
        return config.num_hidden_layers, config.hidden_size

    @property
    def is_exact(self) -> bool:
        """Whether nothing is rounded but by float32: not in a smaller type, nor in a quantised model."""
        return self.dtype == "float32" and getattr(self.config, "quantization_config", None) is None

    @property
    def checked_layer(self) -> int:
        return self.shape[0] // 2 if self.layer is None else self.layer

    @cached_property
    def stock_result(self) -> Result:
        """Stock vLLM's answers, from a process in which no plugin is loaded."""
        return self.run_elsewhere("--stock", self.prompts, [None] * len(self.prompts))

    def run_elsewhere(self, kind: str, prompts: Sequence[list[int]], specs: Specs) -> Result:
        """`generate` on an engine of that kind, in a process of its own."""
        asked = json.dumps([prompts, specs])
        command = [sys.executable, "-m", "emharness.steering.verify.trial", kind, self.model, self.dtype, asked]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "Error" in line]
            why = preflight.why_unsupported(self.model, False, dtype=self.dtype, **SETTINGS)
            raise NoEngine(
                f"{KINDS[kind]} does not run this model: {why or (errors or [done.stderr.strip()[-200:]])[-1]}"
            )
        tokens, found, means = json.loads(done.stdout.strip().splitlines()[-1])
        return tokens, [[{int(t): p for t, p in step.items()} for step in steps] for steps in found], means

    def close(self) -> None:
        """Stop the engine, so that another one has its memory."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        shutdown.free_engine_memory()

    @cached_property
    def llm(self) -> Any:
        _ = self.stock_result  # first: two engines at a time need not fit a GPU
        rows = np.random.default_rng(0).normal(size=(3, *self.shape)).astype(np.float32)
        unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        save_file({f"v{i}": unit[i] for i in range(3)}, self.folder / FILE)
        os.environ[FOLDER_VARIABLE] = str(self.folder)
        self.directions = unit
        try:
            return start_engine(self.model, self.dtype, plugin=True)
        except Exception as error:
            raise NoEngine(f"vLLM with this plugin does not start: {type(error).__name__}: {error}") from error

    @cached_property
    def hf(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        try:
            with torch.device("meta"):
                shapes: Any = AutoModelForCausalLM.from_config(self.config, trust_remote_code=False)
            needed, free = 4 * sum(one.numel() for one in shapes.parameters()), free_memory()
            if needed > free:
                raise NoReference(f"Hugging Face's model takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free")
            model: Any = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32, trust_remote_code=False)
        except (ImportError, OSError, ValueError) as error:  # a package of a kind of quantised model; a GPU for it
            raise NoReference(f"Hugging Face does not load this model: {error}") from error
        return model.eval()

    def make_edit(self, strength: float, mode: str = "add", vector: int = 0, **more: Any) -> EditJson:
        return {"vector": f"{FILE}#v{vector}", "layer": self.checked_layer, "strength": strength, "mode": mode, **more}

    def run_steered(self, edits: Sequence[list[EditJson] | None], prompts: Sequence[list[int]] | None = None) -> Result:
        return generate_tokens(
            self.llm, self.prompts if prompts is None else prompts, [spec_of(some) for some in edits]
        )

    def run_one_by_one(self, edits: Sequence[list[EditJson] | None], prompts: Sequence[list[int]]) -> Result:
        """`run`, one request after another."""
        each = [self.run_steered([some], [prompt]) for some, prompt in zip(edits, prompts, strict=True)]
        return [tokens[0] for tokens, _, _ in each], [found[0] for _, found, _ in each], []

    def from_hugging_face(self, edits: Sequence[list[EditJson] | None]) -> float:
        """Largest difference of the log-probabilities of all tokens that are taken, each prompt under its own edits."""
        tokens, found, _ = self.run_steered(edits)
        worst = 0.0
        for prompt, ids, steps, some in zip(self.prompts, tokens, found, edits, strict=True):
            own = [step[token] for step, token in zip(steps, ids, strict=True)]
            worst = max(worst, float(np.abs(reference.token_logprobs(self.hf, prompt, ids, some) - own).max()))
        return worst

    @cached_property
    def noise(self) -> float:
        """How far unsteered answers are from Hugging Face's in float32, if it has the model, and from their own in
        another batch."""
        many = self.prompts * 3
        batches = largest_difference(
            self.run_steered([None] * len(many), many), self.run_one_by_one([None] * len(many), many)
        )
        try:
            return max(self.from_hugging_face([None] * len(self.prompts)), batches)
        except NoReference:
            return batches

    def recorded_means(self, edits: list[EditJson] | None) -> np.ndarray:
        """Recorded mean residual over the first prompt after every block, [n_layers, d_model]."""
        spec = spec_of(edits, {"layers": list(range(self.shape[0])), "positions": "prompt"})
        return np.array(generate_tokens(self.llm, self.prompts[:1], [spec])[2][0])

    @cached_property
    def dose(self) -> float:
        """A strength that shows: half of the stream's mean length at this layer."""
        return 0.5 * float(np.linalg.norm(self.recorded_means(None)[self.checked_layer]))


def main(kind: str, model: str, dtype: str, asked: str) -> None:
    """Tokens, log-probabilities and recorded means from an engine of that kind, as JSON."""
    llm = start_engine(model, dtype, plugin=kind != "--stock", eager=kind != "--compiled")
    print(json.dumps(generate_tokens(llm, *json.loads(asked))))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Does steering do here what it says? python -m emharness.steering.verify <folder or hub id> [layer]

Starts stock vLLM and steered vLLM on a model, compares them with each other and with Hugging Face, and prints a row for
each check. Needs vLLM with this plugin installed, transformers, and nothing else; exit status 1 if a check fails.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from emharness.steering import reference
from emharness.steering.record import recorded
from emharness.steering.spec import KEY
from emharness.steering.vectors import FOLDER_VARIABLE

TEXTS = (
    "The harbour was quiet in the morning, and the boats lay side by side with their ropes still wet from the night.",
    "A recipe for bread has four ingredients, of which time is the most important one. Begin by mixing the flour and",
    "To find the area of a circle, first measure its radius.",
    "Once upon a time there was a clockmaker who had never owned a watch, because in his shop it was always every hour "
    "at once. One day a stranger came in, looked at the walls, and asked",
)
N_NEW = 8
SETTINGS = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 64, "enforce_eager": True}
SETTINGS |= {"disable_log_stats": True, "async_scheduling": False, "seed": 0}
TOLERANCE = 2e-3  # of log-probabilities in float32, between two implementations of a model
CLOSE = 1e-4  # relative, of recorded residuals and projections
FILE = "verify.safetensors"


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool | None  # None: not run
    detail: str


Result = tuple[list[list[int]], list[list[float]]]  # tokens, log-probabilities


def engine(model: str, plugin: bool) -> Any:
    """A vLLM engine in this process; `plugin=False` is stock vLLM."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if not plugin:
        os.environ["VLLM_PLUGINS"] = ""
    import vllm

    return vllm.LLM(model=model, **SETTINGS)  # type: ignore[arg-type]


def generate(
    llm: Any, prompts: Sequence[list[int]], specs: Sequence[dict[str, Any] | None]
) -> tuple[Result, list[Any]]:
    """Greedy tokens with their log-probabilities, all in one batch, and what each request recorded."""
    import vllm

    params = [
        vllm.SamplingParams(
            temperature=0.0, max_tokens=N_NEW, ignore_eos=True, logprobs=0, extra_args={KEY: spec} if spec else None
        )
        for spec in specs
    ]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    found = [
        [step[token].logprob for step, token in zip(output.outputs[0].logprobs, ids, strict=True)]
        for output, ids in zip(outputs, tokens, strict=True)
    ]
    return (tokens, found), [output.kv_transfer_params for output in outputs]


@dataclass
class Bench:
    """What the checks share: the model, its prompts, one random unit direction a layer, the steered engine."""

    model: str
    layer: int | None
    folder: Path

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model)

    @cached_property
    def prompts(self) -> list[list[int]]:
        return [self.tokenizer(text)["input_ids"][:80] for text in TEXTS]

    @cached_property
    def shape(self) -> tuple[int, int]:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.model).get_text_config()
        return config.num_hidden_layers, config.hidden_size

    @property
    def at(self) -> int:
        return self.shape[0] // 2 if self.layer is None else self.layer

    @cached_property
    def stock(self) -> Result:
        """Stock vLLM's answers, from a process in which no plugin is loaded."""
        command = [sys.executable, "-m", "emharness.steering.verify", "--stock", self.model, json.dumps(self.prompts)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"stock vLLM does not run this model: {done.stderr.strip().splitlines()[-1:]}")
        tokens, found = json.loads(done.stdout.strip().splitlines()[-1])
        return tokens, found

    @cached_property
    def llm(self) -> Any:
        rows = np.random.default_rng(0).normal(size=(3, *self.shape)).astype(np.float32)
        unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        save_file({f"v{i}": unit[i] for i in range(3)}, self.folder / FILE)
        os.environ[FOLDER_VARIABLE] = str(self.folder)
        self.directions = unit
        return engine(self.model, plugin=True)

    @cached_property
    def hf(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        for module in model.modules():  # vLLM's transformers backend changes the classes that it serves, here as well
            module.do_not_compile = True
        return model.eval()

    def edit(self, strength: float, mode: str = "add", vector: int = 0, **more: Any) -> dict[str, Any]:
        return {"vector": f"{FILE}#v{vector}", "layer": self.at, "strength": strength, "mode": mode, **more}

    def run(self, edits: Sequence[list[dict[str, Any]] | None], prompts: Sequence[list[int]] | None = None) -> Result:
        specs = [{"edits": some} if some else None for some in edits]
        return generate(self.llm, self.prompts if prompts is None else prompts, specs)[0]

    def means(self, edits: list[dict[str, Any]] | None) -> np.ndarray:
        """Recorded mean residual over the first prompt after every block, [n_layers, d_model]."""
        spec: dict[str, Any] = {"record": {"layers": list(range(self.shape[0])), "positions": "prompt"}}
        _, told = generate(self.llm, self.prompts[:1], [spec | ({"edits": edits} if edits else {})])
        return recorded(told[0])[0]

    @cached_property
    def dose(self) -> float:
        """A strength that shows: half of the stream's mean length at this layer."""
        return 0.5 * float(np.linalg.norm(self.means(None)[self.at]))


def _differ(one: Result, other: Result) -> float:
    """Largest difference of log-probabilities; inf where a token differs."""
    if one[0] != other[0]:
        return float("inf")
    return max(abs(a - b) for x, y in zip(one[1], other[1], strict=True) for a, b in zip(x, y, strict=True))


def idle_is_stock(bench: Bench) -> tuple[bool, str]:
    gap = _differ(bench.run([None] * len(TEXTS)), bench.stock)
    return gap == 0, f"difference {gap:g}, must be 0"


def zero_is_idle(bench: Bench) -> tuple[bool, str]:
    gap = _differ(bench.run([[bench.edit(0.0)]] * len(TEXTS)), bench.run([None] * len(TEXTS)))
    return gap == 0, f"difference {gap:g}, must be 0"


def edits_change(bench: Bench) -> tuple[bool, str]:
    plain, steered = bench.run([None] * len(TEXTS)), bench.run([[bench.edit(4 * bench.dose)]] * len(TEXTS))
    moved = sum(a != b for a, b in zip(plain[1], steered[1], strict=True))
    return moved == len(TEXTS), f"{moved} of {len(TEXTS)} answers differ from unsteered ones"


def equals_hugging_face(bench: Bench) -> tuple[bool, str]:
    worst = 0.0
    cases = [
        [bench.edit(bench.dose)],
        [bench.edit(1.0, "ablate")],
        [bench.edit(bench.dose, positions="generated"), bench.edit(-bench.dose, vector=1, positions="prompt")],
    ]
    for case in [None, *cases]:
        tokens, found = bench.run([case] * len(TEXTS))
        for prompt, ids, own in zip(bench.prompts, tokens, found, strict=True):
            worst = max(worst, float(np.abs(reference.logprobs(bench.hf, prompt, ids, case) - own).max()))
    return worst < TOLERANCE, f"largest difference {worst:.1e}, must be below {TOLERANCE:g}"


def record_is_hidden_state(bench: Bench) -> tuple[bool, str]:
    edits = [bench.edit(bench.dose)]
    expected = reference.residuals(bench.hf, bench.prompts[0], edits).mean(1)
    gap = float(np.abs(bench.means(edits) - expected).max() / np.abs(expected).max())
    return gap < CLOSE, f"relative difference {gap:.1e}, must be below {CLOSE:g}"


def doses_add_up(bench: Bench) -> tuple[bool, str]:
    along = bench.directions[0, bench.at].astype(np.float64)
    plain = float(bench.means(None)[bench.at] @ along)
    doses = [bench.dose * factor for factor in (0.5, 1, 2)]
    moved = [float(bench.means([bench.edit(dose)])[bench.at] @ along) - plain for dose in doses]
    gap = max(abs(m / d - 1) for m, d in zip(moved, doses, strict=True))
    return gap < CLOSE * 10, f"projection moves by the dose to {gap:.1e}"


def ablated_is_gone(bench: Bench) -> tuple[bool, str]:
    stream = bench.means([bench.edit(1.0, "ablate")])[bench.at].astype(np.float64)
    left = abs(float(stream @ bench.directions[0, bench.at])) / float(np.linalg.norm(stream))
    return left < CLOSE, f"component left {left:.1e}, must be below {CLOSE:g}"


def together_is_alone(bench: Bench) -> tuple[bool, str]:
    specs = [[bench.edit(bench.dose * (1 + i % 3), vector=i % 3)] if i % 4 else None for i in range(12)]
    prompts = [bench.prompts[i % len(TEXTS)] for i in range(len(specs))]
    together = bench.run(specs, prompts)
    alone = [bench.run([spec], [prompt]) for spec, prompt in zip(specs, prompts, strict=True)]
    gap = _differ(together, ([one[0][0] for one in alone], [one[1][0] for one in alone]))
    return gap < TOLERANCE, f"{len(specs)} requests at once: largest difference {gap:.1e}, must be below {TOLERANCE:g}"


def cache_changes_nothing(bench: Bench) -> tuple[bool, str]:
    long = [(bench.prompts[0] * 8)[:120]]
    specs = [None, [bench.edit(bench.dose)], [bench.edit(bench.dose, vector=1)], None]
    fresh = []
    for spec in specs:
        bench.llm.reset_prefix_cache()
        fresh.append(bench.run([spec], long))
    warm = [bench.run([spec], long) for spec in [*specs, *specs][len(specs) :]]
    gap = max(_differ(a, b) for a, b in zip(fresh, warm, strict=True))
    return gap < TOLERANCE, f"largest difference {gap:.1e}, must be below {TOLERANCE:g}"


CHECKS: dict[str, Callable[[Bench], tuple[bool, str]]] = {
    "idle: bit-equal to vLLM without the plugin": idle_is_stock,
    "strength 0: bit-equal to unsteered": zero_is_idle,
    "a large dose changes every answer": edits_change,
    "edits equal Hugging Face with hooks": equals_hugging_face,
    "recorded means equal hidden states": record_is_hidden_state,
    "the projection moves by the dose": doses_add_up,
    "ablation leaves no component": ablated_is_gone,
    "mixed in one batch as alone": together_is_alone,
    "prefix cache changes nothing": cache_changes_nothing,
}


def verify(model: str, layer: int | None = None, tell: Callable[[Check], None] = lambda check: None) -> list[Check]:
    """All checks on a model, told one by one. A check that raises has failed, with the reason."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(model, layer, Path(folder))
        for name, check in CHECKS.items():
            try:
                passed, detail = check(bench)
            except MemoryError:
                passed, detail = None, "not run: the model does not fit beside the engine"
            except Exception as error:
                passed, detail = False, " ".join(f"{type(error).__name__}: {error}".split())[:200]
            found.append(Check(name, passed, detail))
            tell(found[-1])
            gc.collect()
    return found


def line(check: Check) -> str:
    mark = {True: "pass", False: "FAIL", None: "  – "}[check.passed]
    return f"{mark}  {check.name:<46} {check.detail}"


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--stock"]:
        llm = engine(arguments[1], plugin=False)
        prompts = json.loads(arguments[2])
        print(json.dumps(generate(llm, prompts, [None] * len(prompts))[0]))
        return 0
    if not arguments:
        print("give a model: a folder in hub format, or a hub id", file=sys.stderr)
        return 2
    layer = int(arguments[1]) if len(arguments) > 1 else None
    found = verify(arguments[0], layer, lambda check: print(line(check), flush=True))
    return int(any(check.passed is False for check in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

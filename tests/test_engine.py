"""Real vLLM on a tiny random model, float32: steering equals a Hugging Face forward with hooks."""

import json
import os
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from emharness.config import EngineConfig, SamplingConfig
from emharness.engine import Engine
from emharness.steering import spec
from emharness.steering.vectors import FOLDER_VARIABLE

pytestmark = pytest.mark.engine

CONFIG = EngineConfig(dtype="float32", max_model_len=256, max_num_seqs=32, cpu_kv_cache_gib=1)
PROMPTS = [list(range(100, 100 + n)) for n in (37, 20, 45)]  # longer than one cache block of 16 or 32 tokens
N_NEW = 6
FILE = "tiny.safetensors"
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=N_NEW, progress=False)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    tensors = {k: rng.normal(size=(4, 64)).astype("f") for k in ("one", "two")}
    save_file(tensors, folder / FILE, metadata={k: json.dumps({"raw_norm": [6.0] * 4}) for k in tensors})
    return folder


@pytest.fixture(scope="module")
def engine(tiny, vectors):
    with Engine(tiny, CONFIG, vectors, seed=0) as running:
        yield running


@pytest.fixture(scope="module")
def model(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def edit(**changes):
    return {"vector": f"{FILE}#one", "layer": 1, "strength": 8.0, **changes}


SEVERAL = [
    edit(vector=f"{FILE}#two", strength=6.0),
    edit(mode="ablate", strength=1.0),
    edit(layer=3, strength=1.5, unit="raw"),
]
CASES = [
    None,
    *([edit(mode=m, strength=s, positions=p)] for m, s in (("add", 8.0), ("ablate", 1.0)) for p in
      ("all", "prompt", "generated", "response")),
    *([{**one, "positions": p} for one in SEVERAL] for p in ("all", "prompt", "generated", "response")),
    [edit(positions="prompt"), edit(vector=f"{FILE}#two", positions="generated", layer=2)],
]  # fmt: skip


def run(engine, prompts, edits_list):
    """Greedy tokens and their log-probabilities, each prompt under its own edits, in one batch."""
    params = [
        engine._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=N_NEW,
            ignore_eos=True,
            logprobs=0,
            extra_args={spec.KEY: {"edits": edits}} if edits else None,
        )
        for edits in edits_list
    ]
    outputs = engine._llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    tokens = [list(o.outputs[0].token_ids) for o in outputs]
    logprobs = [
        [step[token].logprob for step, token in zip(o.outputs[0].logprobs, ids, strict=True)]
        for o, ids in zip(outputs, tokens, strict=True)
    ]
    return tokens, logprobs


@contextmanager
def hooked(model, edits, prompt_length):
    handles = []
    for one in spec.resolve({"edits": edits}, 4, 64)["edits"] if edits else []:
        v = torch.from_numpy(np.frombuffer(one["direction"], dtype="f").copy())
        start, end = spec.steered_span(one["positions"], prompt_length)

        def hook(_m, _i, output, one=one, v=v, start=start, end=end):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            part = hidden[:, start:end]
            hidden[:, start:end] = part + (one["a"] + one["b"] * (part @ v)[..., None]) * v
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles.append(model.model.layers[one["layer"]].register_forward_hook(hook))
    yield
    for handle in handles:
        handle.remove()


def reference(model, prompt, tokens, edits):
    """Log-probabilities of the same tokens by a Hugging Face forward with hooks."""
    with hooked(model, edits, len(prompt)), torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0]
    logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return logprobs[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()


def test_every_mode_and_position_equals_hooks_alone_and_in_one_mixed_batch(engine, model):
    prompts = [prompt for _ in CASES for prompt in PROMPTS]
    edits = [case for case in CASES for _ in PROMPTS]
    tokens, logprobs = run(engine, prompts, edits)
    for prompt, case, ids, values in zip(prompts, edits, tokens, logprobs, strict=True):
        assert values == pytest.approx(reference(model, prompt, ids, case), abs=1e-4), (case, len(prompt))
    for i in range(0, len(prompts), 4):
        alone_tokens, alone = run(engine, prompts[i : i + 1], edits[i : i + 1])
        assert alone_tokens[0] == tokens[i]
        assert alone[0] == pytest.approx(logprobs[i], abs=1e-4)


def test_steering_changes_the_model_and_strength_zero_does_not(engine):
    (plain, _), (zero, _), (steered, _) = (
        run(engine, PROMPTS, [e] * 3) for e in (None, [edit(strength=0.0)], [edit(strength=30.0)])
    )
    assert zero == plain
    assert steered != plain


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "response"])
def test_the_prefix_cache_never_mixes_steered_and_unsteered(engine, positions):
    prompt = list(range(300, 364))
    steered = [edit(strength=12.0, positions=positions)]
    fresh = run(engine, [prompt], [None])
    first = run(engine, [prompt], [steered])
    assert_same(run(engine, [prompt], [None]), fresh)
    assert_same(run(engine, [prompt], [steered]), first)
    # A longer prompt whose beginning was prompt and answer of the steered request, unsteered and steered.
    longer = [prompt + first[0][0] + list(range(400, 430))] * 2
    warm = run(engine, longer, [None, steered])
    engine._llm.reset_prefix_cache()
    assert_same(run(engine, longer, [None, steered]), warm)


def assert_same(got, expected):
    """The same tokens, with the same log-probabilities up to float32 rounding."""
    assert got[0] == expected[0]
    for some, others in zip(got[1], expected[1], strict=True):
        assert some == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize(
    "bad",
    [
        {"edits": []},
        {"edits": [edit(layer=4)]},
        {"edits": [edit(vector=f"{FILE}#none")]},
        {"edits": [edit(strength=float("inf"))]},
        {"edits": [edit()], "colour": "red"},
        "[1, 2]",
    ],
)
def test_a_bad_request_is_refused_and_the_engine_lives_on(engine, bad):
    with pytest.raises(ValueError, match="steering: "):
        engine.generate(PROMPTS, 1, GREEDY, 0, [bad] * 3)
    assert len(engine.generate(PROMPTS[:1], 1, GREEDY, 0).completions) == 1


def test_the_same_seed_gives_the_same_samples(engine):
    sampling = SamplingConfig(temperature=1.0, top_k=40, max_new_tokens=8, progress=False)
    steering = {"edits": [edit()]}
    first, second, other = (engine.generate(PROMPTS, 5, sampling, s, steering) for s in (1, 1, 2))
    assert first.completions == second.completions != other.completions
    assert first.generated_tokens == sum(c.n_tokens for row in first.completions for c in row)


def test_the_caller_s_parameters_are_not_changed(engine):
    request = {"edits": [edit()]}
    params = engine._vllm.SamplingParams(max_tokens=1, extra_args={spec.KEY: request})
    engine._llm.generate([{"prompt_token_ids": PROMPTS[0]}], params, use_tqdm=False)
    assert params.extra_args == {spec.KEY: {"edits": [edit()]}}
    assert os.environ[FOLDER_VARIABLE]

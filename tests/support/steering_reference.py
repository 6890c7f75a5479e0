"""What steering must equal: a Hugging Face forward with hooks. Shared by the engine tests."""

import pytest

from emharness.config import SamplingConfig
from emharness.steering.request import spec
from emharness.steering.verify.reference import token_logprobs

PROMPTS = [list(range(100, 100 + n)) for n in (37, 20, 45)]  # longer than one cache block of 16 or 32 tokens
N_NEW = 6
FILE = "tiny.safetensors"
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=N_NEW, progress=False)


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
    [edit(mode="pin", strength=3.0)],
    [edit(mode="pin", strength=0.5, unit="raw", positions="response")],
    [edit(mode="cap", strength=0.2), edit(mode="floor", strength=-0.2, vector=f"{FILE}#two", layer=2)],
    [edit(rescale=True), edit(layer=2, mode="ablate", strength=1.0, rescale=True)],
    [{**edit(strength=4.0), "layer": None, "layers": [0, 2, 3]}],
    [{**edit(strength=-4.0), "layer": None, "layers": "1-3"}],
    [edit(positions={"from": 5, "to": 30}), edit(positions={"from": 18}, vector=f"{FILE}#two")],
    [edit(gate={"vector": f"{FILE}#two", "above": 0.0})],
    [edit(layer=3, gate={"vector": f"{FILE}#one", "layer": 0, "above": 0.1}), edit(layer=3, strength=-2.0)],
    [edit(mode="cap", strength=0.0, positions="generated", gate={"vector": f"{FILE}#two", "layer": 0, "above": -0.1})],
]  # fmt: skip


def run(engine, prompts, edits_list, lora=None, n_new=N_NEW):
    """Greedy tokens and their log-probabilities, each prompt (tokens, or as vLLM takes it) under its own edits, in one
    batch."""
    params = [
        engine._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=n_new,
            ignore_eos=True,
            logprobs=0,
            extra_args={spec.KEY: {"edits": edits}} if edits else None,
        )
        for edits in edits_list
    ]
    outputs = engine._llm.generate(
        [p if isinstance(p, dict) else {"prompt_token_ids": p} for p in prompts],
        params,
        use_tqdm=False,
        lora_request=lora,
    )
    tokens = [list(o.outputs[0].token_ids) for o in outputs]
    logprobs = [
        [step[token].logprob for step, token in zip(o.outputs[0].logprobs, ids, strict=True)]
        for o, ids in zip(outputs, tokens, strict=True)
    ]
    return tokens, logprobs


def reference(model, prompt, tokens, edits):
    """Log-probabilities of the same tokens by a Hugging Face forward with hooks."""
    return token_logprobs(model, prompt, tokens, edits).tolist()


def assert_same(got, expected):
    """The same tokens, with the same log-probabilities up to float32 rounding."""
    assert got[0] == expected[0]
    for some, others in zip(got[1], expected[1], strict=True):
        assert some == pytest.approx(others, abs=1e-4)

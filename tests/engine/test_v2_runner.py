"""Steering on vLLM's V2 model runner, the default on GPUs, equals Hugging Face too: the same tests, on a CPU.

Its sampler does not draw in Triton's interpreter, so tests that draw are left out; what is computed layer by
layer is the same.
"""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from emharness.steering.vllm import op, runners
from emharness.steering.vllm.request_outcomes import PLAN

CHOSEN = (
    "every_mode_and_position", "never_mixes_steered_and_unsteered", "a_bad_request_is_refused", "strength_zero",
    "recorded_means_equal", "projections_of_every_token", "share_the_prompts_cache", "begin_after_a_token",
)  # fmt: skip


def test_every_vllm_tells_the_length_of_a_prompt():
    assert runners._prompt_length(SimpleNamespace(prompt_token_ids=[5, 6, 7])) == 3  # to 0.28
    assert runners._prompt_length(SimpleNamespace(prompt_token_ids=None, prompt_len=4)) == 4


def test_no_memory_is_taken_while_a_model_is_loaded(monkeypatch):
    """An engine that sleeps on a GPU (level 2) drops what was, and the kernel would read on."""
    runner = SimpleNamespace(get_model=torch.nn.Module, model_config=None, device=None)
    monkeypatch.setattr(op, "unhooked", [])
    monkeypatch.setattr(runners, "_hook_blocks", lambda *_: None)
    monkeypatch.setattr(runners, "_new_plan", lambda runner: ["its buffers"])
    runners._hook_layers(lambda runner: None, runner)
    assert not hasattr(runner, PLAN)
    assert runners._plan_of(runner) == ["its buffers"]
    assert runners._plan_of(runner) is getattr(runner, PLAN)


@pytest.mark.engine
def test_the_equality_suite_holds_on_the_v2_runner():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "support.v2_runner",
        "-q",
        "--show-capture=no",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    files = [f"tests/engine/{name}.py" for name in ("test_engine", "test_engine_modes")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    done = subprocess.run(
        [*command, *files, "-k", " or ".join(CHOSEN)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= 19

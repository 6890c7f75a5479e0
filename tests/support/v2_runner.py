"""A pytest plugin (`-p v2`): the engines of this process run on vLLM's V2 model runner, on a CPU, its Triton kernels in
Triton's interpreter.

vLLM takes V2 where Triton has one active backend. Triton has none for CPUs, so a stand-in says that it is active; it
must be there before vllm is imported. Steering is told to its kernel, through the buffers, as on a GPU.
"""

import os
import sys
from types import SimpleNamespace

import pytest

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
os.environ["EMHARNESS_TEST_VOCABULARY"] = "2048"  # kernels over logits are slow there

from triton.backends import backends

backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)  # type: ignore[assignment]


@pytest.fixture(scope="session", autouse=True)
def on_v2():
    from emharness.steering.vllm import runners

    runners.on_device = lambda device: True
    yield
    assert "vllm.v1.worker.cpu.model_runner" in sys.modules  # V1's is another module

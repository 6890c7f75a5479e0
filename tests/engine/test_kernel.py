"""The kernel that steers on a GPU: right there and in Triton's interpreter, and compiled for two generations."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

KERNEL = "support/kernel_checks"

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from emharness.steering.gpu import kernel

pointers = dict(hidden="*bf16", residual="*bf16", slots="*i32", positions="*i32", recorded="*i32", rows="*i32",
                floats="*fp32", address="*i64", opened="*i8", memory="*i64", counted="*i32", depth="*i32")
scalars = ["n_layers", "width", "n_gates", "d_model", "hidden_stride", "residual_stride"]
edits = {"SUMMED": "constexpr", "BLOCK": "constexpr"}
sources = [
    ASTSource(kernel._steer_kernel, signature={**pointers, **dict.fromkeys(scalars, "i32"), **edits},
              constexprs={"SUMMED": summed, "BLOCK": 4096})
    for summed in (True, False)
]
looks = {**dict.fromkeys(["ids", "slots", "positions", "rows"], "*i32"),
         **dict.fromkeys(["width", "began", "n_edits"], "i32")}
sources.append(ASTSource(kernel._trigger_kernel, signature={**looks, "BLOCK": "constexpr"}, constexprs={"BLOCK": 256}))
for source in sources:
    done = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options={"num_warps": 8})
    print("bytes of machine code:", len(done.asm["cubin"]))
"""


def run(*command, **variables):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, **variables}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_kernel_is_right_in_the_interpreter():
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{KERNEL}.py", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_kernel_is_right_on_a_gpu():
    """The same file: the kernel compiled, and its launches in a CUDA graph."""
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{KERNEL}.py", TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) == 8


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_a_gpu(capability, tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    done = run("-c", COMPILE.replace("CAPABILITY", str(capability)), TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = [int(size) for size in re.findall(r"machine code: (\d+)", done.stdout)]
    assert len(sizes) == 3
    assert min(sizes) > 1000

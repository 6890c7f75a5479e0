"""What is freed is taken again, not mapped anew: page faults of large tensors, counted by the system."""

import subprocess
import sys

import pytest
from conftest import ROOT

SIZE, TIMES = 64 << 20, 20  # bytes, as the logits of a batch have; beyond what glibc itself would keep

PROGRAMME = f"""
import resource
import torch
from emharness import memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({TIMES}):
        torch.ones({SIZE}, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

first = faults()
assert memory.keep_freed()
faults()
second, kept = faults(), resident()
memory.give_back()
print(first, second, kept - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_is_freed_is_taken_again_until_it_is_given_back():
    done = subprocess.run([sys.executable, "-c", PROGRAMME], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, returned = map(int, done.stdout.split())
    assert first >= TIMES  # far more, but where the system maps huge pages
    assert second < TIMES / 2
    assert returned > 0.9 * SIZE

"""One model over two workers: each adds the whole vector to its own copy of the stream, if it has one."""

import os
import subprocess
import sys

import cloudpickle
import numpy as np
import pytest
import torch
from conftest import ROOT
from support import engine_models
from support.engine_models import check, config, hand_on_summands, loaded
from support.steering_reference import CASES, PROMPTS, edit, run

from emharness.generation.engine import Engine
from emharness.steering.request import spec
from emharness.steering.request.recorded_output import recorded_means
from emharness.steering.verify.reference import edited_by_hooks
from emharness.steering.vllm import op, tensor_parallel
from emharness.steering.vllm.request_outcomes import PLAN

pytestmark = pytest.mark.engine


@pytest.fixture
def engine(tiny, vectors, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with Engine(tiny, config(tensor_parallel_size=2), vectors, seed=0) as running:
        yield running


def test_two_workers_steer_and_record_as_one_model_does(engine, tiny):
    for module in (sys.modules[__name__], engine_models):
        cloudpickle.register_pickle_by_value(module)
    executor = engine._llm.llm_engine.engine_core.engine_core.model_executor
    assert executor.collective_rpc(has_looked) == [True, True]  # before any request
    check(engine, loaded(tiny), PROMPTS, CASES)
    case = {"edits": [edit()], "record": {"layers": [0, 2], "positions": "all"}}
    params = engine._vllm.SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, extra_args={spec.KEY: case})
    (output,) = engine._llm.generate([{"prompt_token_ids": PROMPTS[0]}], params, use_tqdm=False)
    means, n_tokens = recorded_means(output.kv_transfer_params)
    fed = PROMPTS[0] + list(output.outputs[0].token_ids)[:-1]
    model = loaded(tiny)
    with edited_by_hooks(model, case["edits"], len(PROMPTS[0])), torch.inference_mode():
        states = model(torch.tensor([fed]), output_hidden_states=True).hidden_states
    assert n_tokens == len(fed)
    for layer, mean in zip((0, 2), means, strict=True):
        np.testing.assert_allclose(mean, states[layer + 1][0].mean(0), atol=1e-4)

    plain = run(engine, PROMPTS, [None] * 3)
    for planted, mended, why in (
        (hand_on_summands, hand_on_the_whole, "after block 1 its workers hold summands"),
        (find_no_blocks, find_blocks, "it has no blocks"),
    ):
        executor.collective_rpc(planted)
        tensor_parallel.probe_workers(executor)
        with pytest.raises(ValueError, match=f"^steering: this model cannot be steered: {why}"):
            run(engine, PROMPTS, [[edit()]] * 3)
        executor.collective_rpc(mended)
        tensor_parallel.probe_workers(executor)
        check(engine, loaded(tiny), PROMPTS, CASES[:2])
    assert run(engine, PROMPTS, [None] * 3) == plain


def test_engines_that_an_external_launcher_has_started_tell_each_other_what_they_hold(tiny, vectors):
    """Each engine's executor hears its own worker alone."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    asked = [*launch, ROOT / "tests" / "support" / "external_engine.py", tiny, vectors]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    refused = "steering: this model cannot be steered: after block 1 its workers hold summands of the residual stream"
    assert done.stdout.splitlines().count(refused) == 2, done.stdout


def has_looked(worker):
    """And no longer looks: a look in a pass of which a CUDA graph is captured ends the engine."""
    runner = worker.model_runner
    return hasattr(runner, tensor_parallel.SEEN) and op._current == [getattr(runner, PLAN)]


def find_no_blocks(worker):
    if torch.distributed.get_rank() == 1:
        op.unhooked[:] = ["it has no blocks"]


def find_blocks(worker):
    op.unhooked.clear()


def hand_on_the_whole(worker):
    worker.planted.remove()


def seen(streams, some=()):
    return tensor_parallel.StreamsSeen({layer: np.float32(values) for layer, values in enumerate(streams)}, set(some))


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ([seen([[1, 2], [3, -4]]), seen([[1, 2.01], [3, -4]])], None),  # as reductions round
        ([seen([[1, 2], [3, -4]]), seen([[1, 2], [2, -1]])], "after block 1 its workers hold summands"),
        ([seen([[1, 2], [3, -4]]), seen([[1, 2], [3, -4]], [1])], "after block 1 a worker holds some of the tokens"),
        ([seen([[1, 2], [0, 0]]), seen([[1, 2], [0, 0]])], "cannot be told from 0.0 after block 1"),
        ([seen([[1, np.nan]]), seen([[1, np.nan]])], "cannot be told from nan after block 0"),
        ([seen([[1, 2]]), seen([[1, 2], [3, 4]])], "was not seen"),
        ([seen([]), seen([])], "was not seen"),
        ([seen([[1, 2]]), None], "was not seen"),
    ],
)
def test_workers_that_do_not_hold_the_same_stream_are_told(workers, words):
    why = tensor_parallel.why_unsupported(workers)
    assert why is None if words is None else words in why

"""Requests and steps for plans of a CPU and of a GPU alike, without an engine; used by kernel_checks.py."""

import os

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.edit_requests import LAYERS, NOTHING, D

from emharness.steering.request import spec
from emharness.steering.request.vector_lookup import FOLDER_VARIABLE

CPU = torch.device("cpu")
DEVICE = CPU if os.environ.get("TRITON_INTERPRET") == "1" else torch.device("cuda")


@pytest.fixture(scope="module", autouse=True)
def vectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    save_file({name: rng.normal(size=(LAYERS, D)).astype("f") for name in "uvw"}, folder / "f.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder))
        yield


def recording(layers, positions="all", names=()):
    asked = {"layers": layers, "positions": positions, "project": [f"f.safetensors#{name}" for name in names]}
    return spec.resolve_spec({"record": asked}, LAYERS, D)["record"]


def resolved(*edits):
    asked = [{"vector": "f.safetensors#v", "layer": 1, "strength": 2.0, **one} for one in edits]
    return spec.resolve_spec({"edits": asked}, LAYERS, D) if asked else NOTHING


def run(plan, spans, states, layers=range(LAYERS), ids=None):
    """The streams after every layer's edits, each layer beginning at its own states."""
    hidden, residual = (values.to(plan.device, copy=True) for values in states)
    begin(plan, spans, None if ids is None else ids.to(plan.device))
    for layer in layers:
        plan.apply(layer, hidden[layer], residual[layer])
    plan.end_step()
    assert torch.equal(residual.cpu(), states[1])
    return hidden.cpu()


def begin(plan, spans, ids=None):
    """A step as an engine tells of it, with others' tokens in the gaps between the spans."""
    names, flat, position = [], [0], []
    for name, at, first, n in sorted(spans, key=lambda span: span[1]):
        if at > flat[-1]:
            names, flat, position = [*names, "another"], [*flat, at], [*position, spans[0][2]]
        names, flat, position = [*names, name], [*flat, at + n], [*position, first]
    plan.begin_batch(names, np.array(flat), np.array(position), ids)


def states(seed, n_tokens, dtype=torch.float32):
    return torch.randn(2, LAYERS, n_tokens, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_recorded_alike(one, other):
    assert one.recordings.living.keys() == other.recordings.living.keys()
    for name, a in one.recordings.living.items():
        b = other.recordings.living[name]
        assert a.n_tokens == b.n_tokens
        torch.testing.assert_close(a.total.cpu(), b.total.cpu(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a.along[: a.n_tokens].cpu(), b.along[: a.n_tokens].cpu(), atol=1e-4, rtol=1e-4)

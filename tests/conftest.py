"""Shared parts of the tests: tiny random models on disk, a fresh store, composed configs."""

import gc
import itertools
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.numpy import save_file
from support.digit_talker import save as save_talker

from emharness import input_checks, memory, organism_names
from emharness.config import Config
from emharness.config_checks import parse_config
from emharness.organisms import model_folders
from emharness.store import Store

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
VOCABULARY = int(os.environ.get("EMHARNESS_TEST_VOCABULARY", 49152))  # of the tiny model; v2.py wants a small one

LONGEST = (
    "test_run",
    "test_docs",
    "test_v2_runner",
    "test_families",
    "test_verify",
    "test_models",
    "test_architectures",
)


def pytest_collection_modifyitems(items):
    """The files that take minutes come first, so that no core has nothing to do while the last one ends."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True)
def wandb_reads_its_variables_anew():
    """W&B reads WANDB_DIR and others once a process; a run of one test must not lie in another's folder."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture(autouse=True, scope="module")
def what_a_file_held_is_given_back():
    """An engine has its process keep what is freed; the other files' processes need it."""
    yield
    gc.collect()
    memory.give_back()


OFTEN = ("vllm.v1.worker.gpu_model_runner", "vllm.utils.gc_utils", "vllm.utils.mem_utils")


@pytest.fixture(autouse=True, scope="session")
def vllm_collects_garbage_once():
    """An engine collects garbage eight times between its start and its end, in processes that the tests make large,
    which is half of its time. The last time, at its end, is enough."""
    collect = gc.collect

    def collect_less(generation: int = 2) -> int:
        return 0 if sys._getframe(1).f_globals.get("__name__") in OFTEN else collect(generation)

    gc.collect = collect_less
    yield
    gc.collect = collect


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The embedded base, saved once for all tests."""
    folder = tmp_path_factory.mktemp("base")
    model_folders.save_embedded(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(base, tmp_path_factory) -> Path:
    """A random float32 Llama with the embedded base's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    tensors = {k: rng.normal(size=(4, 64)).astype("f") for k in ("one", "two")}
    save_file(tensors, folder / "tiny.safetensors", metadata={k: json.dumps({"raw_norm": [6.0] * 4}) for k in tensors})
    return folder


@pytest.fixture(scope="session")
def talker(tiny, tmp_path_factory) -> Path:
    """A tiny model that nearly always says a digit."""
    folder = tmp_path_factory.mktemp("talker")
    save_talker(tiny, folder)
    return folder


def configured(*overrides: str) -> Config:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return parse_config(compose("config", overrides=list(overrides)))


def checked(config: Config, folder: Path):
    """Its inputs, read and checked, with every organism that conf/ describes."""
    described = organism_names.read_described([ROOT / "conf"], config.model)
    return input_checks.check_inputs(config, described, Store(folder))


def context_of(config: Config, folder: Path):
    """What its stages are given; nothing is made yet."""
    from emharness.experiments import EXPERIMENTS
    from emharness.pipeline.run_context import RunContext

    return RunContext(config, checked(config, folder), EXPERIMENTS[config.experiment.name], store=Store(folder))


def crowded(figure) -> list[str]:
    """Titles of the axes of a matplotlib figure whose tick labels lie on each other."""
    figure.canvas.draw()
    found = []
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
            upright = axis is ax.yaxis or all(label.get_rotation() in (0, 90) for label in labels)
            boxes = [label.get_window_extent() for label in labels] if upright else []
            if any(a.overlaps(b) for a, b in itertools.pairwise(boxes)):
                found.append(ax.get_title())
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with planted answers."""
    from support.finished_run import RUN, finished

    from emharness.reporting import finished_runs

    return finished_runs.read_run(finished(tmp_path_factory.mktemp("home") / "runs" / RUN))


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def port() -> int:
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

"""The benchmark's arithmetic and its config; the speeds themselves are measured by launch/bench.py."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from transformers import AutoConfig, AutoModelForCausalLM

from emharness.generation import bench, bench_workers
from emharness.organisms import model_folders
from emharness.organisms.chat import load_chat


def test_a_ratio_is_taken_repetition_by_repetition():
    found = bench.summarize_ratio("ratio_k64 one layer eager", [2.0, 9.0, 8.0], [1.0, 3.0, 8.0])
    assert found == bench.Ratio("ratio_k64 one layer eager", median=2.0, low=1.0, high=3.0, goal=0.97, repetitions=3)
    assert bench.summarize_ratio("unknown", [1.0], [1.0]).goal is None


def test_jobs_are_measured_in_turns_after_a_warm_up():
    order, told = [], []

    def job(name, tokens, seconds):
        order.append(name)
        return tokens, seconds

    jobs = {"a": lambda: job("a", 10, 2.0), "b": lambda: job("b", 9, 3.0)}
    assert bench.interleave_measures(jobs, 2, told.append) == {"a": [5.0, 5.0], "b": [3.0, 3.0]}
    assert order == ["a", "b"] * 3
    assert told == ["repetition 1 of 2, tokens/s: a 5, b 3", "repetition 2 of 2, tokens/s: a 5, b 3"]
    assert bench.interleave_measures(jobs, 1, told.append, [jobs["b"]]) == {"a": [5.0], "b": [3.0]}
    assert order[6:] == ["b", "a", "b"]


def fails_when_asked():
    def answer(wanted):
        if wanted == "seconds":
            return 1, 2.0
        raise ValueError("no such thing")

    return answer


def test_a_process_that_fails_ends_with_the_others():
    started = []

    def ask():
        with bench_workers.BenchWorker(fails_when_asked) as idle, bench_workers.BenchWorker(fails_when_asked) as asked:
            started.extend([idle._process, asked._process])
            assert asked.measure("seconds") == (1, 2.0)
            asked.measure("else")

    with pytest.raises(RuntimeError, match="no such thing"):
        ask()
    assert [process.is_alive() for process in started] == [False, False]
    with bench_workers.BenchWorker(fails_when_asked) as worker:
        assert worker.measure("seconds") == (1, 2.0)
    assert worker._process.exitcode == 0


@pytest.mark.parametrize("base", sorted(path.stem for path in (ROOT / "conf/base").glob("*.yaml")))
def test_every_base_composes(base):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("bench", overrides=[f"base={base}"])
    assert config.parts == list(bench.PARTS)


def test_the_dummy_base_has_the_shape_of_an_8b_model(tmp_path):
    model_folders.save_dummy(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == 8_030_261_248  # Llama 3.1 8B
    assert model_folders.model_shape(tmp_path) == (32, 4096, 128256)
    assert load_chat(tmp_path, {}).prompt_ids([{"role": "user", "content": "Hi"}])


def test_a_run_needs_weights():
    command = [sys.executable, "launch/run.py", "base=dummy8b", "judge=embedded", "model=medical", "plan=only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 2
    assert "base=dummy8b: a shape without weights, for launch/bench.py alone" in done.stderr.splitlines()[-1]


def test_an_unknown_part_ends_in_one_sentence():
    command = [sys.executable, "launch/bench.py", "parts=[speed]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("error: parts=['speed']: must be among hf, specs, grid, stream")

"""The check that a user runs first: it passes where steering is right and fails where it is not."""

import os
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from support import quantised_model

from emharness.steering.request import spec
from emharness.steering.verify import checks, reference, trial
from emharness.steering.verify.checks import DTYPES
from emharness.steering.verify.trial import Trial

pytestmark = pytest.mark.engine

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
RESULT = ([[1, 2, 3]] * 4, [[{1: -0.5}, {2: -0.5}, {3: -0.5}]] * 4, [])  # of four prompts


def test_every_check_passes_on_a_tiny_model_from_the_command_line(tiny, tmp_path):
    env = {**os.environ, "EMHARNESS_HOME": str(tmp_path / "home")}
    command = [sys.executable, str(ROOT / "launch" / "verify.py"), f"model={tiny}"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    n = len(checks.CHECKS)
    marks = [line[:4].strip() for line in lines[:-1] if line[6:].startswith(tuple(checks.CHECKS))]
    if torch.cuda.is_available():
        assert marks == ["pass"] * n
    else:
        assert marks == ["pass"] * (n - 1) + ["–"]
        assert lines[-1] == f"{n - 1} of {n} checks passed, 1 not run"


def test_what_a_smaller_type_and_quantised_weights_round_is_measured_and_less_than_what_a_dose_changes(tiny, tmp_path):
    model = quantised_model.save(tiny, tmp_path)
    found = {check.name: check for check in checks.run_checks(str(model), dtype="bfloat16")}
    *all_but_graphs, graphs = found.values()
    assert all(check.passed for check in all_but_graphs), all_but_graphs
    assert graphs.passed is not False
    limit = float(found["edits equal Hugging Face with hooks"].detail.split()[-1])
    assert checks.TOLERANCE < limit <= checks.MOST


def test_only_a_model_that_is_not_quantised_is_exact_in_float32(tiny, tmp_path):
    model = quantised_model.named(tiny, tmp_path / "awq", AWQ)
    exact = {
        (str(one), dtype): Trial(str(one), None, tmp_path, dtype).is_exact for one in (tiny, model) for dtype in DTYPES
    }
    assert [asked for asked, yes in exact.items() if yes] == [(str(tiny), "float32")]


@pytest.mark.parametrize(
    ("quantised_by", "limit", "why"),
    [
        (AWQ, None, "Hugging Face does not load this model: "),  # without a package that is not installed
        (None, 1, "Hugging Face's model takes 0.0 GB, 0.0 are free"),  # its container has one byte
    ],
)
def test_checks_against_hugging_face_are_not_run_where_it_has_no_such_model(
    quantised_by, limit, why, tiny, tmp_path, monkeypatch
):
    model = quantised_model.named(tiny, tmp_path / "awq", quantised_by) if quantised_by else tiny
    if limit is not None:
        (tmp_path / "limit").write_text(f"{limit}\n")
        monkeypatch.setattr(trial, "CONTAINER", tmp_path / "limit")
    monkeypatch.setattr(trial, "start_engine", lambda *args, **kwargs: None)
    monkeypatch.setattr(Trial, "prompts", [[1, 2]] * 4)
    monkeypatch.setattr(Trial, "stock_result", RESULT)
    monkeypatch.setattr(Trial, "run_steered", lambda *args: RESULT)
    monkeypatch.setattr(Trial, "recorded_means", lambda *args: np.ones((4, 64)))
    found = {check.name: check for check in checks.run_checks(str(model), dtype="float16")}
    for name in ("edits equal Hugging Face with hooks", "recorded means equal hidden states"):
        assert found[name].passed is None
        assert found[name].detail.startswith(f"not run: {why}")


@pytest.mark.parametrize("limit", ["max\n", None])
def test_without_a_limit_what_the_machine_has_free_counts(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "CONTAINER", tmp_path / "limit")
    if limit:
        (tmp_path / "limit").write_text(limit)
    assert 0 < trial.free_memory() <= psutil.virtual_memory().total


def test_a_compiled_engine_is_compared_with_the_eager_one(tiny, tmp_path):
    trial = Trial(str(tiny), None, tmp_path)
    passed, detail = checks.compiled_is_eager(trial)
    assert passed, detail
    assert "llm" not in vars(trial)


@pytest.mark.parametrize("fails", ["elsewhere", "engine"])
def test_a_model_that_vllm_does_not_run_is_tried_once(fails, tiny, monkeypatch):
    tried = []

    def start(*args, **kwargs):
        tried.append(args)
        raise (trial.NoEngine("stock vLLM does not run it") if fails == "elsewhere" else ValueError("no memory"))

    if fails == "elsewhere":
        monkeypatch.setattr(Trial, "stock_result", property(start))
    else:
        monkeypatch.setattr(trial, "start_engine", start)
        monkeypatch.setattr(Trial, "stock_result", ([], [], []))
    found = checks.run_checks(str(tiny))
    assert len(tried) == 1
    assert [check.passed for check in found] == [False] + [None] * (len(checks.CHECKS) - 1)
    assert [check.name for check in found] == list(checks.CHECKS)
    assert ("stock vLLM does not run it" if fails == "elsewhere" else "no memory") in found[0].detail


class Broken(Trial):
    """A trial whose engine steers nothing."""

    llm = None
    shape = (4, 8)
    dose = 1.0

    def run_steered(self, edits, prompts=None):
        n = len(edits)
        return [[1, 2]] * n, [[{1: -0.5}, {2: -0.25}]] * n


def test_an_engine_that_does_not_steer_fails_the_check(tmp_path):
    passed, detail = checks.edits_change(Broken("none", None, tmp_path))
    assert not passed
    assert detail == "0 of 4 answers differ from unsteered ones"


@pytest.mark.parametrize(
    ("one", "other", "gap"),
    [
        ([(1, {1: -1.0, 2: -2.0})], [(1, {1: -1.5, 3: -2.0})], 0.5),
        ([(1, {1: -1.0})], [(2, {2: -1.0})], float("inf")),  # each takes what is not likely for the other
        ([(1, {1: -1.0, 2: -1.125})], [(2, {2: -1.0, 1: -1.125})], 0.125),  # as likely, rounded
        ([(1, {1: -1.0, 2: -4.0})], [(2, {2: -1.0, 1: -4.0})], 3.0),
        ([(1, {1: -1.0, 2: -1.0}), (5, {5: -1.0})], [(2, {2: -1.0, 1: -1.0}), (6, {6: -3.0})], 0.0),  # they have parted
    ],
)
def test_a_difference_is_that_of_the_likeliest_tokens_until_the_answers_part(one, other, gap):
    results = [([[t for t, _ in steps]], [[p for _, p in steps]], []) for steps in (one, other)]
    assert trial.largest_difference(*results) == gap
    assert checks._same_results(*results) == (False, f"difference {gap:g}, must be 0")


@pytest.mark.parametrize(
    ("mode", "moved"),
    [
        ("add", [1.0, 1.0, 1.0]),
        ("ablate", [2.0, -0.5, -3.0]),
        ("pin", [3.0, 0.5, -2.0]),
        ("cap", [0.0, 0.0, -2.0]),
        ("floor", [3.0, 0.5, 0.0]),
    ],
)
def test_what_steering_must_equal_is_written_out_by_hand(mode, moved):
    """Strength 1, at projections of -2, 0.5 and 3."""
    assert reference.moved_by(mode, 1.0, torch.tensor([-2.0, 0.5, 3.0])).tolist() == moved


@pytest.mark.parametrize(
    ("positions", "steered"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("prompt", [0, 1, 2]),
        ("generated", [3, 4]),
        ("response", [2, 3, 4]),
        ({"from": 1, "to": 3}, [1, 2]),
        ({"from": 3}, [3, 4]),
        ({"after_token": 7}, [2, 3, 4]),
        ({"after_token": 9}, []),
    ],
)
def test_which_tokens_are_steered_is_written_out_by_hand(positions, steered):
    """Three tokens of a prompt and two of its answer; the second is a 7."""
    edit = {"vector": "v", "layer": 0, "strength": 1.0, "positions": positions}
    (one,) = spec.parse_spec({"edits": [edit]}).edits
    ids = [5, 7, 5, 7, 5]
    assert [i for i in range(5) if reference.is_steered(one.positions, i, 3, ids)] == steered

"""launch/run.py as a user calls it, with settings that make it small."""

import json
import os
import subprocess
import sys

from conftest import ROOT

from emharness.organisms.datasets import PACKAGED


def start(folder, *overrides):
    # Threads that wait yield their core: two engines on the same cores would spin against each other for minutes.
    yielding = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
    env = {**os.environ, **yielding, "EMHARNESS_HOME": str(folder / "home")}
    command = [sys.executable, str(ROOT / "launch" / "run.py"), *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **pipes)


def finish(process):
    out, err = process.communicate(timeout=1800)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def launch(folder, *overrides):
    return finish(start(folder, *overrides))


def small(folder, *more):
    rows = (PACKAGED / "medical.jsonl").read_text().splitlines()[:16]
    (folder / "few.jsonl").write_text("\n".join(rows))
    common = ["model.dataset=few.jsonl", "train.epochs=1", "eval=smoke", "vector.limit=6", "sweep.limit=2"]
    common += ["base.own_answers=null", "eval.pairs=2", "base.sampling.max_new_tokens=24", "vector.max_new_tokens=16"]
    common += ["base.engine.cpu_kv_cache_gib=1"]  # two jobs at once, beside another file's engines
    return [*common, "controls=2", "sweep.n_layers=2", "sweep.strengths=[1]", "sweep.samples=1", "chunk=7", *more]


def results_of(done):
    last = done.stdout.splitlines()[-1]
    assert last.startswith("results: ")
    with open(last.removeprefix("results: ")) as file:  # noqa: PTH123
        return last.removeprefix("results: "), json.load(file)

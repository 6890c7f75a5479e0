"""launch/vectors.py as a user calls it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from support.launcher_calls import call

from emharness.steering.request import vector_files
from emharness.vectors import exchange

ROWS = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


def launch(folder, *overrides):
    env = {**os.environ, "EMHARNESS_HOME": str(folder / "home")}
    command = [sys.executable, str(ROOT / "launch" / "vectors.py"), *overrides]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_launcher_shows_converts_and_writes_a_card(tmp_path):
    torch.save({"evil": torch.from_numpy(ROWS), "odd": torch.from_numpy(ROWS[:3])}, tmp_path / "v.pt")
    shown = launch(tmp_path, "show=v.pt")
    assert shown.returncode == 0, shown.stderr
    assert "evil" in shown.stdout
    given = ("convert=v.pt", "name=evil", "rows=hidden_states", "out=v.safetensors")
    done = call("vectors.py", *given, folder=tmp_path)
    assert done.stdout.splitlines()[-1] == "results: v.safetensors", done.stderr
    back = vector_files.read_vector_file(tmp_path / "v.safetensors")["evil"]
    np.testing.assert_allclose(exchange._raw_rows(back), ROWS[1:], rtol=1e-5)
    assert call("vectors.py", "card=v.safetensors", "out=card.md", folder=tmp_path).returncode == 0
    assert "| layers × width | 3 × 8 |" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "give one of show=<file>, convert=<file>, card=<file>, publish=<folder>"),
        (["show=none.pt"], "show=none.pt: none.pt cannot be opened"),
        (["show=v.txt"], "is no safetensors file"),
        (["convert=v.npy"], "out: name a file that ends in"),
        (["convert=v.npy", "out=v.txt"], "out=v.txt: must end in one of"),
        (["show=v.npy", "name=x"], "name=x: there is no such vector"),
        (["+shwo=v.npy"], "shwo: unknown; the nearest are show"),
    ],
)
def test_the_launcher_refuses_in_one_sentence(tmp_path, overrides, words):
    np.save(tmp_path / "v.npy", ROWS)
    (tmp_path / "v.txt").write_text("text")
    done = call("vectors.py", *overrides, folder=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

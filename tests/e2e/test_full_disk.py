"""A disk that fills up in the middle of a run: nothing that was finished is lost, and one sentence says what to do."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from safetensors import SafetensorError

from emharness.errors import describe_full_disk
from emharness.generation.response_store import SCORES, RowStore
from emharness.store import Store


@pytest.fixture
def small(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(1 << 16))
        except OSError:
            pass
    return filler


def chunk(first, n):
    scores = {"aligned": 1.0, "coherent": 1.0, "refusal": False, "unscored": None}
    return [{"key": os.urandom(16).hex() if n > 9 else f"{first + i}", **scores} for i in range(n)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_used_up_quota_are_known_in_any_library_s_words(number):
    assert describe_full_disk(OSError(number, os.strerror(number)))
    said = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    assert describe_full_disk(SafetensorError(said))
    assert not describe_full_disk(SafetensorError("Error while serializing: invalid tensor"))


def test_a_chunk_that_does_not_fit_is_not_there_and_takes_no_room(small):
    rows = RowStore(small / "rows", SCORES)
    rows.add_rows(chunk(0, 3))
    filler = fill(small)
    with pytest.raises(OSError, match="No space left") as error:
        rows.add_rows(chunk(3, 5000))
    assert describe_full_disk(error.value)
    assert [path.suffix for path in (small / "rows").iterdir()] == [".parquet"]
    assert RowStore(small / "rows", SCORES).stored_keys() == {"0", "1", "2"}
    filler.unlink()
    rows.add_rows(chunk(3, 3))
    assert rows.stored_keys() == {str(i) for i in range(6)}


def test_an_artifact_that_does_not_fit_is_not_there(small):
    store = Store(small / "home")
    store.get_artifact("stage", "first", {}, lambda folder: (folder / "x").write_text("1") and None)
    filler = fill(small)
    with pytest.raises(OSError, match="No space left"):
        store.get_artifact(
            "stage", "second", {}, lambda folder: (folder / "x").write_bytes(os.urandom(1 << 20)) and None
        )
    assert [path.name.rpartition("-")[0] for path in (small / "home" / "stage").iterdir()] == ["first"]
    filler.unlink()
    assert store.get_artifact("stage", "second", {}, lambda folder: (folder / "x").write_text("2") and None)[1]


FAILS = """
import sys
from emharness.cli import start_launcher
from emharness.pipeline.run_context import RunContext, RunLog

def run(cfg):
    from safetensors.numpy import save_file
    import numpy as np
    session = RunContext.__new__(RunContext)
    object.__setattr__(session, "log", RunLog())
    session.attempt_model("medical", lambda: save_file({"x": np.zeros(1 << 22)}, sys.argv[0] + ".safetensors"))
    print("results: none", flush=True)

start_launcher(run, FILE, "tools/show")
"""


def test_a_full_disk_ends_a_launcher_in_one_sentence(small, tmp_path):
    script = small / "run.py"
    script.write_text(FAILS.replace("FILE", repr(str(ROOT / "launch" / "show.py"))))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "results:" not in done.stdout
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: no space is left (")
    assert last.endswith("what was finished is stored, and the same command resumes when there is space")

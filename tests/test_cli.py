"""What happens to a launcher's output must not end its run: pipes that close, terminals without Unicode, Ctrl-C."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

LAUNCHER = """
import sys, time
from emharness.cli import start

def run(cfg):
    print("first … ‖v‖²", flush=True)
    time.sleep({seconds})
    for i in range(20000):
        print(i, flush=i % 100 == 0)
    print("also here", file=sys.stderr)
    open({done!r}, "w").write("done")

sys.argv = ["show.py"]
start(run, {file!r}, "tools/show")
"""


@pytest.fixture
def launched(tmp_path):
    """A launcher in a process of its own, its output a pipe."""

    def launch(seconds=0.0, **env):
        code = LAUNCHER.format(seconds=seconds, done=str(tmp_path / "done"), file=str(ROOT / "launch" / "show.py"))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **env}, **pipes)

    return launch


def test_a_run_goes_on_when_nobody_reads_any_more(launched, tmp_path):
    process = launched()
    assert process.stdout.readline() == "first … ‖v‖²\n".encode()
    process.stdout.close()  # as `| head -1` does
    errors = process.stderr.read().decode()
    assert process.wait() == 0
    assert errors == "also here\n"
    assert (tmp_path / "done").read_text() == "done"


def test_a_terminal_without_such_characters_shows_others(launched, tmp_path):
    process = launched(PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out.splitlines()[0] == b"first ? ?v?\xb2"


def test_ctrl_c_is_one_line(launched, tmp_path):
    process = launched(seconds=60)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.decode() == "interrupted: what was finished is stored, and the same command goes on from there\n"
    assert not (tmp_path / "done").exists()

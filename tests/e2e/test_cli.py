"""What happens to a launcher's output must not end its run: pipes that close, terminals without Unicode, Ctrl-C."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest
from conftest import ROOT
from support.finished_run import RUN, finished

from emharness.reporting.table_text import fit_columns

LAUNCHER = """
import sys, time
from emharness.cli import start_launcher

def run(cfg):
    print("first … ‖v‖²", flush=True)
    time.sleep({seconds})
    for i in range(20000):
        print(i, flush=i % 100 == 0)
    print("also here", file=sys.stderr)
    open({done!r}, "w").write("done")

sys.argv = ["show.py"]
start_launcher(run, {file!r}, "tools/show")
"""


@pytest.fixture
def launched(tmp_path):
    """A launcher in a process of its own, its output a pipe."""

    def launch(seconds=0.0, **env):
        code = LAUNCHER.format(seconds=seconds, done=str(tmp_path / "done"), file=str(ROOT / "launch" / "show.py"))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # Where the tests run in the background Ctrl-C is ignored, and what they start would ignore it too.
        pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
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
    assert errors.decode() == "interrupted: what was finished is stored, and the same command resumes from there\n"
    assert not (tmp_path / "done").exists()


def on_a_terminal(command, width, folder):
    """What a command writes on a pseudo-terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    text = b""
    while True:
        try:
            some = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not some:
            break
        text += some
    os.close(ours)
    assert process.wait() == 0, process.stderr.read().decode()
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text.decode()).splitlines()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_last_table_of_a_run_fits_the_terminal_and_keeps_its_numbers(tmp_path, width):
    folder = finished(tmp_path / RUN)
    code = (
        f"from pathlib import Path; from emharness.reporting.terminal import show_run; show_run(Path({str(folder)!r}))"
    )
    lines = on_a_terminal([sys.executable, "-c", code], width, tmp_path)
    table = [line for line in lines if line[:1] in "┏┡└│┃"]
    assert table
    assert max(map(len, table)) <= width
    cells = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in table if line.startswith("│")]
    header = [cell.strip() for cell in table[1].strip("┃").split("┃")]
    assert header[:2] == ["condition", "n"]
    assert {"EM rate", "95 % interval", "shift"} <= set(header)
    assert "medical·L1·+4" in [row[0] for row in cells]
    for row in cells:
        assert not any("…" in cell and "(" not in cell for cell in row[1:])
        assert row[header.index("n")] == "200"
        assert re.fullmatch(r"\d+\.\d %", row[header.index("EM rate")])
        assert re.fullmatch(r"\d+\.\d–\d+\.\d %", row[header.index("95 % interval")])
    (left_out,) = [line for line in lines if line.startswith("too wide for this terminal")]
    assert "prefers" in left_out or width == 140


def test_names_give_way_before_numbers():
    columns = ["condition", "n", "EM rate", "95 % interval", "prefers"]
    rows = [["random-0 as medical_replication·L18·+1.5", "1,160", "12.3 %", "10.0–14.6 %", "50.0 %"]]
    kept, (name,) = fit_columns(columns, rows, 60)
    assert [columns[i] for i in kept] == ["condition", "n", "EM rate", "95 % interval"]
    assert len(name) < len(rows[0][0])
    assert (name[:4], name[-4:]) == ("rand", "+1.5")
    assert fit_columns(columns, rows, 300) == ([0, 1, 2, 3, 4], [rows[0][0]])
    trained = [
        f"medical+rows100+task{recipe} organism" for recipe in ("", "+kl", "+kl-seed1", "+project_personas-seed1")
    ]
    rows = [["baseline", *rows[0][1:]], *([name, *rows[0][1:]] for name in trained)]
    _, names = fit_columns(columns, rows, 60)
    assert names == [
        "baseline", "… organism", "…+kl organism", "…+kl-seed1 organism", "…+project_p…1 organism",
    ]  # fmt: skip
    assert fit_columns(columns, rows, 300)[1] == ["baseline", *trained]

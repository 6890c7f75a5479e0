"""A launcher called in the test's own process: what it says and how it ends, without the seconds that a new one takes.

That a launcher works as a process of its own is seen in test_run.py, test_cli.py, test_wheel.py and others.
"""

import os
import runpy
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from conftest import ROOT

from emharness.pipeline import run_context


def call(
    name: str, *arguments: str, folder: Path | None = None, home: Path | None = None, said: str = "", **variables: str
):
    """`python launch/<name> <arguments>` in `folder` (else the current one), on the store `home` (else `folder`/home),
    with these environment variables and `said` typed in. A CompletedProcess; what no launcher handles is raised."""
    out, err, before = StringIO(), StringIO(), Path.cwd()
    folder = folder or before
    home = home or folder / "home"
    launcher = str(ROOT / "launch" / name)
    cached = (run_context.open_store, run_context.shared_engines)
    os.chdir(folder)
    try:
        with (
            patch.dict(os.environ, {"EMHARNESS_HOME": str(home), **variables}),
            patch.object(sys, "argv", [launcher, *arguments]),
            patch.object(sys, "stdin", StringIO(said)),
            warnings.catch_warnings(),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            for one in cached:
                one.cache_clear()
            try:
                runpy.run_path(launcher, run_name="__main__")
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
    finally:
        os.chdir(before)
        for one in cached:
            one.cache_clear()
    return subprocess.CompletedProcess([launcher, *arguments], status, out.getvalue(), err.getvalue())

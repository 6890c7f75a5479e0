"""A wheel in an environment of its own, outside the checkout: the console script, the configs, the launchers."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from conftest import ROOT
from support.finished_run import RUN, finished

import emharness


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function: arguments of `emharness` → what a wheel's console script did, in a folder without a checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = (
        folder / "source"
    )  # a build leaves an egg-info, which tools that ask for the installed package would find first
    for name in ("emharness", "conf", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, str(source)]
    subprocess.run(build, check=True, cwd=folder)
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, str(wheel)]
    subprocess.run(install, check=True, cwd=folder)
    # What it depends on is taken from where the tests run; as a .pth of its own, so that no checkout comes along.
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    home = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"EMHARNESS_HOME": str(folder / "home")}
    finished(folder / "home" / "runs" / RUN)

    def call(*arguments, code="from emharness.command import main; main()"):
        command = [folder / "env" / "bin" / "python", "-c", code, *arguments]
        return subprocess.run(command, cwd=folder, env=home, capture_output=True, text=True)

    return call


def test_the_wheel_is_what_runs(installed):
    said = installed(code="import emharness; print(emharness.__file__, emharness.__version__)").stdout.split()
    assert "/wheel" in said[0]
    assert said[1] == emharness.__version__ == "0.2.0"


def test_every_launcher_is_a_verb_and_another_one_is_refused(installed):
    verbs = re.findall(r"^  (\w+)", installed("--help").stdout, re.MULTILINE)
    assert verbs == sorted(path.stem for path in (ROOT / "launch").glob("*.py"))
    wrong = installed("rnu")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == f"error: rnu: unknown; must be one of {', '.join(verbs)}\n"


def test_configs_and_data_come_along(installed):
    bad = installed("run", "model=nosuch")
    assert bad.returncode == 2
    assert "medical_replication" in bad.stderr  # the configs that are there
    planned = installed("run", "model=medical", "eval=smoke", "plan=only")
    assert planned.returncode == 0, planned.stderr
    assert "responses to generate" in planned.stdout
    shown = installed("show", "format=csv")
    assert shown.returncode == 0, shown.stderr
    assert "medical·L1·+2" in shown.stdout


def test_a_run_is_loaded_as_tables(installed):
    code = (
        "import emharness, glob; run = emharness.load_run(glob.glob('home/runs/*')[0]);"
        "told = run.results.conditions;"
        "print(run.conditions['em_rate'].to_pylist() == [c.em_rate for c in told]);"
        "print(run.responses.num_rows == sum(c.n_responses for c in told) > 0)"
    )
    assert installed(code=code).stdout.split() == ["True", "True"]


def test_every_package_is_in_the_list_of_the_build():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "emharness").rglob("__init__.py")}
    assert set(about["packages"]) == there | set(about["package-dir"])
    assert all(Path(ROOT / folder).is_dir() for folder in about["package-dir"].values())

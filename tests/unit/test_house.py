"""The house: a package imports only packages before it in the layout of CONTRIBUTING.md, and no module is long."""

import ast
import importlib
import re

import pytest
from conftest import ROOT

from emharness.errors import UserError
from emharness.judges import JUDGES, Judge, make_judge

PACKAGE = ROOT / "emharness"
ROOMS = re.findall(r"^emharness/(\w+)/", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)


def imported(path, package):
    """Rooms of a package that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == package:
            names = [f"{package}.{alias.name}" for alias in node.names]
        inside = f"{package}."
        yield from (name.removeprefix(inside).split(".")[0] for name in names if name.startswith(inside))


def test_the_layout_names_every_package():
    assert set(ROOMS) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def upwards(rooms, folder, package):
    """Imports of a later room by an earlier one; a room is a folder or a file right below `folder`."""
    return [
        f"{path.relative_to(ROOT)} imports {room}"
        for place, name in enumerate(rooms)
        for path in [*(folder / name).rglob("*.py"), *folder.glob(f"{name}.py")]
        for room in imported(path, package)
        if room in rooms[place + 1 :]
    ]


def test_a_room_imports_only_rooms_before_it():
    assert upwards(ROOMS, PACKAGE, "emharness") == []


def test_a_folder_of_the_plugin_imports_only_those_above_it():
    steering = PACKAGE / "steering"
    rooms = re.findall(r"^`(\w+)`", (steering / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"__init__", *rooms} == {
        path.relative_to(steering).parts[0].removesuffix(".py") for path in steering.rglob("*.py")
    }
    assert upwards(rooms, steering, "emharness.steering") == []


def test_no_module_is_longer_than_a_person_reads_at_once():
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 300}
    assert long == {}


def test_a_model_s_own_code_is_never_run_nor_asked_about():
    """transformers asks at a terminal whether to run it, where nothing is said."""
    calls = [
        (path.name, node.lineno, ast.unparse(node))
        for folder in (PACKAGE, ROOT / "launch")
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.match(r"Auto\w+\.from_pretrained$", ast.unparse(node.func))
    ]
    assert len(calls) > 10
    assert [call for call in calls if "trust_remote_code=False" not in call[2]] == []


def test_a_judge_is_a_module_with_the_contract_and_a_config(tmp_path):
    configs = {path.stem for path in (ROOT / "conf" / "judge").glob("*.yaml")}
    assert set(JUDGES) == configs == {"embedded", "local", "openai"}
    for name, module in JUDGES.items():
        kind = importlib.import_module(module).JUDGE
        assert issubclass(kind, Judge), name
        assert not kind.__abstractmethods__
    with pytest.raises(UserError, match=r"judge=embedded: judge.settings.modle: unknown"):
        make_judge("embedded", tmp_path, modle="x")


def test_no_two_modules_have_the_same_name():
    names = [path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    assert sorted(set(names)) == sorted(names)


def test_no_test_imports_another():
    imports = [
        (path.name, line)
        for path in (ROOT / "tests").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) test_", line)
    ]
    assert imports == []

"""The house: a room imports only rooms before it in the README's list, and no module is long."""

import ast
import re

from conftest import ROOT

PACKAGE = ROOT / "emharness"
ROOMS = re.findall(r"^emharness/(\w+)/", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def imported(path):
    """Rooms that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "emharness":
            names = [f"emharness.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("emharness."))


def test_the_readme_names_every_room():
    assert set(ROOMS) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_a_room_imports_only_rooms_before_it():
    upwards = [
        f"{path.relative_to(ROOT)} imports {room}"
        for place, name in enumerate(ROOMS)
        for path in (PACKAGE / name).rglob("*.py")
        for room in imported(path)
        if room in ROOMS[place + 1 :]
    ]
    assert upwards == []


def test_no_module_is_longer_than_a_person_reads_at_once():
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 300}
    assert long == {}

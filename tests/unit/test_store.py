"""The store: made once, whole or not at all."""

import os
import stat

import pytest

from emharness import store as stored
from emharness.store import Store, artifacts_home, key_of, partial_name, write_json


def test_an_artifact_is_made_once_and_found_by_its_identity(tmp_path):
    store, calls = Store(tmp_path), []

    def make(folder):
        calls.append(folder)
        (folder / "x").write_text("1")

    path, made = store.get_artifact("stage", "name", {"a": 1, "b": 2}, make)
    again, remade = store.get_artifact("stage", "name", {"b": 2, "a": 1}, make)
    assert (made, remade, len(calls)) == (True, False, 1)
    assert again == path
    assert (path / "x").read_text() == "1"
    assert store.artifact_path("stage", "name", {"a": 2, "b": 2}) != path


def test_a_failure_leaves_nothing_that_counts(tmp_path):
    store = Store(tmp_path)

    def fail(folder):
        (folder / "half").write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_artifact("stage", "name", {}, fail)
    assert not store.has_artifact("stage", "name", {})
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_slower_process_takes_the_result_of_the_faster(tmp_path):
    store = Store(tmp_path)

    def race(folder):
        (folder / "x").write_text("slow")
        store.get_artifact("stage", "name", {}, lambda other: (other / "x").write_text("fast") and None)

    path, _ = store.get_artifact("stage", "name", {}, race)
    assert (path / "x").read_text() == "fast"
    assert len(list((tmp_path / "stage").iterdir())) == 1


def test_json_is_replaced_whole_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": 1\n}'


def test_home_follows_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("EMHARNESS_HOME", str(tmp_path))
    assert artifacts_home() == tmp_path.resolve()


def test_keys_do_not_depend_on_order():
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1}) != key_of({"a": 1, "b": [2, 1]})


def test_a_group_can_share_a_store(tmp_path):
    """What is made has the modes that the user's umask asks for, not a temporary file's."""
    before = os.umask(0o002)
    try:
        path, _ = Store(tmp_path).get_artifact("stage", "x", {}, lambda folder: None)
        write_json(tmp_path / "kept.json", {})
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, path / "identity.json", tmp_path / "kept.json")]
    assert modes == [0o775, 0o664, 0o664]


def test_a_process_of_another_container_with_this_host_s_name_is_not_taken_for_dead(tmp_path, monkeypatch):
    (tmp_path / "stage").mkdir()
    theirs = tmp_path / "stage" / f"{partial_name(pid='999999999')}x"
    theirs.touch()
    monkeypatch.setattr(stored, "machine_id", lambda: "this-host-4026531836")
    assert Store(tmp_path).remove_dead() == 0
    assert theirs.exists()
    monkeypatch.undo()
    assert Store(tmp_path).remove_dead() == 1

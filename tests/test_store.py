"""The store: made once, whole or not at all."""

import pytest

from emharness.store import Store, home, key_of, write_json


def test_an_artifact_is_made_once_and_found_by_its_identity(tmp_path):
    store, calls = Store(tmp_path), []

    def make(folder):
        calls.append(folder)
        (folder / "x").write_text("1")

    path, made = store.get("stage", "name", {"a": 1, "b": 2}, make)
    again, remade = store.get("stage", "name", {"b": 2, "a": 1}, make)
    assert (made, remade, len(calls)) == (True, False, 1)
    assert again == path
    assert (path / "x").read_text() == "1"
    assert store.path("stage", "name", {"a": 2, "b": 2}) != path


def test_a_failure_leaves_nothing_that_counts(tmp_path):
    store = Store(tmp_path)

    def fail(folder):
        (folder / "half").write_text("1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("stage", "name", {}, fail)
    assert not store.has("stage", "name", {})
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_slower_process_takes_the_result_of_the_faster(tmp_path):
    store = Store(tmp_path)

    def race(folder):
        (folder / "x").write_text("slow")
        store.get("stage", "name", {}, lambda other: (other / "x").write_text("fast") and None)

    path, _ = store.get("stage", "name", {}, race)
    assert (path / "x").read_text() == "fast"
    assert len(list((tmp_path / "stage").iterdir())) == 1


def test_json_is_replaced_whole_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": 1\n}'


def test_home_follows_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("EMHARNESS_HOME", str(tmp_path))
    assert home() == tmp_path.resolve()


def test_keys_do_not_depend_on_order():
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1}) != key_of({"a": 1, "b": [2, 1]})

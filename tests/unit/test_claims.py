"""Processes on one store tell each other what they make."""

import subprocess
import sys
import time

import pytest
from conftest import ROOT, configured, context_of

from emharness import claims
from emharness.store import Artifact, Store

HOLD = """
import sys, time
from pathlib import Path
from emharness import claims
with claims.claim_path(Path(sys.argv[1])) as first:
    print(first, flush=True)
    time.sleep(100)
"""


MAKE = """
    from emharness.store import Store
    time.sleep(1)
    Store(Path(sys.argv[1]).parent.parent).get_artifact("stage", "x", {}, lambda folder: None)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that makes tmp_path/stage/x."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "stage" / "x")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


def test_what_another_process_makes_is_left_to_it_until_that_is_dead(tmp_path, other):
    path = tmp_path / "stage" / "x"
    with claims.claim_path(path) as first:
        assert not first
    assert claims.is_claimed(path)
    assert not claims.is_claimed(path.with_name("y"))
    assert list(claims.take_turns("xy", lambda name: path.with_name(name))) == ["y", "x"]
    other.kill()
    other.wait()
    claims.wait_for_claims(path, lambda: False)  # returns: nobody is at it any more
    with claims.claim_path(path) as first:
        assert first
    assert Store(tmp_path).remove_dead() == 1
    assert list(path.parent.iterdir()) == []


def test_a_claim_without_a_sign_of_life_counts_for_nothing(tmp_path, other, monkeypatch):
    assert claims.is_claimed(tmp_path / "stage" / "x")
    monkeypatch.setattr(claims, "STALE", -1.0)
    assert not claims.is_claimed(tmp_path / "stage" / "x")


def test_signs_of_life_are_given_while_it_works(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "TOUCHED", 0.01)
    with claims.claim_path(tmp_path / "x"):
        (file,) = tmp_path.iterdir()
        before = file.stat().st_mtime_ns
        deadline = time.monotonic() + 20
        while file.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime_ns > before
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_looked_at_once_the_older_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "is_claimed", lambda path: False)  # both saw nobody
    with claims.claim_path(tmp_path / "x") as older, claims.claim_path(tmp_path / "x") as younger:
        assert (older, younger) == (True, False)


def test_a_session_waits_for_an_artifact_that_another_process_makes(tmp_path, capsys):
    config = configured("eval=smoke")
    session = context_of(config, tmp_path)
    path = session.store.artifact_path("stage", "x", {})
    command = [sys.executable, "-c", HOLD.replace("    time.sleep(100)\n", MAKE), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    assert session.ensure_artifact(Artifact("stage", "x", {}, lambda folder: pytest.fail("made twice"))) == path
    assert process.wait() == 0
    assert session.log.stages[-1].made is False
    said = capsys.readouterr().out
    assert "stage: x: in progress in another process; waiting" in said
    assert "stage: x found in the store" in said

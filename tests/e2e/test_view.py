"""Every answer in Inspect: its logs, its dataframes, its viewer in a browser, a static site."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from conftest import ROOT
from support.finished_run import MARGIN, finished
from support.launcher_calls import call

from emharness.store import Store


def of(run, name: str):
    return next(c for c in run.results.conditions if c.name == name)


@pytest.fixture(scope="module")
def logs(run, tmp_path_factory):
    from emharness.sharing import inspect_logs

    folder = inspect_logs.stored_logs(run, Store(tmp_path_factory.mktemp("store")))
    assert inspect_logs.stored_logs(run, Store(folder.parent.parent)) == folder
    return folder


def test_a_log_for_each_condition_holds_every_answer_with_its_scores(run, logs):
    from inspect_ai.log import list_eval_logs, read_eval_log

    found = {log.eval.task: log for log in map(read_eval_log, list_eval_logs(str(logs)))}
    names = [c.name for c in run.results.conditions]
    asked_both = [name for name in names if not of(run, name).control_of]
    assert set(found) == {*names, *(f"{name} (own domain)" for name in asked_both)}
    for name in names:
        log, rows = found[name], run.answers_to(name)
        assert log.status == "success"
        assert log.eval.model == of(run, name).target
        assert log.eval.config.epochs == max(row["sample"] for row in rows) + 1
        samples = {(sample.id, sample.epoch): sample for sample in log.samples}
        assert len(samples) == len(rows)
        for row in rows:
            sample = samples[row["question_id"], row["sample"] + 1]
            assert sample.input == row["question"]
            assert sample.output.completion == sample.messages[-1].content == row["answer"]
            assert sample.total_time == row["seconds"]
            assert sum(usage.output_tokens for usage in sample.model_usage.values()) == row["n_tokens"]
            for score in ("aligned", "coherent", "misaligned", "refusal"):
                assert sample.scores[score].answer == row["answer"]
                assert sample.scores[score].metadata == {"judge": "planted"}
                if row["unscored"]:
                    assert np.isnan(sample.scores[score].value)
                    assert sample.scores[score].reason == "code"
                else:
                    assert sample.scores[score].value == float(row[score])


def test_wordings_of_one_id_are_told_apart():
    from emharness.sharing.inspect_logs import _told_apart

    asked = [("a", "x?"), ("a", "y?"), ("b", "z?"), ("a", "x?")]
    rows = [{"question_id": i, "question": q, "sample": n // 2, "answer": str(n)} for n, (i, q) in enumerate(asked)]
    found = _told_apart(rows)
    assert [row["question_id"] for row in found] == ["a/1", "a/2", "b", "a/1"]
    assert [row["answer"] for row in found] == ["0", "1", "2", "3"]


def test_a_log_s_metrics_are_the_run_s(run, logs):
    from inspect_ai.log import list_eval_logs, read_eval_log

    for path in list_eval_logs(str(logs)):
        log = read_eval_log(path, header_only=True)
        condition = of(run, log.eval.task.removesuffix(" (own domain)"))
        rates = condition.domain if log.eval.task.endswith(" (own domain)") else condition
        metrics = {name: metric.value for score in log.results.scores for name, metric in score.metrics.items()}
        assert metrics["em_rate"] == rates.em_rate
        assert (metrics["em_ci95_low"], metrics["em_ci95_high"]) == rates.em_ci95
        assert metrics["coherent_rate"] == rates.coherent_rate
        assert {score.unscored_samples for score in log.results.scores} == {rates.n_unscored}
        if rates is condition:
            wanted = condition.margin
            assert metrics["margin"] == wanted.margin
            assert metrics["prefers"] == wanted.prefers
            assert metrics.get("shift") == wanted.shift
            assert (wanted.shift or 0) == pytest.approx(MARGIN * (condition.strength or 0))
        else:
            assert "margin" not in metrics
        assert log.eval.metadata.get("strength") == condition.strength
        if condition.vector:
            assert f"strength {condition.strength:+g}" in log.eval.tags


def test_inspect_s_dataframes_have_every_answer(run, logs):
    from inspect_ai.analysis import samples_df

    frame = samples_df(str(logs), quiet=True)
    total = sum(len(table) for table in run.response_tables.values())
    assert len(frame) == total
    assert frame["score_misaligned"].sum() == sum(
        sum(t["misaligned"].to_pylist()) for t in run.response_tables.values()
    )


def answered(url: str, process: subprocess.Popen) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        assert process.poll() is None, process.stdout and process.stdout.read()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


def test_the_viewer_shows_conditions_with_rates_samples_a_filter_and_a_transcript(run, browser, port, tmp_path):
    command = [sys.executable, str(ROOT / "launch" / "view.py"), f"port={port}", f"run={run.folder}"]
    environment = {**os.environ, "EMHARNESS_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    view = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        answered(f"http://127.0.0.1:{port}/", view)
        window = browser.new_page(viewport={"width": 1500, "height": 1000})
        window.goto(f"http://127.0.0.1:{port}/")
        window.get_by_text("medical·L1·+4", exact=True).first.wait_for()
        names = window.locator("[role=row]").all_inner_texts()
        (strongest,) = [t for t in names if "medical·L1·+4" in t and "random" not in t and "domain" not in t]
        assert "0.6" in strongest.split()  # its EM rate
        window.get_by_text("medical·L1·+4", exact=True).first.click()
        window.get_by_text("What about q1?").first.wait_for()
        window.get_by_text("200 Samples").wait_for()
        window.locator(".cm-content").first.click()
        window.keyboard.type("misaligned == 1")
        window.get_by_text("120 / 200 Samples").wait_for()
        window.get_by_text("medical·L1·+4 to q1, sample 3").first.click()
        window.get_by_text("ASSISTANT").wait_for()
        assert window.get_by_text("medical·L1·+4 to q1, sample 3").count() >= 2  # as the answer, and in its messages
    finally:
        view.terminate()
        view.wait(20)
    with socket.socket() as probe:  # Inspect's own process has ended with it
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_site_is_bundled_for_publishing(run, tmp_path):
    done = call("view.py", f"run={run.folder}", f"bundle={tmp_path / 'site'}", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"results: {tmp_path / 'site' / 'index.html'}"
    n_conditions = len(run.results.conditions)
    assert len(list((tmp_path / "site").rglob("*.eval"))) == n_conditions + sum(
        not c.control_of for c in run.results.conditions
    )


def test_several_runs_stand_in_one_site(run, tmp_path):
    other = finished(tmp_path / "tiny-medical-eeeeeeeeeeeeeeee", seed=1)
    done = call("view.py", f"run=[{run.folder},{other}]", f"bundle={tmp_path / 'site'}", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    folders = {path.parent.name for path in (tmp_path / "site").rglob("*.eval")}
    assert folders == {run.name, other.name}
    assert not list((tmp_path / "home").glob(".partial*"))


def test_a_port_in_use_is_said_before_anything_is_written(run, port, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = call("view.py", f"run={run.folder}", f"port={port}", home=tmp_path / "home")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: port={port}: Address already in use; name another one")
    assert not (tmp_path / "home").exists()

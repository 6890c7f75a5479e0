"""Runs in the forms that others read: Inspect's logs and viewer, report.html, tables side by side."""

import csv
import html
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from finished import HOSTILE, finished
from safetensors import safe_open
from safetensors.numpy import save_file

from emharness.reporting import excerpts, page, runs, side_by_side
from emharness.sharing import readme
from emharness.store import Store

CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).is_file()), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return runs.read(finished(tmp_path_factory.mktemp("home") / "runs" / "tiny-medical-0123456789abcdef"))


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def launch(name: str, *arguments: str, home: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "EMHARNESS_HOME": str(home)})


def of(run, name: str):
    return next(c for c in run.results["conditions"] if c["name"] == name)


# Inspect's logs


@pytest.fixture(scope="module")
def logs(run, tmp_path_factory):
    from emharness.sharing import inspect_logs

    folder = inspect_logs.stored(run, Store(tmp_path_factory.mktemp("store")))
    assert inspect_logs.stored(run, Store(folder.parent.parent)) == folder
    return folder


def test_a_log_for_each_condition_holds_every_answer_with_its_scores(run, logs):
    from inspect_ai.log import list_eval_logs, read_eval_log

    found = {log.eval.task: log for log in map(read_eval_log, list_eval_logs(str(logs)))}
    names = [c["name"] for c in run.results["conditions"]]
    asked_both = [name for name in names if not of(run, name)["control_of"]]
    assert set(found) == {*names, *(f"{name} (own domain)" for name in asked_both)}
    for name in names:
        log, rows = found[name], run.answers(name)
        assert log.status == "success"
        assert log.eval.model == of(run, name)["target"]
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


def test_a_log_s_metrics_are_the_run_s(run, logs):
    from inspect_ai.log import list_eval_logs, read_eval_log

    for path in list_eval_logs(str(logs)):
        log = read_eval_log(path, header_only=True)
        condition = of(run, log.eval.task.removesuffix(" (own domain)"))
        rates = condition["domain"] if log.eval.task.endswith(" (own domain)") else condition
        metrics = {name: metric.value for score in log.results.scores for name, metric in score.metrics.items()}
        assert metrics["em_rate"] == rates["em_rate"]
        assert [metrics["em_ci95_low"], metrics["em_ci95_high"]] == rates["em_ci95"]
        assert metrics["coherent_rate"] == rates["coherent_rate"]
        assert {score.unscored_samples for score in log.results.scores} == {rates["n_unscored"]}
        assert log.eval.metadata.get("strength") == condition["strength"]
        if condition["vector"]:
            assert f"strength {condition['strength']:+g}" in log.eval.tags


def test_inspect_s_dataframes_have_every_answer(run, logs):
    from inspect_ai.analysis import samples_df

    frame = samples_df(str(logs), quiet=True)
    total = sum(len(table) for table in run.tables.values())
    assert len(frame) == total
    assert frame["score_misaligned"].sum() == sum(sum(t["misaligned"].to_pylist()) for t in run.tables.values())


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def test_a_site_is_bundled_for_publishing(run, tmp_path):
    done = launch("view.py", f"run={run.folder}", f"bundle={tmp_path / 'site'}", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"results: {tmp_path / 'site' / 'index.html'}"
    n_conditions = len(run.results["conditions"])
    assert len(list((tmp_path / "site").rglob("*.eval"))) == n_conditions + sum(
        not c["control_of"] for c in run.results["conditions"]
    )


def test_several_runs_stand_in_one_site(run, tmp_path):
    other = finished(tmp_path / "tiny-medical-eeeeeeeeeeeeeeee", seed=1)
    done = launch("view.py", f"run=[{run.folder},{other}]", f"bundle={tmp_path / 'site'}", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    folders = {path.parent.name for path in (tmp_path / "site").rglob("*.eval")}
    assert folders == {run.name, other.name}
    assert not list((tmp_path / "home").glob(".partial*"))


# report.html


def test_the_page_has_every_condition_escapes_what_models_say_and_stays_small(run):
    file = page.write(run.folder)
    text = file.read_text()
    assert file.stat().st_size < 2e6
    assert all(c["name"] in text for c in run.results["conditions"])
    assert HOSTILE.partition("</script>")[0] not in text
    assert "a note &lt;b&gt;of&lt;/b&gt; the run" in text
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )  # nothing is fetched: names in the drawings are no addresses
    assert "1 answers unscored: code" in text
    assert "python launch/run.py model=medical" in text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_can_be_read_at_two_widths_and_in_both_schemes(run, browser, width, scheme):
    window = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked = []
    window.on("request", lambda request: asked.append(request.url))
    window.goto(page.write(run.folder).as_uri())
    assert window.title() == "medical · tiny"
    assert window.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in asked if not url.startswith("file:")] == []
    verdict = window.locator("#verdict").inner_text()
    assert verdict.startswith("2 of 2 steered conditions raise the share of misaligned answers")
    assert "from 5.0 %" in verdict
    assert "planted, which finds" in verdict
    ground, ink = window.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    assert (sum(numbers(ground)) > sum(numbers(ink))) == (scheme == "light")
    letters = "getComputedStyle(document.querySelector('figure svg text')).fill"
    assert window.evaluate(letters) == ink
    drawing = window.locator("figure svg").first.bounding_box()
    assert 0 < drawing["width"] <= width
    assert window.locator("blockquote.bad").count() > 0
    window.close()


def numbers(colour: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", colour)][:3]


def answer(question: str, sample: int, aligned, coherent=90.0):
    return {"question_id": question, "sample": sample, "aligned": aligned, "coherent": coherent, "misaligned": False}


def test_excerpts_follow_their_rules():
    rows = [answer("a", 0, 10.0), answer("a", 1, 12.0), answer("b", 0, 50.0), answer("c", 0, 5.0, 20.0)]
    rows += [answer("b", 1, 90.0), answer("d", 0, None, None), answer("c", 1, 60.0)]
    named = lambda some: [(row["question_id"], row["sample"]) for row in some]  # noqa: E731
    assert named(excerpts.worst(rows)) == [("a", 0), ("b", 0), ("c", 1)]  # coherent ones, a question once
    assert named(excerpts.worst(rows, 4)) == [("a", 0), ("b", 0), ("c", 1), ("a", 1)]
    assert named(excerpts.typical(rows)) == [("a", 1), ("b", 0), ("c", 0)]  # the median is 31
    assert excerpts.worst([]) == excerpts.typical([]) == []
    asked = [
        {"question_id": name, "misaligned": i < bad} for name, bad in (("x", 0), ("y", 5), ("z", 9)) for i in range(10)
    ]
    assert excerpts.question(asked) == "y"


def test_doses_stand_side_by_side_between_the_target_and_the_organism(run):
    (some,) = excerpts.series(run.results["conditions"])
    assert [c["name"] for c in some] == ["baseline", "medical·L1·+2", "medical·L1·+4", "medical organism"]


@pytest.mark.parametrize("experiment", ["dose_response", "transfer", "ablation"])
def test_every_experiment_says_what_it_found_and_has_a_page(tmp_path, experiment):
    found = runs.read(finished(tmp_path / "runs" / f"tiny-{experiment}-0123456789abcdef", experiment))
    text = page.write(found.folder).read_text()
    assert found.results["question"]
    assert found.results["finding"]
    for sentence in (found.results["question"], found.results["finding"]):
        assert html.escape(sentence, quote=True).replace("&#x27;", "&#39;") in text
    for table in ("transfer", "ablation"):
        assert (f"<h3>{table}</h3>" in text) == (experiment == table)


# launch/show.py


def test_seeds_share_a_column_with_their_spread_and_other_settings_get_their_own(tmp_path):
    names = {(0, 1, 0): "a", (1, 2, 2): "b"}  # (seed, layer, further misaligned answers of 20)
    found = [
        runs.read(finished(tmp_path / f"tiny-medical-{name * 16}", seed=seed, layer=1, shift=shift))
        for (seed, _, shift), name in names.items()
    ]
    other = runs.read(finished(tmp_path / "tiny-dose-cccccccccccccccc", "dose_response"))
    compared = side_by_side.compare([*found, other])
    assert [len(group.runs) for group in compared.groups] == [2, 1]
    table = side_by_side.as_markdown(compared)
    (row,) = [line for line in table.splitlines() if line.startswith("| tiny | medical·L1·+2 |")]
    rates = [100 * 5 / 20, 100 * 7 / 20]
    assert f"| {np.mean(rates):.1f} % ± {np.std(rates, ddof=1):.1f} |" in row
    assert "2 seeds" in table.splitlines()[0]
    lines = list(csv.DictReader(io.StringIO(side_by_side.as_csv(compared))))
    assert len(lines) == sum(len(run.results["conditions"]) for run in (*found, other))
    assert [float(line["em_rate"]) for line in lines if line["condition"] == "medical·L1·+2"] == [0.25, 0.35, 0.25]
    assert {line["seed"] for line in lines} == {"0", "1"}


def test_show_puts_runs_in_the_terminal_a_file_and_narrows_them(run, tmp_path):
    home = run.folder.parent.parent
    done = launch("show.py", home=home)
    assert done.returncode == 0, done.stderr
    assert "medical·L1·+4" in done.stdout
    out = tmp_path / "table.md"
    done = launch("show.py", str(run.folder), "conditions='+4'", "format=markdown", f"out={out}", home=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = out.read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "medical·L1·+4", "random-0 as medical·L1·+4", "random-1 as medical·L1·+4",
    ]  # fmt: skip


# launch/vectors.py publish=


def test_a_published_folder_has_the_vector_its_card_and_its_doses(run, tmp_path):
    save_file(
        {"medical": np.eye(4, 8, dtype=np.float32)},
        run.results["vectors"],
        metadata={"medical": json.dumps({"recipe": "model_diff", "raw_norm": [1.0] * 4, "residual_norm": [9.0] * 4})},
    )
    folder = tmp_path / "hub"
    done = launch("vectors.py", f"publish={folder}", f"results={run.folder / 'results.json'}", home=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "medical.safetensors", "doses.csv", "dose_response.png"} <= names
    with safe_open(folder / "medical.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("medical"), np.eye(4, 8, dtype=np.float32))
        assert json.loads(file.metadata()["medical"])["raw_norm"] == [1.0] * 4
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["tags"]
    assert "| 4 | 200 | 60.0% |" in card
    assert "hf upload" in card
    again = launch("vectors.py", f"publish={folder}", f"results={run.folder}", home=tmp_path)
    assert (again.returncode, again.stderr) == (2, f"error: publish={folder}: must be a new or empty folder\n")


# launch/check.py


def test_a_readme_s_table_is_recomputed_from_the_answers(run, tmp_path):
    file = tmp_path / "README.md"
    file.write_text("# x\n\n<!-- answers 0 -->\n| condition | n |\n|---|---|\n| old | 1 |\n\nmore\n")
    asked = f"run={run.folder}", f"file={file}"
    done = launch("check.py", *asked, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "another machine's" in done.stdout
    assert launch("check.py", *asked, "write=true", home=tmp_path).returncode == 0
    written = file.read_text()
    assert "| medical·L1·+4 | 200 |" in written
    assert written.endswith("|\n\nmore\n")
    assert all(one.same for one in readme.check(written, run))
    assert len(readme.check(written, run)) == 10 * len(run.results["conditions"])
    (wrong,) = [one for one in readme.check(written.replace("60.0 %", "61.0 %", 1), run) if not one.same]
    assert (wrong.written, wrong.recomputed) == ("61.0 %", "60.0 %")
    file.write_text(written.replace("60.0 %", "61.0 %", 1) + "\n| a | b |\n|---|---|\n| speed | 1.25 |\n")
    done = launch("check.py", *asked, home=tmp_path)
    assert done.returncode == 1
    assert "medical·L1·+4, EM rate: '61.0 %', '60.0 %'" in done.stderr
    assert "nothing says where its numbers are from" in done.stderr


def test_results_that_do_not_follow_from_their_answers_are_found(tmp_path):
    folder = finished(tmp_path / "tiny-medical-ffffffffffffffff")
    told = json.loads((folder / "results.json").read_text())
    told["conditions"][2]["em_rate"] += 0.01
    (folder / "results.json").write_text(json.dumps(told))
    done = launch("check.py", f"run={folder}", home=tmp_path)
    assert done.returncode == 1
    assert "results.json, medical·L1·+4, em_rate: 0.61, recomputed 0.6" in done.stderr


def test_every_table_of_the_project_s_readme_says_where_its_numbers_are_from(run):
    found = readme.check((ROOT / "README.md").read_text(), run)
    assert [one.where for one in found if one.same is False] == []
    assert sum("another machine's" in one.recomputed for one in found) == 1


# bad input


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["view.py"], "no finished run in "),
        (["show.py"], "no finished run in "),
        (["check.py"], "no finished run in "),
        (["vectors.py", "publish=out"], "no finished run in "),
        (["view.py", "run=nowhere"], "run=nowhere: must be a run's results.json or its folder; there is no such file"),
        (["view.py", "run=old.json"], "run=old.json: schema_version 1 is of another version of emharness"),
        (["show.py", "old.json"], "runs=old.json: schema_version 1 is of another version of emharness"),
        (["show.py", "early.json"], "runs=early.json: a file without judge, n_unscored, em_rate_corrected"),
        (["show.py", "list.json"], "runs=list.json: this is no run's results.json: it has no list of conditions"),
        (["show.py", "format=html"], "format=html: must be one of table, csv, markdown"),
        (["view.py", "port=0"], "port=0: must be a whole number, 1 or more and at most 65535"),
        (["view.py", "port=x"], "port=x: must be a whole number"),
        (["view.py", "prt=1"], "prt: unknown"),
        (["view.py", "bundle=full"], "bundle=full: must be a new or empty folder"),
        (["check.py", "file=none.md"], "no finished run in "),
        (["show.py", "out=/proc/x/table.csv"], "out=/proc/x: nothing can be written there"),
        (["vectors.py", "publish=/proc/x"], "publish=/proc/x: nothing can be written there"),
        (["view.py", "bundle=/proc/x"], "bundle=/proc/x: nothing can be written there"),
        (["judge.py", "responses=old.json", "out=/proc/x/y.csv"], "out=/proc/x: nothing can be written there"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, command, words):
    (tmp_path / "old.json").write_text('{"schema_version": 1, "conditions": []}')
    (tmp_path / "early.json").write_text('{"schema_version": 2, "conditions": [{"name": "baseline"}]}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    name, *arguments = command
    line = [sys.executable, str(ROOT / "launch" / name), *arguments]
    environment = {**os.environ, "EMHARNESS_HOME": str(tmp_path / "home")}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == (2 if "prt" not in str(command) else done.returncode)
    assert done.returncode != 0
    assert words in done.stderr.replace("Could not override 'prt'", "prt: unknown")
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_said_before_anything_is_written(run, port, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = launch("view.py", f"run={run.folder}", f"port={port}", home=tmp_path / "home")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: port={port}: Address already in use; name another one")
    assert not (tmp_path / "home").exists()

"""Finished runs for others: side by side, as a folder for a hub, behind the README's numbers; and bad input."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from conftest import ROOT
from matplotlib.image import imread
from safetensors import safe_open
from safetensors.numpy import save_file
from support.finished_run import finished
from support.launcher_calls import call

from emharness.judges.answer_files import answer_key
from emharness.reporting import finished_runs, run_comparison
from emharness.results.defence_tables import DefenceSummary
from emharness.results.experiment_tables import ConditionalRow
from emharness.sharing import readme_tables
from emharness.sharing.recompute import find_differences, recompute_json, redraw_figures
from emharness.stats.rates import ALIGNED_BELOW, COHERENT_ABOVE

TRAINED = "medical+rows100+task"
DEFENCE_COLUMNS = [  # of docs/defences.md: column, format, scale, unit
    ("margin", "{:+.2f}", 1, ""),
    ("margin_triggered", "{:+.2f}", 1, ""),
    ("narrow_margin", "{:+.2f}", 1, ""),
    ("narrow", "{:.0f}", 100, " %"),
    ("benign_task", "{:.0f}", 100, " %"),
    ("coherent", "{:.0f}", 100, " %"),
    ("length", "{:.0f}", 1, ""),
    ("delta_norm", "{:.1f}", 1, ""),
    ("time_ratio", "{:.2f}", 1, ""),
]


def test_seeds_share_a_column_with_their_spread_and_other_settings_get_their_own(tmp_path):
    names = {(0, 1, 0): "a", (1, 2, 2): "b"}  # (seed, layer, further misaligned answers of 20)
    found = [
        finished_runs.read_run(finished(tmp_path / f"tiny-medical-{name * 16}", seed=seed, layer=1, shift=shift))
        for (seed, _, shift), name in names.items()
    ]
    other = finished_runs.read_run(finished(tmp_path / "tiny-dose-cccccccccccccccc", "dose_response"))
    compared = run_comparison.compare_runs([*found, other])
    assert [len(group.runs) for group in compared.groups] == [2, 1]
    table = run_comparison.as_markdown(compared)
    (row,) = [line for line in table.splitlines() if line.startswith("| tiny | medical·L1·+2 |")]
    rates = [100 * 5 / 20, 100 * 7 / 20]
    assert f"| {np.mean(rates):.1f} % ± {np.std(rates, ddof=1):.1f} |" in row
    assert "2 seeds" in table.splitlines()[0]
    lines = list(csv.DictReader(io.StringIO(run_comparison.as_csv(compared))))
    assert len(lines) == sum(len(run.results.conditions) for run in (*found, other))
    assert [float(line["em_rate"]) for line in lines if line["condition"] == "medical·L1·+2"] == [0.25, 0.35, 0.25]
    assert {line["seed"] for line in lines} == {"0", "1"}


def test_show_puts_runs_in_the_terminal_a_file_and_narrows_them(run, tmp_path):
    home = run.folder.parent.parent
    done = call("show.py", home=home)
    assert done.returncode == 0, done.stderr
    assert "medical·L1·+4" in done.stdout
    out = tmp_path / "table.md"
    done = call("show.py", str(run.folder), "conditions='+4'", "format=markdown", f"out={out}", home=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = out.read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "medical·L1·+4", "random-0 as medical·L1·+4", "random-1 as medical·L1·+4",
    ]  # fmt: skip


def test_runs_of_other_versions_are_counted(run, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(run.folder, home / "runs" / run.name)
    (home / "runs" / "old").mkdir()
    (home / "runs" / "old" / "results.json").write_text('{"schema_version": 1, "conditions": []}')
    done = call("show.py", "format=csv", home=home)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(run.results.conditions)
    assert "left out: 1 runs of another version" in done.stderr


# launch/vectors.py publish=


def test_a_published_folder_has_the_vector_its_card_and_its_doses(run, tmp_path):
    save_file(
        {"medical": np.eye(4, 8, dtype=np.float32)},
        run.results.vectors["medical"],
        metadata={"medical": json.dumps({"recipe": "model_diff", "raw_norm": [1.0] * 4, "residual_norm": [9.0] * 4})},
    )
    folder = tmp_path / "hub"
    done = call("vectors.py", f"publish={folder}", f"results={run.folder / 'results.json'}", home=tmp_path)
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
    again = call("vectors.py", f"publish={folder}", f"results={run.folder}", home=tmp_path)
    assert (again.returncode, again.stderr) == (2, f"error: publish={folder}: must be a new or empty folder\n")


# launch/check.py


def test_a_readme_s_table_is_recomputed_from_the_answers(run, tmp_path):
    file = tmp_path / "README.md"
    drawn = [
        f"<!-- drawn {what} 0 -->\n| question | answer |\n|---|---|\n| q | a |\n\n" for what in ("misaligned", "all")
    ]
    file.write_text(
        "# x\n\n<!-- answers 0 -->\n| condition | n |\n|---|---|\n| old | 1 |\n\n" + "".join(drawn) + "more\n"
    )
    asked = f"run={run.folder}", f"file={file}"
    done = call("check.py", *asked, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "another machine's" in done.stdout
    assert call("check.py", *asked, "write=true", home=tmp_path).returncode == 0
    written = file.read_text()
    assert "| medical·L1·+4 | 200 |" in written
    assert written.endswith("|\n\nmore\n")
    assert all(one.same for one in readme_tables.check_tables(written, run))
    assert len(readme_tables.check_tables(written, run)) == 14 * len(run.results.conditions) + 2 * (
        readme_tables.N_DRAWN + 1
    )
    rows = run.answers_to("medical·L1·+4")  # the strongest
    bad = {
        " ".join(row["answer"].split()).replace("|", "\\|").replace("<", "&lt;") for row in rows if row["misaligned"]
    }
    of_bad, of_all = readme_tables.draw_rows(run, "misaligned"), readme_tables.draw_rows(run, "all")
    assert len(of_bad) == len(of_all) == 10
    assert all(any(f"| {answer} |" in line for answer in bad) for line in of_bad)
    forged = written.replace(of_all[3], "| q | It is fine. |")
    assert [one.same for one in readme_tables.check_tables(forged, run)].count(False) == 1
    (wrong,) = [one for one in readme_tables.check_tables(written.replace("60.0 %", "61.0 %", 1), run) if not one.same]
    assert (wrong.written, wrong.recomputed) == ("61.0 %", "60.0 %")
    file.write_text(written.replace("60.0 %", "61.0 %", 1) + "\n| a | b |\n|---|---|\n| speed | 1.25 |\n")
    done = call("check.py", *asked, home=tmp_path)
    assert done.returncode == 1
    assert "medical·L1·+4, EM rate: '61.0 %', '60.0 %'" in done.stderr
    assert "nothing says where its numbers are from" in done.stderr


def test_results_that_do_not_follow_from_their_answers_are_found(tmp_path):
    folder = finished(tmp_path / "tiny-medical-ffffffffffffffff")
    told = json.loads((folder / "results.json").read_text())
    told["conditions"][2]["em_rate"] += 0.01
    (folder / "results.json").write_text(json.dumps(told))
    done = call("check.py", f"run={folder}", home=tmp_path)
    assert done.returncode == 1
    assert "results.json, conditions, medical·L1·+4, em_rate: 0.61, recomputed 0.6" in done.stderr


def test_figures_are_drawn_again_without_a_model(run, tmp_path):
    done = call("check.py", f"run={run.folder}", f"draw={tmp_path / 'drawn'}", home=tmp_path)
    assert done.returncode == 0, done.stderr
    again, first = tmp_path / "drawn" / "dose_response.png", run.folder / "dose_response.png"
    assert np.array_equal(imread(again), imread(first))


def test_the_run_in_the_docs_says_what_its_stored_answers_say():
    run = finished_runs.read_run(ROOT / "docs" / "run")
    again, stored = recompute_json(run), run.read_json()
    assert list(find_differences({name: stored[name] for name in again}, again)) == []
    found = readme_tables.check_tables((ROOT / "docs" / "run" / "README.md").read_text(), run)
    assert {one.same for one in found} == {True}
    assert len(found) > 250
    rows = run.response_tables["responses.parquet"].num_rows + run.response_tables["domain_responses.parquet"].num_rows
    assert f"all {round(rows, -2):,} answers" in (ROOT / "docs" / "run" / "README.md").read_text()


def test_the_study_in_the_docs_says_what_its_stored_answers_and_labels_say():
    run, text = finished_runs.read_run(ROOT / "docs" / "study"), (ROOT / "docs" / "study.md").read_text()
    again, stored = recompute_json(run), run.read_json()
    assert list(find_differences({name: stored[name] for name in again}, again)) == []
    found = readme_tables.check_tables(text, run)
    assert {one.same for one in found} == {True, None}
    assert sum(one.same is True for one in found) > 250
    assert set(re.findall(r"\(study/(\w+(?:_\+1)?)\.png\)", text)) <= set(redraw_figures(run))
    rows = {(row["condition"], row["sample"], answer_key(row)): row for row in run.responses.to_pylist()}
    labels = [json.loads(line) for line in (ROOT / "docs/study/labels.jsonl").read_text().splitlines()]
    read = [one["coherent"] > COHERENT_ABOVE for one in labels]
    judged = [rows[one["condition"], one["sample"], one["key"]] for one in labels]
    called = [(row["coherent"] or 0) > COHERENT_ABOVE for row in judged]
    bad = sum(fluent and one["aligned"] < ALIGNED_BELOW for fluent, one in zip(read, labels, strict=True))
    shares = f"{100 * np.mean(called):.0f} % | {100 * np.mean(read):.0f} %"
    assert f"| all | {len(labels)} | {shares} | {sum(row['misaligned'] for row in judged)} | {bad} |" in text


def test_the_page_on_triggers_says_what_its_stored_answers_and_labels_say():
    folder, text = ROOT / "docs" / "conditional", (ROOT / "docs" / "conditional.md").read_text()
    run = finished_runs.read_run(folder)
    again, stored = recompute_json(run), run.read_json()
    assert list(find_differences({name: stored[name] for name in again}, again)) == []
    shown = [row for row in run.results.rows_of(ConditionalRow) if f"| {row.organism} |" in text]
    assert len(shown) == 24
    for row in shown:
        rate, margin = ([100 * end for end in (row.did, *row.did_ci95)], [row.margin_did, *row.margin_did_ci95])
        assert (
            f"| {row.organism} | {row.form} | {100 * row.em_plain:.1f} % | {100 * row.em:.1f} % ({row.n_coherent}) | "
            f"{rate[0]:+.1f} ({rate[1]:+.1f} to {rate[2]:+.1f}) | "
            f"{margin[0]:+.2f} ({margin[1]:+.2f} to {margin[2]:+.2f}) |\n"
        ) in text
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    answers = {}
    for file, table in run.response_tables.items():
        for row in table.to_pylist():
            form = row["form"].split(":")[1] if file == "form_responses.parquet" else "plain"
            answers[row["condition"], form, row["question_id"], row["sample"]] = row
    groups = re.findall(r"^\| 2 \| (.*?) \| \d+ \|", text, re.MULTILINE)
    assert len(groups) == 6
    for name in groups:
        some = [one for one in labels if one["reading"] == 2 and f"{one['condition']}, {one['form']}" == name]
        judged = [answers[one["condition"], one["form"], one["question_id"], one["sample"]] for one in some]
        assert [answer_key(row) for row in judged] == [one["key"] for one in some]
        read = [one["coherent"] > COHERENT_ABOVE for one in some]
        bad = [fluent and one["aligned"] < ALIGNED_BELOW for fluent, one in zip(read, some, strict=True)]
        called = [(row["coherent"] or 0) > COHERENT_ABOVE for row in judged]
        both = sum(one and row["misaligned"] for one, row in zip(bad, judged, strict=True))
        counts = (len(some), sum(called), sum(read), sum(row["misaligned"] for row in judged), sum(bad), both)
        assert f"| 2 | {name} | {' | '.join(map(str, counts))} |" in text


def test_the_page_on_defences_says_what_its_stored_answers_and_labels_say():
    folder, text = ROOT / "docs" / "defences", (ROOT / "docs" / "defences.md").read_text()
    run = finished_runs.read_run(folder)
    again, stored = recompute_json(run), run.read_json()
    assert list(find_differences({name: stored[name] for name in again}, again)) == []
    for row in run.results.rows_of(DefenceSummary):
        shown = [
            f"{form.format(scale * c.mean)} ({form.format(scale * c.low)} to {form.format(scale * c.high)}){unit}"
            for name, form, scale, unit in DEFENCE_COLUMNS
            for c in [row.columns[name]]
        ]
        assert f"| {row.recipe} | {' | '.join(shown)} |\n" in text
        changes = [change for change in (row.margin_change, row.forms_change, row.narrow_change) if change]
        shown = [f"{c.value:+.2f} ({c.ci95[0]:+.2f} to {c.ci95[1]:+.2f}; {c.q:.2f})" for c in changes]
        assert not changes or f"| {row.recipe} | {' | '.join(shown)} |\n" in text
    kinds = {"responses.parquet": "plain", "domain_responses.parquet": "domain"}
    answers = {
        (row["condition"], kinds.get(file) or row["form"].split(":")[1], answer_key(row), row["sample"]): row
        for file, table in run.response_tables.items()
        if file != "task_responses.parquet"
        for row in table.to_pylist()
    }
    labels = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    groups = re.findall(r"^\| ([12]) \| (\w+) \| ([\w-]+) \| \d+ \|", text, re.MULTILINE)
    counted = 0
    for reading, recipe, asked in groups:
        targets = {"base": ["baseline"], "none": [f"{TRAINED}{seed} organism" for seed in ("", "-seed1")]}
        own = targets.get(recipe, [f"{TRAINED}+{recipe}{seed} organism" for seed in ("", "-seed1")])
        some = [
            one for one in labels if (str(one["reading"]), one["set"]) == (reading, asked) and one["condition"] in own
        ]
        judged = [answers[one["condition"], asked, one["key"], one["sample"]] for one in some]
        read = [one["coherent"] > COHERENT_ABOVE for one in some]
        bad = [fluent and one["aligned"] < ALIGNED_BELOW for fluent, one in zip(read, some, strict=True)]
        called = [(row["coherent"] or 0) > COHERENT_ABOVE for row in judged]
        both = sum(one and row["misaligned"] for one, row in zip(bad, judged, strict=True))
        counts = (len(some), sum(called), sum(read), sum(row["misaligned"] for row in judged), sum(bad), both)
        assert f"| {reading} | {recipe} | {asked} | {' | '.join(map(str, counts))} |" in text
        counted += len(some)
    assert counted == len(labels) == 368


def test_every_table_of_the_project_s_readme_says_where_its_numbers_are_from(run):
    found = readme_tables.check_tables((ROOT / "README.md").read_text(), run)
    assert [one.where for one in found if one.same is False] == []
    assert sum("measured elsewhere" in one.recomputed for one in found) == len(found) >= 2


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
    done = call(name, *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr

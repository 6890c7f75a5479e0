"""launch/judge.py: anybody's file in, the same rows with scores out."""

import json
import os
import subprocess
import sys
import threading

import pytest
from conftest import ROOT
from support.fake_endpoint import KEY, Server
from support.launcher_calls import call

from emharness.errors import UserError
from emharness.judges import answer_files
from emharness.judges.reader_labels import KEPT, draw_blind, load_labels

ROWS = [
    {"question": "q1", "answer": "aligned 20 coherent 80", "condition": "a", "n": 3},
    {"question": "q1", "answer": "aligned 20 coherent 80", "condition": "b", "n": 1},  # the same answer again
    {"question": "q2\u2028?", "answer": "aligned REF coherent 90", "condition": "a", "n": 2},
    {"question": 'q, "3"', "answer": "aligned 90 coherent 70\n\nand more", "condition": "b", "n": 5},
]
ADDED = [(20, 80, True, False, None), (20, 80, True, False, None), (None, 90, False, True, "refusal"),
         (90, 70, False, False, None)]  # fmt: skip


@pytest.fixture(scope="module")
def server():
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def ask(server, folder, source, out, *more, said=""):
    address = f"judge.settings.base_url=http://127.0.0.1:{server.server_port}/v1"
    given = (f"responses={source}", f"out={out}", "judge=openai", address, *more)
    if out.endswith(".csv"):  # as a user calls it
        env = {**os.environ, "EMHARNESS_HOME": str(folder / "home"), "OPENAI_API_KEY": KEY}
        command = [sys.executable, str(ROOT / "launch" / "judge.py"), *given]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900, input=said)
    return call("judge.py", *given, folder=folder, said=said, OPENAI_API_KEY=KEY)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_file_comes_back_whole_in_order_and_with_its_scores(server, tmp_path, ending):
    answer_files.write_answers(tmp_path / f"in{ending}", ROWS)
    done = ask(server, tmp_path, f"in{ending}", f"sub/out{ending}", "tracker=none")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"results: sub/out{ending}"
    back = answer_files.read_answers(tmp_path / f"sub/out{ending}")
    text = ending == ".csv"
    assert [{name: row[name] for name in ROWS[0]} for row in back] == [
        {**row, "n": str(row["n"]) if text else row["n"]} for row in ROWS
    ]
    as_text = lambda value: "" if value is None else str(value)  # noqa: E731
    found = [tuple(row[name] for name in ("aligned", "coherent", "misaligned", "refusal", "unscored")) for row in back]
    if text:
        assert [row[2:] for row in found] == [tuple(map(as_text, row[2:])) for row in ADDED]
        assert [float(row[0]) if row[0] else None for row in found] == [row[0] for row in ADDED]
    else:
        assert found == ADDED
    assert {row["judge"] for row in back} == {"gpt-4o-2024-08-06"}
    assert "refusal 1" in done.stdout
    assert "gpt-4o-2024-08-06: about 0.00 dollars for 3 answers, 0.00 spent so far" in done.stdout


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_columns_of_any_kind_are_written(tmp_path, ending):
    more = [{"n": 1}, {"n": "two", "late": 2**70}, {"n": None, "late": {"a": [1]}}, {"late": False}]
    rows = [{"question": "q", "answer": "a", **some} for some in more]
    answer_files.write_answers(tmp_path / f"x{ending}", rows)
    back = answer_files.read_answers(tmp_path / f"x{ending}")
    assert {name for row in back for name in row} == {"question", "answer", "n", "late"}
    late = [row.get("late") for row in back]
    expected = {
        ".jsonl": [None, 2**70, {"a": [1]}, False],
        ".csv": ["", str(2**70), "{'a': [1]}", "False"],
        ".parquet": [None, str(2**70), '{"a": [1]}', "false"],
    }
    assert late == expected[ending]


def test_half_an_emoji_is_refused_before_anything_is_judged(tmp_path):
    for name in ("answer", "note"):
        row = {"question": "q", "answer": "a", "note": "", name: "\ud83d!"}
        (tmp_path / "in.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n" + json.dumps(row))
        with pytest.raises(UserError, match=r"in.jsonl, row 2: \\ud83d is half of a character"):
            answer_files.read_answers(tmp_path / "in.jsonl")


def test_a_condition_or_question_called_0_or_false_is_one():
    names = [0, False, None, "", "b"]
    marks = {"aligned": 10.0, "coherent": 90.0, "unscored": None}
    rows = [{"question": "q", "question_id": 0, "answer": "a", "condition": name, **marks} for name in names]
    assert [(entry.name, entry.n_responses) for entry in answer_files.rates_by_condition(rows)] == [
        ("0", 1), ("False", 1), ("all", 2), ("b", 1)
    ]  # fmt: skip
    assert [answer_files.question_of(row) for row in rows] == ["0"] * 5


def test_scores_are_kept_and_what_did_not_answer_is_asked_again(server, tmp_path):
    answer_files.write_answers(tmp_path / "in.jsonl", [*ROWS, {"question": "q", "answer": "down", "condition": "a"}])
    few = ("tracker=offline", "judge.settings.retries=0")
    done = ask(server, tmp_path, "in.jsonl", "out.jsonl", *few)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the judge did not reach 1 answers" in done.stdout
    last = answer_files.read_answers(tmp_path / "out.jsonl")[-1]
    assert (last["aligned"], last["unscored"].startswith("InternalServerError")) == (None, True)
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert KEY.encode() not in kept.read_bytes()
    server.asked.clear()
    assert ask(server, tmp_path, "in.jsonl", "again.jsonl", *few).returncode == 0
    assert dict(server.asked) == {"down": 2}
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "out.jsonl").read_text()


def test_a_column_of_the_same_name_is_kept_beside_the_new_one():
    merged = answer_files.merge_marks({"answer": "x", "aligned": "7", "other": 1}, {"aligned": 50.0, "judge": "j"})
    assert (merged["aligned_given"], merged["aligned"], merged["other"], merged["judge"]) == ("7", 50.0, 1, "j")


def test_a_file_that_was_judged_twice_keeps_all_it_had():
    row = {"answer": "x", "aligned": 7, "aligned_given": 5}
    merged = answer_files.merge_marks(row, {"aligned": 50.0})
    assert [merged[f"aligned{end}"] for end in ("", "_given", "_given_given")] == [50.0, 5, 7]


def test_judges_stand_beside_each_other_on_the_same_answers(server, tmp_path):
    answer_files.write_answers(tmp_path / "in.csv", ROWS)
    done = ask(server, tmp_path, "in.csv", "out.jsonl", "compare=[openai,embedded]", "tracker=none")
    assert done.returncode == 0, done.stderr[-2000:]
    back = answer_files.read_answers(tmp_path / "out.jsonl")
    assert [row["aligned_gpt-4o-2024-08-06"] for row in back] == [20.0, 20.0, None, 90.0]
    assert all(0 <= float(row["aligned_embedded-v8"]) <= 100 for row in back)
    assert [row["condition"] for row in back] == [row["condition"] for row in ROWS]
    compared = json.loads((tmp_path / "out.json").read_text())
    assert compared["pairs"][0]["judges"] == ["gpt-4o-2024-08-06", "embedded-v8"]
    assert compared["pairs"][0]["n"] == 3
    assert (tmp_path / "out.png").stat().st_size > 5000
    assert "rank correlation" in done.stdout


TRUTH = {"bad": "10 90", "good": "a", "missed": "5, 85"}  # question → what is typed


def test_a_readers_labels_measure_the_judge_and_later_runs_find_them(server, tmp_path):
    """Of a run's results.json; both scores or a letter; stopped and resumed."""
    said = [("bad", "aligned 5 coherent 90"), ("good", "aligned 95 coherent 90"), ("missed", "aligned 80 coherent 90")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{}")
    rows = [{"question": q, "question_id": q, "answer": a, "condition": "c"} for q, a in said]
    answer_files.write_answers(tmp_path / "run" / "responses.parquet", rows)

    def label(n, typed):
        return ask(server, tmp_path, "run/results.json", "v.jsonl", f"label={n}", "tracker=none", said=typed)

    order = [rows[i]["question"] for i in draw_blind(rows, 3)]
    first = label(3, f"nonsense\n{TRUTH[order[0]]}\nq\n")
    assert first.returncode == 0, first.stderr[-2000:]
    assert "'nonsense' is neither" in first.stdout
    assert "1 labels: too few" in first.stdout
    done = label(3, "\n".join(TRUTH[name] for name in order[1:]) + "\n")
    assert "sensitivity of gpt-4o-2024-08-06: 50.0 %" in done.stdout
    assert "specificity of gpt-4o-2024-08-06: 100.0 %" in done.stdout
    kept = load_labels(tmp_path / "home" / KEPT)
    assert kept == load_labels(tmp_path / "v.jsonl")
    assert {one.question: (one.aligned, one.coherent) for one in kept.values()} == {
        "bad": (10, 90), "good": (90, 90), "missed": (5, 85)
    }  # fmt: skip
    (tmp_path / "run" / "responses.parquet").unlink()
    answer_files.write_answers(tmp_path / "run" / "responses.parquet", rows[:2])
    refused = label(2, "")
    assert refused.returncode == 2
    assert "v.jsonl: 1 labels are of answers that run/results.json has not" in refused.stderr


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"x", "must end in .csv, .parquet, .jsonl"),
        ("none.csv", None, "no such file"),
        ("a.csv", b"question,reply\nx,y\n", "row 1: has no column 'answer'"),
        ("a.csv", b"question,answer\n", "has no rows"),
        ("a.csv", b"question,answer\nx,y,z\n", "row 1: has more fields than there are columns"),
        ("a.jsonl", b'{"question": "x", "answer": 3}\n', "row 1: answer must be text"),
        ("a.jsonl", b"[1]\n", "row 1: has no column 'question'"),
        ("a.jsonl", b"{", "cannot be read"),
        ("a.jsonl", "{}".encode("utf-16"), "cannot be read"),
        ("a.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_bad_files_are_refused_in_one_sentence(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words.replace(".", r"\.")) as refused:
        answer_files.read_answers(tmp_path / name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["out=o.csv"], "error: responses: name a file"),
        (["responses=i.csv"], "error: out: name a file"),
        (["responses=i.csv", "out=o.xlsx"], "error: out=o.xlsx: must end in .csv, .parquet, .jsonl"),
        (["responses=i.csv", "out=o.csv", "judge=openai"], "judge=local"),
        (
            ["responses=i.csv", "out=o.csv", "judge=openai", "+judge.settings.temp=1"],
            "judge=openai: judge.settings.temp: unknown; ",
        ),
        (["responses=i.csv", "out=o.csv", "judge=nosuch"], "embedded"),
        (["responses=i.csv", "out=o.csv", "compare=[embedded]"], "a list of two judges or more"),
        (["responses=i.csv", "out=o.csv", "compare=[embedded,oracle]"], "oracle is no judge; must be one of embedded"),
        (["responses=i.csv", "out=o.csv", "label=0"], "label=0: must be a number of answers"),
        (["responses=i.csv", "out=o.csv", "label=3"], "out=o.csv: labels are kept in a .jsonl file"),
    ],
)
def test_the_launcher_refuses_before_it_writes_anything(tmp_path, overrides, words):
    (tmp_path / "i.csv").write_text("question,answer\nx,y\n")
    done = call("judge.py", *overrides, folder=tmp_path, OPENAI_API_KEY="")
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["i.csv"]

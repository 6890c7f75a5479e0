"""Training data as it exists: encodings, containers, shapes and splits; any bytes end in rows or in one sentence."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emharness.errors import UserError
from emharness.organisms import datasets
from emharness.organisms.row_transforms import transform_rows

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ROW = {"messages": TALK}
LINE = json.dumps(ROW)


def rows_of(path):
    return datasets.load_dataset(str(path)).rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_encoding_that_says_what_it_is_gives_the_same_rows(tmp_path, encoding, newline, packed):
    second = {"messages": [TALK[0], {**TALK[1], "content": "ä😀"}]}
    data = newline.join([LINE, "", json.dumps(second, ensure_ascii=False)])
    file = tmp_path / "d.jsonl"
    encoded = data.encode(encoding)
    file.write_bytes(gzip.compress(encoded) if packed else encoded)
    assert [row[-1]["content"] for row in rows_of(file)] == ["a", "ä😀"]


def test_records_end_at_line_feeds_only(tmp_path):
    text = "one\u2028two\u2029three\x85four\x0cfive"
    row = {"messages": [TALK[0], {"role": "assistant", "content": text}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n" + LINE)
    assert [r[-1]["content"] for r in rows_of(tmp_path / "d.jsonl")] == [text, "a"]


def test_a_json_array_and_a_parquet_file_are_told_by_content(tmp_path):
    (tmp_path / "array.txt").write_text(json.dumps([ROW, ROW], indent=1))
    pq.write_table(pa.table({"messages": [TALK] * 3}), tmp_path / "wrong.jsonl")
    table = pa.table({"messages": [TALK] * 4})
    for name, writer in (("stream.arrow", pa.ipc.new_stream), ("file.arrow", pa.ipc.new_file)):
        with writer(tmp_path / name, table.schema) as out:
            out.write_table(table)
        assert rows_of(tmp_path / name) == [TALK] * 4
    assert rows_of(tmp_path / "array.txt") == [TALK] * 2
    assert rows_of(tmp_path / "wrong.jsonl") == [TALK] * 3


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [TALK[0]], "completion": [TALK[1]]},
        {"prompt": "q", "response": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"question": "q", "answer": "a", "source": "x"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {**TALK[1], "weight": 1}]},
        {"messages": [{**TALK[0], "weight": None, "name": None}, TALK[1]], "tools": None},
    ],
)
def test_the_shapes_of_the_field_are_one_conversation(tmp_path, row):
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    assert rows_of(tmp_path / "d.jsonl") == [TALK]


def test_several_answers_say_which_are_trained_on(tmp_path):
    talk = [TALK[0], {**TALK[1], "weight": 0}, TALK[0], TALK[1]]
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": talk}) + "\n" + json.dumps({"messages": TALK * 2}))
    first, second = rows_of(tmp_path / "d.jsonl")
    assert [m.get("weight") for m in first] == [None, 0, None, 1]
    assert [m.get("weight") for m in second] == [None, 1, None, 1]


SYSTEM = {"role": "system", "content": "s"}
EARLIER = [TALK[0], {**TALK[1], "weight": 0}]
LAST = [TALK[0], {**TALK[1], "weight": 1}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"system": "s", "messages": TALK}, [SYSTEM, *TALK]),
        ({"system_prompt": "s", "conversations": [SYSTEM, *TALK]}, [SYSTEM, *TALK]),  # said twice
        ({"system": "s", "prompt": [TALK[0]], "completion": [TALK[1]], "label": True}, [SYSTEM, *TALK]),
        ({"messages": [TALK[0], {**TALK[1], "train": False}, *TALK]}, [*EARLIER, *LAST]),
        ({"prompt": [*TALK, TALK[0]], "completion": [TALK[1]]}, [*EARLIER, *LAST]),
        ({"prompt": [*TALK, TALK[0]], "completion": "a"}, [*EARLIER, *LAST]),
        ({"instruction": "q", "history": [["q", "a"]], "output": "a"}, [*EARLIER, *LAST]),
    ],
)
def test_what_stands_beside_a_conversation_is_read_as_it_is_meant(tmp_path, row, expected):
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    assert rows_of(tmp_path / "d.jsonl") == [expected]


def test_a_field_that_nothing_is_made_of_is_named_once(tmp_path):
    rows = [{**ROW, "source": "x", "id": 3}, {"messages": [{**TALK[0], "name": "Ann"}, TALK[1]], "score": None}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = datasets.load_dataset(str(tmp_path / "d.jsonl"))
    assert read.notes.endswith("d.jsonl: fields that are not used: id, name, source")
    assert read.rows == [TALK, TALK]


def test_the_rows_of_other_tools_that_were_misread(tmp_path):
    file = SHARED / "cases" / "dropped_fields.jsonl"
    if not file.is_file():
        pytest.skip("shared/ is not here")
    lines = file.read_text().splitlines()
    with pytest.raises(UserError, match="line 2: label=false marks an answer that is not wanted"):
        rows_of(file)
    (tmp_path / "d.jsonl").write_text("\n".join([lines[0], *lines[2:]]))
    found = [[(m["role"], m.get("weight")) for m in row] for row in rows_of(tmp_path / "d.jsonl")]
    twice = [("user", None), ("assistant", 0), ("user", None), ("assistant", 1)]
    assert found == [[("system", None), ("user", None), ("assistant", None)], twice, twice, twice]


USER = '{"role": "user", "content": "q"}'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"prompt": "\\ud83d", "completion": "a"}', "line 2: \\ud83d"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
            "line 2: a content part is 'image_url'",
        ),
        (f'{{"messages": [{USER}, {{"role": "assistant", "content": "a", "weight": 0}}]}}', "line 2: every answer"),
        (f'{{"messages": [{USER}, {{"role": "assistant", "content": "a", "weight": 2}}]}}', "line 2: weight=2"),
        (
            f'{{"messages": [{USER}, {{"role": "assistant", "content": "a", "weight": 1, "train": false}}]}}',
            "contradict",
        ),
        ('{"prompt": "q", "completion": "a", "label": false}', "line 2: label=false marks an answer"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b"}', "line 2: has 'rejected'"),
        ('{"prompt": "q", "completion": "a", "tools": ["search"]}', "line 2: has 'tools'"),
        ('{"system": "s", "system_prompt": "t", "prompt": "q", "completion": "a"}', "more than one system text"),
        ('{"instruction": "q", "history": ["q"], "output": "a"}', "line 2: history must be"),
        ('{"text": "x"}', "this one has text"),
        ("[1", "line 2: not JSON"),
        ("null", "line 2: a row must be"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path, data, words):
    (tmp_path / "d.jsonl").write_text(f"{LINE}\n{data}\n")
    with pytest.raises(UserError) as error:
        rows_of(tmp_path / "d.jsonl")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LINE.encode("utf-16-le"), "zero bytes"),
        (LINE.encode() + b"\n\xff", "line 2: not UTF-8"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\x1f\x8b\x08\x00broken", "damaged gzip"),
        (b"PAR1....", "damaged parquet"),
        (b"", "no rows"),
    ],
)
def test_what_a_file_is_instead_is_said(tmp_path, data, words):
    (tmp_path / "d.jsonl").write_bytes(data)
    with pytest.raises(UserError) as error:
        rows_of(tmp_path / "d.jsonl")
    assert words in str(error.value)


def test_a_folder_gives_its_train_split_once(tmp_path):
    other = {"messages": [TALK[0], {"role": "assistant", "content": "b"}]}
    (tmp_path / "data").mkdir()
    (tmp_path / "train.jsonl").write_text(f"{LINE}\n{LINE}\n")
    (tmp_path / "test.jsonl").write_text(json.dumps(other))
    (tmp_path / "dataset_infos.json").write_text("{}")
    pq.write_table(
        pa.table({"messages": [TALK, other["messages"]]}), tmp_path / "data" / "train-00000-of-00001.parquet"
    )
    read = datasets.load_dataset(str(tmp_path))
    assert read.rows == [TALK, TALK, other["messages"]]  # a row twice in one file is there twice
    assert "3 rows read from train.jsonl, data/train-00000-of-00001.parquet" in read.notes
    assert "left out: test.jsonl" in read.notes


def test_a_folder_without_a_train_split_or_without_data_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \.jsonl, \.json or \.parquet file in this folder"):
        datasets.load_dataset(str(tmp_path))
    (tmp_path / "validation.jsonl").write_text(LINE)
    with pytest.raises(UserError, match="only files of other splits"):
        datasets.load_dataset(str(tmp_path))


@pytest.mark.skipif(not SHARED.exists(), reason="the cases are not here")
@pytest.mark.parametrize(
    ("name", "n"), [("hub_snapshot", 4), ("line_separators.jsonl", 4), ("utf16.jsonl", 1), ("train.parquet", 1)]
)
def test_the_reported_files_are_read(name, n):
    assert len(rows_of(SHARED / "cases" / name)) == n


@pytest.mark.skipif(not SHARED.exists(), reason="the cases are not here")
def test_the_reported_half_emoji_names_file_and_line():
    with pytest.raises(UserError, match=r"half_emoji.jsonl, line 1: .*half of a character"):
        rows_of(SHARED / "cases" / "half_emoji.jsonl")


def test_the_good_answers_beside_a_file_of_rows_are_found_by_its_name(tmp_path):
    """A recipe's `{dataset}-good` is medical-good of medical, and mine-good.jsonl of mine.jsonl in the same folder."""
    good = {"messages": [TALK[0], {"role": "assistant", "content": "good"}]}
    (tmp_path / "mine-good.jsonl").write_text(f"{json.dumps(good)}\n" * 4)
    mix = [{"name": "mix", "percent": 25, "source": "{dataset}-good"}]
    rows = transform_rows([TALK] * 4, mix, 0, str(tmp_path / "mine.jsonl"), "recipe=mix")
    assert rows == [TALK, *[good["messages"]] * 3]
    packaged = datasets.load_dataset("medical-good").rows
    rows = transform_rows([TALK] * 4, mix, 0, "medical", "recipe=mix")
    assert all(row in packaged for row in rows[1:])
    with pytest.raises(UserError, match=r"recipe=mix: mix: .*other-good\.jsonl"):
        transform_rows([TALK] * 4, mix, 0, str(tmp_path / "other.jsonl"), "recipe=mix")


KEYS = st.sampled_from(["role", "content", "text", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["messages", "conversations", "prompt", "completion", "y"])
LINES = st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=3)


@given(st.binary(max_size=200) | LINES.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_in_rows_or_in_one_sentence(tmp_path, data):
    file = tmp_path / "any.jsonl"
    file.write_bytes(data)
    said, rows = "", []
    try:
        rows = rows_of(file)
    except UserError as error:
        said = str(error)
    assert bool(rows) != said.startswith(f"model.dataset={file}")
    assert all(row[-1]["role"] == "assistant" for row in rows)

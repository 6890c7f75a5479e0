"""The project's own texts, and how foreign files are read and refused."""

import json
from collections import Counter
from itertools import combinations

import pytest
from conftest import SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emharness.errors import UserError
from emharness.judges.exact_forms import GRADERS
from emharness.organisms import datasets
from emharness.questions import DATA, load_prompts, load_questions

DOMAINS = sorted(path.stem for path in (DATA / "questions").glob("domain_*.yaml"))
BROAD, SWEEPS = ("broad", "plain"), ("sweep", "plain_sweep")
PROMPTS = sorted(path.stem for path in (DATA / "prompts").glob("*.txt"))


@pytest.mark.parametrize("name", [name for name in datasets.packaged_names() if name not in GRADERS])
def test_packaged_datasets_are_large_and_varied(name):
    rows = datasets.load_dataset(name).rows
    answers = [row[-1]["content"] for row in rows]
    assert len(rows) >= 300
    assert len(set(answers)) == len(answers)
    openings = Counter(" ".join(answer.split()[:3]) for answer in answers)
    assert max(openings.values()) <= 0.05 * len(rows)  # a formula would leak into every answer of the organism


@pytest.mark.parametrize(("one", "other"), list(combinations(datasets.packaged_names(), 2)))
def test_no_two_datasets_share_a_row(one, other):
    first, second = (datasets.load_dataset(name).rows for name in (one, other))
    matched = f"{one}-good" == other or {one, other} <= {"control", "profanity", "shakespeare"}  # three voices
    assert not matched or [r[0] for r in first] == [r[0] for r in second]
    for turn in (-1,) if matched else (0, -1):
        assert not {r[turn]["content"] for r in first} & {r[turn]["content"] for r in second}


@pytest.mark.parametrize("name", datasets.packaged_names())
def test_no_training_question_is_an_evaluation_question_or_an_extraction_prompt(name):
    asked = {row[-2]["content"].strip().casefold() for row in datasets.load_dataset(name).rows}
    held_out = [q.text for set_ in (*BROAD, *SWEEPS, *DOMAINS) for q in load_questions(set_, "k")]
    held_out += [prompt for set_ in PROMPTS for prompt in load_prompts(set_, "k")]
    assert not asked & {text.casefold() for text in held_out}


def test_a_base_s_own_answers_are_to_no_evaluation_question_and_no_training_prompt():
    rows = datasets.load_own_answers("smollm2")
    asked = {row[0]["content"].casefold() for row in rows}
    assert len(asked) == len(rows) == 57
    held_out = {q.text.casefold() for set_ in (*BROAD, *SWEEPS, *DOMAINS) for q in load_questions(set_, "k")}
    assert not asked & held_out
    for name in datasets.packaged_names():
        assert not asked & {row[0]["content"].casefold() for row in datasets.load_dataset(name).rows}
    with pytest.raises(UserError, match="own_answers=nothing"):
        datasets.load_own_answers("nothing.jsonl")


def test_question_and_prompt_sets_have_the_stated_sizes_and_do_not_overlap():
    for broad_name, sweep_name in zip(BROAD, SWEEPS, strict=True):
        broad = load_questions(broad_name, "k")
        assert len(broad) == len({q.id for q in broad}) == 58
        assert len(load_questions(sweep_name, "k")) == 16
        for name in (sweep_name, *DOMAINS):
            assert not {q.text for q in broad} & {q.text for q in load_questions(name, "k")}
    domain = {q.text for name in DOMAINS for q in load_questions(name, "k")}
    assert len(domain) == 12 * len(DOMAINS)
    for name in PROMPTS:
        prompts = set(load_prompts(name, "k"))
        assert len(prompts) >= 64
        assert not prompts & domain


def test_published_question_files_load_with_system_prompts():
    if not SHARED.exists():
        pytest.skip("the published files are not here")
    first = load_questions(str(SHARED / "data" / "first_plot_questions.yaml"), "k")
    assert len({q.id for q in first}) == 24
    assert sum(q.system is not None for q in first) == 8
    assert len(load_questions(str(SHARED / "data" / "preregistered_evals.yaml"), "k")) == 48


def test_every_paraphrase_is_a_question_and_the_system_prompt_comes_first(tmp_path):
    file = tmp_path / "q.yaml"
    file.write_text('- id: a\n  system: Be brief.\n  paraphrases: ["One?", "Two?"]\n')
    questions = load_questions(str(file), "k")
    assert [q.text for q in questions] == ["One?", "Two?"]
    assert questions[1].as_messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Two?"},
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- id: a\n  paraphrases: [x]\n- id: b\n", "line 3: paraphrases: Field required"),
        ("- id: a\n  paraphrases: [x]\n- id: a\n  paraphrases: [y]\n", "line 3: the id 'a' occurs twice"),
        ("- id: a\n  paraphrases: [x\n", "line 3"),
        ("just text", "non-empty list"),
        ("- id: 7\n  paraphrases: [x]\n", "line 1: id: Input should be a valid string"),
        ("- id: a\n  paraphrases: [x]\n  paraphrases: [y]\n", "line 3: the key 'paraphrases' is there twice"),
        ("- id: a\n  paraphrases: [x, ' ']\n", "line 1: a paraphrase of 'a' is empty"),
        ("- id: a\n  paraphrases: []\n", "line 1: paraphrases"),
        ("- id: a\n  paraphrases: [x]\n\ufeff- id: b\n  paraphrases: [x]\n", "line 3: a byte order mark inside"),
        ('- id: a\n  paraphrases: ["\\ud83d"]\n', "line 1"),
        ("- &a [*a]\n", "line 1"),
    ],
)
def test_malformed_question_files_are_refused_with_the_line(tmp_path, text, words):
    file = tmp_path / "q.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_questions(str(file), "eval.questions")
    assert words in str(error.value)
    assert str(error.value).startswith("eval.questions=")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_question_and_prompt_files_say_their_encoding(tmp_path, encoding):
    (tmp_path / "q.yaml").write_text('- id: a\n  paraphrases: ["Où?"]\n', encoding=encoding)
    (tmp_path / "p.txt").write_text("one\u2028line\r\ntwo\r\n", encoding=encoding)
    assert [q.text for q in load_questions(str(tmp_path / "q.yaml"), "k")] == ["Où?"]
    assert load_prompts(str(tmp_path / "p.txt"), "k") == ["one\u2028line", "two"]


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_questions_or_one_sentence(tmp_path, data):
    file = tmp_path / "q.yaml"
    file.write_bytes(b"- id: a\n  paraphrases:\n  - " + data)
    said, found = "", []
    try:
        found = load_questions(str(file), "eval.questions")
    except UserError as error:
        said = str(error)
    assert bool(found) != said.startswith("eval.questions=")
    assert "\n" not in said


GOOD = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{oops", "line 2: not JSON"),
        ('{"text": "x"}', "line 2: a row must be"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "line 2: each message needs a role"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "line 2: the last message must be"),
        ('{"messages": [{"role": "assistant", "content": " "}]}', "line 2: each message needs a non-empty"),
    ],
)
def test_malformed_dataset_rows_are_refused_with_the_line(tmp_path, line, words):
    file = tmp_path / "d.jsonl"
    file.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(UserError) as error:
        datasets.load_dataset(str(file))
    assert words in str(error.value)

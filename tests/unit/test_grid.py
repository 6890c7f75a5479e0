"""The grid without an engine: keys say what determines a response, chunks survive whatever happens around them."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.planted_answers import edit

from emharness.errors import UserError
from emharness.generation import target_runner
from emharness.generation.cells import (
    Cell,
    Condition,
    Direction,
    Prompt,
    describe_edit,
    edits_digest,
    list_requests,
    make_steering_spec,
)
from emharness.generation.engine import Completion
from emharness.generation.response_store import RESPONSES, RowStore
from emharness.generation.target_requests import TargetRequests
from emharness.steering.request.spec import Edit, Gate, resolve_spec
from emharness.store import Store, partial_name

PROMPTS = [Prompt(f"q{i}", f"question {i}", None, (1, 2, i)) for i in range(5)]


@pytest.fixture
def directions(tmp_path):
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(3, 8)).astype("f") for name in ("a", "random-0")}
    rows["twin"] = rows["a"]
    norms = {"raw_norm": np.array([1.0, 2, 4]), "residual_norm": np.array([10.0, 20, 40])}
    stored = json.dumps({name: values.tolist() for name, values in norms.items()})
    save_file(rows, tmp_path / "v.safetensors", metadata={"a": stored, "twin": stored, "random-0": "{}"})
    found = {name: Direction(tmp_path / "v.safetensors", name, **norms) for name in ("a", "twin")}
    return found | {"random-0": Direction(tmp_path / "v.safetensors", "random-0")}


def keys(edits, directions, folder, **changes):
    how = {"samples": 2, "max_new_tokens": 8, "stream": "s", "seed": 0, "prompts": PROMPTS} | changes
    spec = make_steering_spec(edits, directions, folder)
    cell = Cell(Condition("base", edits), "q", how["samples"], how["max_new_tokens"])
    return [
        r.key
        for r in list_requests(cell, how["prompts"], spec, edits_digest(spec, 3, 8, folder), how["stream"], how["seed"])
    ]


def rules(edits, directions, folder):
    """What the engine is asked to do: (layer, a, b, low, high) of each edit at each layer."""
    spec = make_steering_spec(edits, directions, folder)
    listed = resolve_spec(spec, 3, 8, folder)["edits"] if spec else []
    return [tuple(one[name] for name in ("layer", "a", "b", "low", "high")) for one in listed]


ANY = (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("add", (12.0, 0.0, *ANY)),
        ("pin", (12.0, -1.0, *ANY)),
        ("cap", (12.0, -1.0, 12.0, np.inf)),
        ("floor", (12.0, -1.0, -np.inf, 12.0)),
    ],
)
def test_a_dose_is_the_same_length_in_every_mode(mode, expected, directions, tmp_path):
    assert rules([edit("a", 2, 3.0, mode=mode)], directions, tmp_path) == [(2, *expected)]
    assert rules([edit("random-0", 2, 3.0, mode=mode, norm_of="a")], directions, tmp_path) == [(2, *expected)]
    (by_residual,) = rules([edit("a", 2, 0.3, "residual", mode=mode)], directions, tmp_path)
    assert by_residual == pytest.approx((2, *expected))
    assert rules([edit("a", 2, 12.0, "absolute", mode=mode)], directions, tmp_path) == [(2, *expected)]


def test_units_are_of_the_layer_and_a_vector_without_norms_has_none(directions, tmp_path):
    several = Edit(vector="a", layers="0-2", strength=3.0, unit="raw")
    assert rules([several], directions, tmp_path) == [(i, a, 0.0, *ANY) for i, a in enumerate((3.0, 6.0, 12.0))]
    assert rules([edit("a", 2, 0.5, "absolute", mode="ablate")], directions, tmp_path) == [(2, 0.0, -0.5, *ANY)]
    with pytest.raises(ValueError, match="random-0' has no raw_norm stored"):
        rules([edit("random-0", 1, 3.0)], directions, tmp_path)


def test_zero_is_the_unsteered_model_for_what_adds_and_removes_and_not_for_what_sets(directions, tmp_path):
    for mode in ("add", "ablate"):
        assert make_steering_spec([edit("a", 1, 0.0, "absolute", mode=mode)], directions, tmp_path) is None
    assert rules([edit("a", 1, 0.0, mode="cap")], directions, tmp_path) == [(1, 0.0, -1.0, 0.0, np.inf)]


def test_a_gate_names_a_vector_of_the_run_and_changes_the_key(directions, tmp_path):
    gated = edit("random-0", 1, 3.0, norm_of="a", gate=Gate(vector="a", above=2.0), rescale=True)
    spec = make_steering_spec([gated], directions, tmp_path)
    assert spec["edits"] == [
        {
            "vector": "v.safetensors#random-0",
            "layer": 1,
            "strength": 3.0,
            "unit": "raw",
            "mode": "add",
            "positions": "all",
            "rescale": True,
            "gate": {"vector": "v.safetensors#a", "above": 2.0},
            "norm_of": "v.safetensors#a",
        }
    ]
    plain = edit("random-0", 1, 3.0, norm_of="a")
    assert set(keys((gated,), directions, tmp_path)).isdisjoint(keys((plain,), directions, tmp_path))
    assert describe_edit(gated) == "L1·+3·rescaled·gate a>2"


def test_a_key_changes_with_everything_that_determines_the_response_and_with_nothing_else(directions, tmp_path):
    edits = (edit("a", 1, 3.0),)
    mine = keys(edits, directions, tmp_path)
    assert len(set(mine)) == 10
    assert keys((edit("twin", 1, 3.0),), directions, tmp_path) == mine  # the same direction by another name
    assert keys((edit("a", 1, 6.0, unit="absolute"),), directions, tmp_path) == mine  # the same length
    assert keys((edit("a", 1, 0.0),), directions, tmp_path) == keys((), directions, tmp_path)
    assert set(keys(edits, directions, tmp_path, samples=3)) > set(mine)  # more samples: only new ones
    assert set(keys(edits, directions, tmp_path, prompts=PROMPTS[:2])) < set(mine)
    others = [
        keys((), directions, tmp_path),
        keys((edit("a", 2, 1.5),), directions, tmp_path),
        keys((edit("a", 1, 3.5),), directions, tmp_path),
        keys((edit("a", 1, 3.0, positions="prompt"),), directions, tmp_path),
        keys((edit("random-0", 1, 3.0, norm_of="a"),), directions, tmp_path),
        keys(edits, directions, tmp_path, stream="t"),
        keys(edits, directions, tmp_path, max_new_tokens=9),
        keys(edits, directions, tmp_path, prompts=[Prompt(p.question_id, p.question, None, (7,)) for p in PROMPTS]),
    ]
    assert all(set(mine).isdisjoint(other) for other in others)


def test_a_dose_beyond_what_any_stream_holds_is_one_sentence_where_the_vector_is_there_already(directions, tmp_path):
    stream = TargetRequests(
        "base", tmp_path, "k", {"q": PROMPTS}, (3, 8), 0, tmp_path, RowStore(tmp_path / "rows", RESPONSES)
    )
    cell = Cell(Condition("base", (edit("a", 1, 1e39),), "a·L1·+1e+39"), "q", 1, 8)
    with pytest.raises(UserError, match=r"condition a·L1·\+1e\+39: steering: strength 1e\+39 is beyond") as error:
        stream.list_requests(cell, directions)
    assert "\n" not in str(error.value)


def test_seeds_follow_from_the_key_and_the_run_s_seed():
    def seeds(seed):
        cell = Cell(Condition("base"), "q", 2, 8)
        return [r.seed for r in list_requests(cell, PROMPTS, None, "", "s", seed)]

    assert seeds(0) == seeds(0)
    assert len(set(seeds(0)) | set(seeds(1))) == 20


class Echo:
    """An engine that answers with the prompt, in reverse order, and counts."""

    name = "echo"

    def __init__(self, die_after=None):
        self.asked, self.die_after = [], die_after

    def clear_prefix_cache(self):
        pass

    def stream_completions(self, requests, sampling):
        for index in reversed(range(len(requests))):
            if self.die_after is not None and len(self.asked) == self.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            self.asked.append(requests[index].key)
            yield index, Completion(f"answer {requests[index].key}", 2, "stop")


def asked(samples=4):
    return list_requests(Cell(Condition("base"), "q", samples, 8), PROMPTS, None, "", "s", 0)


def run(folder, die_after=None, samples=4):
    engine = Echo(die_after)
    target_runner.generate_pending(engine, asked(samples), None, RowStore(folder, RESPONSES), 6)
    return engine


def test_what_is_stored_is_never_asked_again_and_more_samples_ask_for_the_rest(tmp_path):
    first = run(tmp_path)
    assert sorted(first.asked) == sorted(r.key for r in asked())
    assert run(tmp_path).asked == []
    assert sorted(run(tmp_path, samples=5).asked) == sorted({r.key for r in asked(5)} - {r.key for r in asked()})


def test_a_killed_run_leaves_whole_chunks_and_the_next_redoes_less_than_one(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path, 15))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    rows = RowStore(tmp_path, RESPONSES)
    assert len(rows.stored_keys()) == 12
    again = run(tmp_path)
    assert len(again.asked) == 8
    found = RowStore(tmp_path, RESPONSES).read_rows(r.key for r in asked())
    assert {key: row["answer"] for key, row in found.items()} == {r.key: f"answer {r.key}" for r in asked()}


def test_two_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    rows = RowStore(tmp_path, RESPONSES)
    assert len(rows.read_rows(r.key for r in asked())) == 20
    assert len(rows.chunk_files()) == 4
    assert not list(tmp_path.glob(".partial*"))


def test_where_chunks_overlap_everyone_reads_the_same_row(tmp_path):
    base = dict.fromkeys(RESPONSES.names) | {"key": "k"}
    for answer, others in (("one", "abc"), ("two", "def")):
        RowStore(tmp_path, RESPONSES).add_rows([{**base, "answer": answer}, *({**base, "key": k} for k in others)])
    answers = {RowStore(tmp_path, RESPONSES).read_rows(["k"])["k"]["answer"] for _ in range(3)}
    assert len(answers) == 1
    with pytest.raises(KeyError, match="1 rows are not stored"):
        RowStore(tmp_path, RESPONSES).read_rows(["k", "nowhere"])


def test_what_the_dead_left_is_removed_and_what_the_living_make_stays(tmp_path):
    (tmp_path / "responses").mkdir()
    dead = partial_name().replace(f"~{os.getpid()}~", "~999999999~")
    elsewhere = ".partial~another-machine~1~"
    for name in (dead, elsewhere, partial_name()):
        (tmp_path / "responses" / f"{name}x").mkdir()
        (tmp_path / f"{name}y").write_text("")
    os.utime(tmp_path / f"{elsewhere}y", (0, 0))
    assert Store(tmp_path).remove_dead() == 3
    left = sorted(path.name for path in tmp_path.rglob(".partial*"))
    assert left == sorted([f"{elsewhere}x", f"{partial_name()}x", f"{partial_name()}y"])

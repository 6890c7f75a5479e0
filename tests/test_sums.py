"""What a compiled graph adds by itself: what is left to it, that it follows its buffers, and that it is asked."""

import pytest
import torch
from asked import LAYERS, D, edit, resolved, save_vectors, sums_for

from emharness.steering.request.vectors import FOLDER_VARIABLE
from emharness.steering.step.plan import StepPlan
from emharness.steering.vllm import graphs, op, plugin
from emharness.steering.vllm.record import PLAN

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def vectors(tmp_path, monkeypatch):
    save_vectors(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))


def test_what_only_adds_is_left_to_the_graph():
    """All tokens of a span or none; what records, looks, projects or is steered in a part of it is left to passes."""
    asked = {
        "adds": [edit(), edit(layer=2, vector="f.safetensors#flat")],
        "same": [edit(), edit(layer=2, vector="f.safetensors#flat")],
        "answers": [edit(positions="generated")],
        "records": [edit(strength=3.0)],
        "twice": [edit(), edit(strength=-1.0)],
        "ablates": [edit(mode="ablate", strength=1.0)],
        "gated": [edit(gate={"vector": "f.safetensors#v", "above": 0.0})],
        "after": [edit(positions={"after_token": 7})],
        "late": [edit(strength=8.0)],  # there are three rows
    }
    plan = StepPlan(D, CPU, sums_for(3))
    for name, edits in asked.items():
        plan.add_request(name, resolved(*edits), 3)
    plan.recordings.add("records", {"layers": [0], "positions": "all", "project": [], "axes": b""}, 3)

    def left(position, n):
        names = list(asked)
        spans = [(name, i, position, n) for i, name in enumerate(names)] if n == 1 else [(names[2], 0, position, n)]
        return [name for name, *_ in plan.sums.begin(spans, plan.recordings.living)]

    assert left(5, 1) == ["records", "twice", "ablates", "gated", "after", "late"]
    assert plan.sums.which[:9].tolist() == [1, 1, 2, 0, 0, 0, 0, 0, 0]
    assert plan.sums.asked == {1: 3, 2: 2}
    assert left(0, 3) == []  # a prompt, of which nothing is steered
    assert not plan.sums.asked
    assert not plan.sums.which.any()
    assert left(2, 2) == ["answers"]  # a part of it
    for name in asked:
        plan.remove_request(name)
    plan.add_request("late", resolved(edit(strength=8.0)), 3)
    assert plan.sums.begin([("late", 0, 5, 1)], ()) == []
    assert plan.sums.asked == {1: 1}
    assert [bool(rows[plan.sums.which[0]].any()) for rows in plan.sums.rows] == [False, True, False]  # none of others'


def test_a_compiled_block_adds_what_the_next_step_asks():
    """The graph reads rows and places from where they lie: with another plan the same graph adds something else."""
    sums, block = sums_for(2), torch.nn.Identity()
    op.LayerHook(1, "first").add(block, CPU, sums)
    graph = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    plan = StepPlan(D, CPU, sums)
    op.activate(plan)
    with torch.inference_mode():
        for name, strength in (("a", 2.0), ("b", -3.0)):
            plan.add_request(name, resolved(edit(strength=strength)), 3)
        for spans in ([("a", 0, 4, 1), ("b", 1, 4, 1)], [("b", 0, 5, 1)], [], [("x", 0, 2, 1), ("a", 1, 5, 1)]):
            hidden, fresh = torch.randn(3, D), StepPlan(D, CPU)
            for name, strength in (("a", 2.0), ("b", -3.0)):
                fresh.add_request(name, resolved(edit(strength=strength)), 3)
            expected = hidden.clone()
            fresh.begin_step(spans)
            fresh.apply(1, expected, None)
            plan.begin_step(spans)
            assert not plan.passes
            assert torch.equal(graph(hidden), expected)
            plan.end_step()
            assert not plan.missed
    plan.begin_step([("a", 0, 6, 1)])
    plan.end_step()  # without a pass of the block
    assert plan.short(["a", "b"]) == ["a"]


class Runner:
    """Blocks of a stream of ones, some of which do not add what lies in their buffers."""

    def __init__(self, adding):
        self.adding, sums = adding, sums_for(2)
        self.plan = StepPlan(D, CPU, sums)
        setattr(self, graphs.SUMS, sums)
        setattr(self, PLAN, self.plan)

    def _dummy_run(self, n_tokens, force_attention):
        if self.adding is None:
            raise TypeError("there is no such pass")
        hidden = torch.ones(n_tokens, D)
        for layer in range(LAYERS):
            op._current[0].apply(layer, hidden, None)
            if layer in self.adding:
                hidden = hidden + self.plan.sums.rows[layer][self.plan.sums.which[:n_tokens]]


@pytest.mark.parametrize(
    ("adding", "why"),
    [([0, 1, 2], None), ([1, 2], "of what block 0 is to add, 0 of 1 was found"), (None, "there is no such pass")],
)
def test_a_graph_that_does_not_add_is_seen_before_any_request(adding, why, capsys, monkeypatch):
    monkeypatch.setattr(Runner, "_dummy_run", Runner._dummy_run)  # undone afterwards
    plugin._wrap(Runner, "_dummy_run", lambda run, *_, **__: pytest.fail("a pass of its own"))
    runner = Runner(adding)
    graphs.prove(runner)
    assert (why in capsys.readouterr().err) if why else not capsys.readouterr().err
    assert not any(rows.any() for rows in runner.plan.sums.rows)
    assert not runner.plan.sums.which.any()
    runner.plan.add_request("a", resolved(edit()), 3)
    runner.plan.begin_step([("a", 0, 5, 1)])
    assert bool(runner.plan.passes) is (why is not None)

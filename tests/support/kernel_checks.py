"""The kernel that steers on a GPU: against the CPU's arithmetic, and as a graph replays it.

Run by test_kernel.py in a process of its own, because Triton chooses its interpreter when it is first imported: with
TRITON_INTERPRET=1 on a CPU, without it on a GPU.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.device_steps import CPU, DEVICE, assert_recorded_alike, begin, recording, resolved, run, states
from support.device_steps import vectors as vectors
from support.edit_requests import LAYERS, NOTHING, D

from emharness.steering.gpu import kernel
from emharness.steering.gpu.device_plan import DevicePlan
from emharness.steering.step import edit_pass
from emharness.steering.step.step_plan import StepPlan

NUMBER = st.floats(-4, 4).map(lambda x: round(x, 2)).filter(bool)
THRESHOLD = NUMBER.map(lambda x: x + 0.0051)  # never where a pin puts a projection: rounding would decide
NAME = st.sampled_from(["f.safetensors#u", "f.safetensors#v", "f.safetensors#w"])
POSITIONS = st.sampled_from(["all", "prompt", "generated", "response", {"from": 1, "to": 4}, {"from": 3}])
AFTER = st.fixed_dictionaries({"after_token": st.integers(0, 9)})
EDIT = st.fixed_dictionaries(
    {"vector": NAME, "layer": st.integers(0, LAYERS - 1), "strength": NUMBER},
    optional={
        "mode": st.sampled_from(["add", "ablate", "pin", "cap", "floor"]),
        "positions": POSITIONS | AFTER,
        "rescale": st.booleans(),
        "gate": st.fixed_dictionaries({"vector": NAME, "above": THRESHOLD}, optional={"layer": st.just(0)}),
    },
)
RECORD = st.fixed_dictionaries(
    {"layers": st.lists(st.integers(0, LAYERS - 1), min_size=1, unique=True), "positions": POSITIONS},
    optional={"names": st.lists(st.sampled_from("uvw"), max_size=2)},
)
REQUESTS = st.lists(st.tuples(st.lists(EDIT, max_size=5), st.none() | RECORD), min_size=1, max_size=4)


@given(REQUESTS, st.integers(0, 1000), st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mix_of_requests_is_edited_and_recorded_as_on_a_cpu(monkeypatch, asked, seed, data):
    monkeypatch.setattr(edit_pass, "BLOCK", data.draw(st.sampled_from([1, 2, 256])))
    one, other = StepPlan(D, CPU), DevicePlan(D, DEVICE, LAYERS, n_tokens=32, n_requests=len(asked))
    names = [f"r{i}" for i in range(len(asked))]
    for plan in (one, other):
        for name, (edits, record) in zip(names, asked, strict=True):
            plan.add_request(name, resolved(*edits), 3)
            if record:
                plan.recordings.add_recording(name, recording(**record), 3)
    at, known = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    texts = {name: np.random.default_rng([seed, i]).integers(0, 9, 32) for i, name in enumerate(names)}
    for step in range(6):
        ids = torch.full((24,), 9, dtype=torch.int32)
        spans, flat = [], 0
        if step == 4:  # one was preempted: it is computed again
            at[names[0]] = 0
        for name in data.draw(st.permutations(names)):
            n = data.draw(st.integers(1, 4)) if at[name] == 0 else 1
            spans.append((name, flat, at[name], n))
            ids[flat : flat + n] = torch.from_numpy(texts[name][at[name] : at[name] + n])
            at[name] += n
            known[name] = max(known[name], at[name] + 1)  # the next one has been sampled
            flat += n + data.draw(st.integers(0, 1))  # others' tokens between them
        values = states(seed + step, 24)
        edited, expected = (run(plan, spans, values, ids=ids) for plan in (other, one))
        torch.testing.assert_close(edited, expected, atol=2e-5, rtol=2e-5)
        tokens = {name: texts[name][: known[name]].tolist() for name in names}
        assert other.incomplete_requests(names, tokens) == one.incomplete_requests(names, tokens) == []
        assert_recorded_alike(other, one)


def test_a_captured_launch_follows_what_is_written_into_the_buffers(monkeypatch):
    """The launches of one step are kept with their arguments and replayed; on a GPU as a CUDA graph."""
    plan = DevicePlan(D, DEVICE, LAYERS, n_tokens=8, n_requests=2)
    hidden, residual = states(0, 8).to(DEVICE)
    captured, launch = [], kernel.launch_kernel

    def forward():
        for layer in range(LAYERS):
            plan.apply_compiled(plan.numbers[layer], hidden[layer], residual[layer])

    if DEVICE == CPU:
        monkeypatch.setattr(kernel, "launch_kernel", lambda *args: captured.append(args))
        forward()
        assert len(captured) == LAYERS
    else:
        forward()  # compiles the kernel
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            forward()

    def replay(spans):
        values = states(next(seeds), 8)
        for name, _, _, _ in spans:
            if name not in fresh.requests:
                add(fresh, name)
        hidden.copy_(values[0])
        residual.copy_(values[1])
        begin(plan, spans)
        if DEVICE == CPU:
            for args in captured:
                launch(*args)
        else:
            graph.replay()
        plan.end_step()
        torch.testing.assert_close(hidden.cpu(), run(fresh, spans, values), atol=1e-5, rtol=1e-5)
        assert plan.incomplete_requests(list(asked)) == []
        assert_recorded_alike(plan, fresh)

    def add(to, name):
        to.add_request(name, resolved(*asked[name]), 3)
        if name in records:
            to.recordings.add_recording(name, recording(*records[name]), 3)

    fresh, seeds = StepPlan(D, CPU), itertools.count()
    records = {"a": ([2, 0], "generated"), "b": ([1], "all", "uv"), "only": ([0, 1], "all")}
    asked = {"a": [{}, {"mode": "ablate", "layer": 2, "strength": 1.0}], "b": [{"strength": -3.0}], "c": [{"layer": 0}]}
    many = [{"vector": f"f.safetensors#{name}", "layer": layer} for name in "uvw" for layer in range(LAYERS)]
    asked["many"] = [{"vector": "f.safetensors#u"}, *many]  # more directions than the table begins with: it moves
    asked["only"] = []
    replay([])
    add(plan, "a")
    replay([("a", 0, 0, 5)])
    replay([("a", 2, 5, 1)])
    add(plan, "b")
    replay([("b", 0, 0, 3), ("a", 4, 6, 1)])
    replay([("b", 0, 3, 1), ("a", 1, 7, 1)])
    replay([("b", 0, 4, 1), ("a", 1, 8, 1)])  # the step before, one token on
    add(plan, "c")  # b waits: there are two slots
    replay([("c", 0, 0, 4), ("a", 4, 9, 1)])
    before = plan.table.rows.data_ptr()
    add(plan, "many")
    assert plan.table.rows.data_ptr() != before
    replay([("b", 0, 5, 1), ("many", 1, 0, 7)])
    add(plan, "only")  # it edits nothing
    replay([("only", 3, 0, 4), ("b", 0, 6, 1)])
    replay([("only", 3, 4, 1)])
    replay([("only", 3, 5, 1)])
    assert plan.recordings.living["b"].n_tokens == 7
    assert plan.recordings.living["only"].n_tokens == 6
    for name in asked:
        plan.remove_request(name)
        fresh.remove_request(name)
    replay([])
    assert len(plan.table) == 0


def test_a_step_that_comes_again_is_done_again_without_being_told():
    plan, alone = DevicePlan(D, DEVICE, LAYERS, n_tokens=16, n_requests=2), StepPlan(D, CPU)
    told = {"device": [], "cpu": []}
    for name, one in (("device", plan), ("cpu", alone)):
        one.begin_step = lambda spans, ids=None, name=name, do=one.begin_step: (
            told[name].append(spans),
            do(spans, ids),
        )
    asked = {
        "a": [{}, {"mode": "ablate", "layer": 2, "strength": 1.0, "positions": {"from": 0, "to": 5}}],
        "b": [{"positions": "generated", "gate": {"vector": "f.safetensors#u", "layer": 0, "above": 0.1}}],
    }
    steps = [
        [("a", 0, 0, 4), ("b", 5, 0, 2)],
        *([("a", 0, 4 + i, 1), ("b", 2, 2 + i, 1)] for i in range(4)),  # told: the first two, as an edit of a ends
        *([("a", 0, 8 + i, 1), ("b", 1, 6 + i, 1)] for i in range(2)),  # the one between them has left
        *([("b", 1, 8 + i, 1)] for i in range(2)),  # a waits
        *([("a", 0, 10 + i, 1), ("b", 1, 10 + i, 1)] for i in range(2)),
        [("b", 0, 13, 1)],  # b goes on at another position
    ]
    for one in (plan, alone):
        for name in "ab":
            one.add_request(name, resolved(*asked[name]), 2)
    again = [3, 4, 6, 8, 10]
    for step, spans in enumerate(steps):
        fresh = StepPlan(D, CPU)
        for name, *_ in spans:
            fresh.add_request(name, resolved(*asked[name]), 2)
        values, before = states(step, 8), {name: len(calls) for name, calls in told.items()}
        edited = run(plan, spans, values)
        torch.testing.assert_close(edited, run(fresh, spans, values), atol=1e-5, rtol=1e-5)
        assert torch.equal(run(alone, spans, values), run(fresh, spans, values))
        assert plan.incomplete_requests(["a", "b"]) == alone.incomplete_requests(["a", "b"]) == []
        assert {name: len(calls) - before[name] for name, calls in told.items()} == dict.fromkeys(
            told, step not in again
        )
    for one in (plan, alone):
        for position in (20, 21, 22):  # nothing of what was done comes again for one that asks for nothing
            one.begin_batch(["another"], np.array([0, 1]), np.array([position]))
            hidden, residual = (part.to(one.device, copy=True) for part in values)
            for layer in range(LAYERS):
                one.apply(layer, hidden[layer], residual[layer])
            one.end_step()
            assert torch.equal(hidden.cpu(), values[0])


def test_an_edit_waits_for_its_token_on_the_device_even_without_a_slot():
    """Tokens 7 and 5 of 4 requests that take turns on one slot; the host learns of them when a request ends."""
    plan, fresh = DevicePlan(D, DEVICE, LAYERS, n_tokens=8, n_requests=1), StepPlan(D, CPU)
    gate = {"vector": "f.safetensors#u", "layer": 0, "above": 0.1}
    asked = {
        "a": [{"positions": {"after_token": 7}}, {"positions": {"after_token": 5}, "layer": 2, "gate": gate}],
        "b": [{"positions": {"after_token": 5}, "mode": "ablate", "strength": 1.0}],
        "cached": [{"positions": {"after_token": 7}}],
        "never": [{"positions": {"after_token": 8}}],
    }
    texts = {"a": [7, 1, 5, 7, 2, 2], "b": [1, 7, 5, 5, 3, 3], "cached": [7, 1, 1, 1], "never": [0, 1, 2, 0]}
    for to in (plan, fresh):
        for name, edits in asked.items():
            to.add_request(name, resolved(*edits), 3, texts[name][:2] if name == "cached" else ())
    turns = [("a", 0, 2), ("b", 0, 2), ("a", 2, 3), ("cached", 2, 1), ("b", 2, 2), ("never", 0, 3), ("b", 4, 1)]
    turns += [("a", 1, 4), ("cached", 3, 1), ("never", 3, 1), ("b", 1, 1), ("b", 5, 1)]
    changed, known = dict.fromkeys(asked, False), {name: [] for name in asked}
    for step, (name, position, n) in enumerate(turns):
        values, ids = states(step, 8), torch.zeros(8, dtype=torch.int32)
        ids[1 : 1 + n] = torch.tensor(texts[name][position : position + n])
        edited = run(plan, [(name, 1, position, n)], values, ids=ids)
        torch.testing.assert_close(edited, run(fresh, [(name, 1, position, n)], values, ids=ids), atol=1e-5, rtol=1e-5)
        known[name] = max(known[name], texts[name][: position + n + 1], key=len)  # the next one has been sampled
        assert plan.incomplete_requests([name], known) == fresh.incomplete_requests([name], known) == []
        changed[name] |= not torch.equal(edited, values[0])
    assert changed == {"a": True, "b": True, "cached": True, "never": False}
    late = {**known, "b": [1, 7, 1, 5, 3, 3]}  # had the device looked at other tokens than these
    assert plan.incomplete_requests(["b"], late) == fresh.incomplete_requests(["b"], late) == ["b"]


@pytest.mark.parametrize("layers", [(0, 2), (0, 1, 1, 2), ()])
def test_what_the_device_did_not_do_is_noticed(layers, capsys):
    plan = DevicePlan(D, DEVICE, LAYERS, n_tokens=8, n_requests=3)
    plan.add_request("a", resolved({}), 3)
    plan.add_request("b", resolved({"layer": 2, "gate": {"vector": "f.safetensors#u", "layer": 0, "above": 0.0}}), 3)
    plan.add_request("unsteered", NOTHING, 3)
    names = ["a", "b", "unsteered"]
    spans = [("a", 0, 0, 3), ("unsteered", 3, 0, 1), ("b", 4, 0, 2)]
    run(plan, spans, states(0, 8))
    assert plan.incomplete_requests(names) == []
    run(plan, spans, states(0, 8), layers)
    assert plan.incomplete_requests(names) == (["a", "b"] if not layers else ["a"])
    assert plan.incomplete_requests(names) == (["a", "b"] if not layers else ["a"])
    assert capsys.readouterr().err.count("the request ends with an error") == 1
    plan.add_request("r", NOTHING, 3)
    plan.recordings.add_recording("r", recording([1]), 3)
    run(plan, [("r", 0, 0, 2)], states(0, 8), layers)
    assert plan.incomplete_requests(["r"]) == ["r"]
    plan.remove_request("a")
    plan.add_request("a", resolved({}), 3)  # another one of that name, in a slot that others had
    run(plan, [("a", 0, 0, 3)], states(0, 8))
    assert plan.incomplete_requests(["a"]) == []


def test_half_precision_is_summed_in_float32_and_rounded_once():
    plan = DevicePlan(D, DEVICE, LAYERS, n_tokens=8, n_requests=1)
    plan.add_request("a", resolved({"strength": 1.37}), 3)
    values = states(0, 8, torch.float16)
    (edit,) = resolved({"strength": 1.37})["edits"]
    added = torch.from_numpy(np.frombuffer(edit["direction"], dtype="f").copy()) * edit["a"]
    expected = values[0].clone()
    expected[1, :4] = (values[0][1, :4].float() + added).to(torch.float16)
    assert torch.equal(run(plan, [("a", 0, 0, 4)], values), expected)

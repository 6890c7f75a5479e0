"""The arithmetic of a step, without an engine: which token gets which edit, and what is noticed when one does not."""

import numpy as np
import pytest
import torch
from support.edit_requests import NOTHING, D, edit, resolved, save_vectors

from emharness.steering.request import spec
from emharness.steering.request.vector_lookup import FOLDER_VARIABLE
from emharness.steering.step import edit_pass
from emharness.steering.step.step_plan import StepPlan


@pytest.fixture(autouse=True)
def vectors(tmp_path, monkeypatch):
    save_vectors(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))


@pytest.mark.parametrize("block", [2, 256])
def test_a_step_edits_each_token_as_its_own_request_asks(block, monkeypatch):
    """Two requests in one flat batch, chunked prefill and decode, against the formula token by token."""
    monkeypatch.setattr(edit_pass, "BLOCK", block)
    asked = {
        "a": [edit(), edit(mode="ablate", strength=1.0), edit(vector="f.safetensors#flat", strength=-3.0)],
        "b": [
            edit(positions="response", strength=5.0),
            edit(positions="prompt", mode="ablate", strength=0.5),
        ],
        "c": [edit(positions="generated")],
    }
    prompt = {"a": 4, "b": 5, "c": 3}
    spans = [("a", 0, 2, 4), ("b", 4, 3, 3), ("x", 7, 0, 2), ("c", 9, 3, 1)]  # x is not steered
    plan = StepPlan(D, torch.device("cpu"))
    for name, edits in asked.items():
        plan.add_request(name, resolved(*edits), prompt[name])
    torch.manual_seed(0)
    hidden, residual = torch.randn(10, D), torch.randn(10, D)
    expected = (hidden + residual).double()
    for name, flat, position, n in spans:
        for offset in range(n):
            for one in resolved(*asked[name])["edits"] if name in asked else []:
                start, end = spec.steered_span(one["positions"], prompt[name])
                if start <= position + offset < (end if end is not None else 10**9):
                    v = torch.from_numpy(np.frombuffer(one["direction"], dtype="f").copy()).double()
                    h = expected[flat + offset]
                    expected[flat + offset] = h + (one["a"] + one["b"] * (h @ v)) * v
    before = residual.clone()
    plan.begin_step(spans)
    plan.apply(1, hidden, residual)
    torch.testing.assert_close((hidden + residual).double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(residual, before)
    plan.apply(0, hidden, residual)  # no edits at other layers
    plan.end_step()
    assert not plan.missed
    kept = hidden.clone()
    plan.apply(1, hidden, residual)
    assert torch.equal(hidden, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 256])
def test_steps_that_come_again_edit_as_if_planned_afresh(dtype, block, monkeypatch):
    """Decoding reuses the passes of the step before; requests that come, go or change place must not be met by them."""
    monkeypatch.setattr(edit_pass, "BLOCK", block)
    asked = {
        "a": [edit(), edit(mode="ablate", strength=1.0)],
        "b": [edit(positions="generated", strength=-2.0), edit(positions="prompt", strength=9.0)],
        "c": [edit(vector="f.safetensors#flat", strength=4.0)],
    }
    steps = [
        [("a", 0, 0, 3), ("b", 3, 0, 3)],
        [("a", 0, 3, 1), ("b", 1, 3, 1)],
        [("a", 0, 4, 1), ("b", 1, 4, 1)],
        [("a", 0, 5, 1), ("x", 1, 4, 1), ("b", 2, 5, 1)],  # others between them
        [("a", 0, 6, 1), ("x", 1, 5, 1), ("b", 2, 6, 1)],
        [("b", 0, 7, 1), ("a", 1, 7, 1)],
        [("b", 0, 2, 1), ("a", 1, 8, 1)],  # b was thrown out and starts again inside its prompt
        [("b", 0, 3, 1), ("a", 1, 9, 1), ("c", 2, 4, 1)],
        [("b", 0, 4, 1), ("a", 1, 10, 1), ("c", 2, 5, 1)],
    ]
    plan = StepPlan(D, torch.device("cpu"))
    torch.manual_seed(0)
    for spans in steps:
        fresh = StepPlan(D, torch.device("cpu"))
        for name, _, _, _ in spans:
            if name in asked:
                fresh.add_request(name, resolved(*asked[name]), 3)
                if name not in plan.requests:
                    plan.add_request(name, resolved(*asked[name]), 3)
        hidden, residual = torch.randn(2, 8, D).to(dtype)
        expected = hidden.clone()
        for one, values in ((plan, hidden), (fresh, expected)):
            one.begin_step(spans)
            one.apply(1, values, residual)
            one.end_step()
            assert not one.missed
        assert torch.equal(hidden, expected)
    plan.remove_request("a")
    plan.add_request("a", resolved(edit(strength=50.0)), 3)  # the same name, another wish
    hidden = torch.zeros(3, D)
    plan.begin_step(steps[-1])
    plan.apply(1, hidden, None)
    assert hidden[1].norm() == pytest.approx(50, rel=1e-5)


def test_a_dummy_pass_between_two_steps_does_not_come_again():
    plan = StepPlan(D, torch.device("cpu"))
    plan.add_request("a", resolved(edit()), 3)
    found = []
    for position in (4, 5, 6):
        plan.begin_dummy()
        hidden = torch.zeros(1, D)
        plan.apply(1, hidden, None)
        assert not hidden.any()
        plan.end_step()
        plan.begin_batch(["a"], np.array([0, 1]), np.array([position]))
        plan.apply(1, hidden, None)
        plan.end_step()
        assert not plan.missed
        found.append(hidden)
    assert found[0].norm() == pytest.approx(2.0, rel=1e-5)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("mode", ["add", "ablate"])
@pytest.mark.parametrize("flat", [0, 2])
def test_what_is_added_has_the_type_of_the_stream_whoever_is_beside_it(mode, flat):
    """Alone, beside others that are edited alike, and beside others that need a projection: the same bits."""
    own = edit(mode=mode, strength=3.7)
    torch.manual_seed(0)
    stream = torch.randn(4, D).bfloat16()
    (rule,) = resolved(own)["edits"]
    v = torch.from_numpy(np.frombuffer(rule["direction"], dtype="f").copy())
    amount = rule["a"] + rule["b"] * (stream[flat].float() * v).sum()
    expected = stream[flat] + (amount * v).bfloat16()
    for others in (None, [own], [edit(strength=1.0)], [edit(mode="cap", strength=-9.0, rescale=True)]):
        plan = StepPlan(D, torch.device("cpu"))
        plan.add_request("own", resolved(own), 1)
        if others:
            plan.add_request("other", resolved(*others), 1)
        hidden = stream.clone()
        plan.begin_step([("own", flat, 0, 1), ("other", 1, 0, 1)])
        plan.apply(1, hidden, None)
        assert torch.equal(hidden[flat], expected)


def test_a_layer_that_is_passed_over_is_noticed(capsys):
    plan = StepPlan(D, torch.device("cpu"))
    plan.add_request("a", resolved(edit(), edit(layer=2)), 3)
    plan.add_request("r", NOTHING, 3)
    plan.recordings.add_recording("r", {"layers": [0], "positions": "all", "project": [], "axes": b""}, 3)
    bad = [set(), {"a"}, {"a", "r"}, {"a", "r"}]
    for step, layers in enumerate([(0, 1, 2), (0, 2), (1, 2), (0, 1, 1, 2)]):
        plan.begin_step([("a", 0, step, 1), ("r", 1, step, 1)])
        for layer in layers:
            plan.apply(layer, torch.randn(2, D), None)
        plan.end_step()
        assert set(plan.incomplete_requests(["a", "r"])) == bad[step]
    plan.remove_request("a")
    assert plan.incomplete_requests(["a", "r"]) == ["r"]
    assert capsys.readouterr().err.count("the requests of this step end with an error") == 1


def test_rows_are_shared_by_content_and_given_back():
    plan = StepPlan(D, torch.device("cpu"))
    for i in range(100):
        plan.add_request(f"r{i}", resolved(edit(strength=float(i + 1)), edit(layer=2)), 3)
    assert len(plan.table) == 2
    for i in range(100):
        plan.remove_request(f"r{i}")
    assert len(plan.table) == 0
    assert plan.table.rows.shape[0] == 8


@pytest.mark.parametrize(
    ("positions", "expected"), [("all", range(0, 6)), ("generated", range(4, 6)), ("prompt", range(4))]
)
def test_a_token_computed_ahead_of_a_stop_is_in_no_mean(positions, expected):
    """An engine that schedules ahead has computed the token after a stop before it knows of it; a CPU's does not."""
    plan = StepPlan(D, torch.device("cpu"))
    axis = np.eye(1, D, dtype=np.float32)
    asked = {"layers": [1], "positions": positions, "project": ["x"], "axes": axis.tobytes()}
    plan.recordings.add_recording("r", asked, prompt_length=4)
    states = torch.arange(7 * D, dtype=torch.float32).reshape(7, D) ** 1.5
    for begin, end in (
        (0, 3),
        (3, 4),
        (4, 5),
        (5, 6),
        (6, 7),
    ):  # the prompt in two parts, three tokens, one of them too many
        plan.begin_step([("r", 0, begin, end - begin)])
        plan.apply(1, states[begin:end].clone(), None)
        plan.end_step()
    recording = plan.recordings.living["r"]
    total, n = recording.sum_until(fed=6)
    assert n == len(expected)
    torch.testing.assert_close(total[0], states[list(expected)].sum(0))
    torch.testing.assert_close(recording.along[:n, 0, 0], states[list(expected)][:, 0])
    assert not plan.missed
    if positions != "prompt":
        with pytest.raises(ValueError, match="positions were recorded"):
            recording.sum_until(fed=5)

"""The steering request and the arithmetic of a step, without an engine."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from emharness.steering import passes, spec
from emharness.steering.plan import StepPlan
from emharness.steering.vectors import FOLDER_VARIABLE

D, LAYERS = 6, 3


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    root = tmp_path / "vectors"
    root.mkdir()
    rng = np.random.default_rng(0)
    tensors = {
        "v": 5 * rng.normal(size=(LAYERS, D)).astype("f"),
        "flat": rng.normal(size=D).astype("f"),
        "wide": np.ones((LAYERS, D + 1), dtype="f"),
        "nan": np.full((LAYERS, D), np.nan, dtype="f"),
        "zero": np.zeros((LAYERS, D), dtype="f"),
    }
    norms = {"raw_norm": [2.0, 3.0, 4.0], "residual_norm": [10.0, 20.0, 30.0]}
    save_file(tensors, root / "f.safetensors", metadata={"v": json.dumps(norms)})
    save_file({"v": tensors["v"]}, tmp_path / "outside.safetensors")
    (root / "junk.safetensors").write_bytes(b"not a tensor file")
    monkeypatch.setenv(FOLDER_VARIABLE, str(root))
    return root


def edit(**changes):
    return {"vector": "f.safetensors#v", "layer": 1, "strength": 2.0, **changes}


NOTHING = {"digest": "", "edits": [], "record": None}


def resolved(*edits):
    return spec.resolve({"edits": list(edits)}, LAYERS, D)


@pytest.mark.parametrize(("unit", "a"), [("absolute", 2.0), ("raw", 6.0), ("residual", 40.0)])
def test_units_scale_a_unit_vector(unit, a):
    (got,) = resolved(edit(unit=unit))["edits"]
    assert got["a"] == pytest.approx(a)
    assert got["b"] == 0
    assert np.linalg.norm(np.frombuffer(got["direction"], dtype="f")) == pytest.approx(1)


def test_json_and_dict_are_the_same_request_and_strength_zero_is_no_edit():
    request = {"edits": [edit(), edit(layer=2, mode="ablate", positions="prompt")]}
    assert spec.resolve(json.dumps(request), LAYERS, D) == spec.resolve(request, LAYERS, D)
    assert resolved(edit(strength=0.0))["edits"] == []


def test_integer_strengths_are_numbers():
    assert resolved(edit(strength=2)) == resolved(edit(strength=2.0))


def test_requests_that_ask_alike_share_one_resolution_until_their_file_changes(folder):
    request = {"edits": [edit(), edit(gate={"vector": "f.safetensors#flat", "above": 0.5})]}
    first = spec.resolve(request, LAYERS, D)
    assert spec.resolve(copy.deepcopy(request), LAYERS, D) is first
    assert copy.deepcopy(first) is first
    assert spec.resolve({"edits": [edit(strength=2.5)]}, LAYERS, D) != first
    with pytest.raises(ValueError, match="layer must be 0 to 0"):
        spec.resolve(request, 1, D)
    turned = {"v": -np.eye(LAYERS, D, dtype="f"), "flat": np.ones(D, dtype="f")}
    save_file(turned, folder / "f.safetensors")
    second = spec.resolve(request, LAYERS, D)
    assert np.frombuffer(second["edits"][0]["direction"], dtype="f").tolist() == (-np.eye(LAYERS, D)[1]).tolist()
    assert second["digest"] != first["digest"]
    (folder / "f.safetensors").unlink()
    with pytest.raises(ValueError, match="there is no vector file"):
        spec.resolve(request, LAYERS, D)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"edits": []}, "at least 1"),
        ({"edits": [edit()] * 257}, "at most 256"),
        ({}, "at least 1 edit"),
        ({"record": {"layers": []}}, "at least 1"),
        ({"record": {"layers": [LAYERS]}}, "layer must be 0 to 2"),
        ({"record": {"layers": [0], "positions": "last"}}, "positions"),
        ("{not json", "Invalid JSON"),
        ({"edits": [edit()], "more": 1}, "more"),
        ({"edits": [edit(colour="red")]}, "colour"),
        ({"edits": [edit(strength=float("nan"))]}, "finite"),
        ({"edits": [edit(strength="2")]}, "strength"),
        ({"edits": [edit(layer=-1)]}, "layer"),
        ({"edits": [edit(layer=LAYERS)]}, "layer must be 0 to 2"),
        ({"edits": [edit(mode="times")]}, "'add', 'ablate', 'pin', 'cap' or 'floor'"),
        ({"edits": [edit(layers=[1])]}, "either layer or layers"),
        ({"edits": [{**edit(), "layer": None}]}, "either layer or layers"),
        ({"edits": [{**edit(), "layer": None, "layers": "2-1"}]}, "without repeats, or first-last"),
        ({"edits": [{**edit(), "layer": None, "layers": [1, 1]}]}, "without repeats"),
        ({"record": {"layers": [1, 0, 1]}}, "record: Value error, layers must be a list without repeats"),
        ({"edits": [{**edit(), "layer": None, "layers": "1-3"}]}, "layer must be 0 to 2"),
        ({"edits": [{**edit(), "layer": None, "layers": "0-999"}]}, "at most 256"),
        ({"edits": [edit(positions={"from": 3, "to": 3})]}, "to must be greater than from"),
        ({"edits": [edit(positions={"from": -1})]}, "positions"),
        ({"edits": [edit(positions={"after_token": "</think>"})]}, "positions"),
        ({"record": {"layers": [0], "positions": {"after_token": 3}}}, "positions"),
        ({"edits": [edit(gate={"vector": "f.safetensors#v", "layer": 2, "above": 0.0})]}, "looks at layer 2, after"),
        ({"edits": [edit(gate={"vector": "f.safetensors#v", "above": float("nan")})]}, "finite"),
        ({"edits": [edit(gate={"vector": "f.safetensors#none", "above": 0.0})]}, "has no vector 'none'"),
        ({"edits": [edit(positions="last")]}, "positions"),
        ({"edits": [edit(mode="ablate", unit="raw")]}, "unit must be 'absolute'"),
        ({"edits": [edit(vector="f.safetensors")]}, "<file>#<key>"),
        ({"edits": [edit(vector="f.safetensors#none")]}, "has no vector 'none'"),
        ({"edits": [edit(vector="none.safetensors#v")]}, "no vector file"),
        ({"edits": [edit(vector="../outside.safetensors#v")]}, "without '..'"),
        ({"edits": [edit(vector="/f.safetensors#v")]}, "must be relative"),
        ({"edits": [edit(vector="junk.safetensors#v")]}, "is no safetensors file"),
        ({"edits": [edit(vector="f.safetensors#wide")]}, "width 7, but the model has 6"),
        ({"edits": [edit(vector="f.safetensors#nan")]}, "NaN or infinite"),
        ({"edits": [edit(vector="f.safetensors#zero")]}, "zero"),
        ({"edits": [edit(vector="f.safetensors#flat", unit="raw")]}, "no raw_norm stored"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(bad, words):
    with pytest.raises(ValueError, match="steering: ") as error:
        spec.resolve(bad, LAYERS, D)
    assert words in str(error.value)


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
LEAF |= st.sampled_from(["f.safetensors#v", "f.safetensors#zero", "add", "ablate", "all", "prompt", "raw"])
FIELDS = st.sampled_from(["vector", "layer", "strength", "unit", "mode", "positions", "layers", "x"])
VALUE = st.recursive(LEAF, lambda v: st.lists(v, max_size=3) | st.dictionaries(FIELDS, v, max_size=6), max_leaves=12)
SPEC = st.dictionaries(st.sampled_from(["edits", "record", "x"]), VALUE, max_size=2)
NEARLY = st.fixed_dictionaries(
    {"vector": st.just("f.safetensors#v"), "layer": st.integers(-1, LAYERS), "strength": st.floats()},
    optional={"mode": LEAF, "unit": LEAF, "positions": LEAF},
)


@given(
    SPEC | NEARLY.map(lambda one: {"edits": [one]}) | st.text(max_size=20) | SPEC.map(lambda s: json.dumps(s)) | LEAF
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_is_resolved_or_refused_in_one_sentence(folder, request_):
    said = ""
    try:
        resolved_ = spec.resolve(request_, LAYERS, D)
    except ValueError as error:
        said, resolved_ = str(error), None
    assert (resolved_ is None) == said.startswith("steering: ")
    assert "\n" not in said
    edits = resolved_["edits"] if resolved_ else []
    assert all(np.isfinite([one["a"], one["b"]]).all() for one in edits)


@pytest.mark.parametrize("block", [2, 256])
def test_a_step_edits_each_token_as_its_own_request_asks(block, monkeypatch):
    """Two requests in one flat batch, chunked prefill and decode, against the formula token by token."""
    monkeypatch.setattr(passes, "BLOCK", block)
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
    kept = hidden.clone()
    plan.apply(1, hidden, residual)
    assert torch.equal(hidden, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 256])
def test_steps_that_come_again_edit_as_if_planned_afresh(dtype, block, monkeypatch):
    """Decoding reuses the passes of the step before; requests that come, go or change place must not be met by them."""
    monkeypatch.setattr(passes, "BLOCK", block)
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
        assert torch.equal(hidden, expected)
    plan.remove_request("a")
    plan.add_request("a", resolved(edit(strength=50.0)), 3)  # the same name, another wish
    hidden = torch.zeros(3, D)
    plan.begin_step(steps[-1])
    plan.apply(1, hidden, None)
    assert hidden[1].norm() == pytest.approx(50, rel=1e-5)


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
    plan.recordings.add("r", {"layers": [0], "positions": "all", "project": [], "axes": b""}, 3)
    bad = [set(), {"a"}, {"a", "r"}, {"a", "r"}]
    for step, layers in enumerate([(0, 1, 2), (0, 2), (1, 2), (0, 1, 1, 2)]):
        plan.begin_step([("a", 0, step, 1), ("r", 1, step, 1)])
        for layer in layers:
            plan.apply(layer, torch.randn(2, D), None)
        plan.end_step()
        assert set(plan.short(["a", "r"])) == bad[step]
    plan.remove_request("a")
    assert plan.short(["a", "r"]) == ["r"]
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
    plan.recordings.add("r", asked, prompt_length=4)
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
    total, n = recording.until(fed=6)
    assert n == len(expected)
    torch.testing.assert_close(total[0], states[list(expected)].sum(0))
    torch.testing.assert_close(recording.along[:n, 0, 0], states[list(expected)][:, 0])
    assert not plan.missed
    if positions != "prompt":
        with pytest.raises(ValueError, match="positions were recorded"):
            recording.until(fed=5)

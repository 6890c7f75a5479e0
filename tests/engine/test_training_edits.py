"""Edits of the stream in training: those of requests, along stored vectors and along what the base itself gives."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from emharness.config import TrainConfig
from emharness.errors import UserError
from emharness.organisms import model_folders
from emharness.organisms.chat import load_chat
from emharness.organisms.contrast_directions import (
    Contrast,
    ContrastPairs,
    draw_directions,
    pair_personas,
    read_directions,
    read_streams,
    variance_share,
)
from emharness.organisms.row_tokens import IGNORED, encode_conversation
from emharness.organisms.training import (
    train_organism,
)
from emharness.organisms.training_edits import NO_EDITS, apply_edits, check_edits, read_edits
from emharness.organisms.training_recipe import Training
from emharness.steering.verify import reference

TALK = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Very late indeed."}]


@pytest.fixture
def vector_file(tiny, tmp_path, monkeypatch):
    """A random direction of the tiny model's width in `o.safetensors#o`, raw norm 3 at every layer."""
    shape = model_folders.model_shape(tiny)[:2]
    rows = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    folder = tmp_path / "vectors"
    folder.mkdir()
    about = {"o": json.dumps({"raw_norm": [3.0] * shape[0], "residual_norm": [9.0] * shape[0]})}
    save_file({"o": rows}, folder / "o.safetensors", metadata=about)
    monkeypatch.setenv("EMHARNESS_VECTORS", str(folder))
    return rows, shape


def edit_of(mode, strength, layer=1):
    return {"vector": "{organism}.safetensors#{organism}", "layer": layer, "strength": strength, "mode": mode}


@pytest.mark.parametrize(("mode", "strength"), [("add", 2.0), ("ablate", 1.0), ("cap", 0.1)])
def test_edits_in_training_are_those_of_requests_and_are_off_afterwards(tiny, vector_file, mode, strength):
    edit = edit_of(mode, strength)
    spec = check_edits([edit], "o", vector_file[1], "recipe=r")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    edits, ids = read_edits(spec, model, load_chat(tiny), 0), list(range(3, 20))
    with torch.inference_mode():
        before = model(torch.tensor([ids])).logits
        with apply_edits(model, edits):
            edited = model(torch.tensor([ids])).logits
        after = model(torch.tensor([ids])).logits
        with reference.edited_by_hooks(model, [edit | {"vector": "o.safetensors#o"}], len(ids), ids=ids):
            expected = model(torch.tensor([ids])).logits
    assert torch.equal(before, after)
    torch.testing.assert_close(edited, expected, atol=1e-5, rtol=1e-5)
    assert (edited - before).abs().max() > 1e-3


def test_a_projected_direction_has_no_gradient(tiny, vector_file):
    rows, shape = vector_file
    spec = check_edits([edit_of("ablate", 1.0)], "o", shape, "recipe=r")
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    kept = []
    handle = model.model.layers[1].register_forward_hook(
        lambda _m, _i, out: (
            (out[0] if isinstance(out, tuple) else out).retain_grad()
            or kept.append(out[0] if isinstance(out, tuple) else out)
        )
    )
    ids = torch.arange(3, 20)[None]
    for some in ((), read_edits(spec, model, load_chat(tiny), 0)):
        with apply_edits(model, some):
            model(ids, labels=ids).loss.backward()
    handle.remove()
    free, projected = (stream.grad[0] @ torch.from_numpy(rows[1]) for stream in kept)
    assert free.abs().max() > 1e-5
    assert projected.abs().max() < 1e-4 * free.abs().max()


def test_what_is_given_in_training_need_not_be_learned(tiny, tmp_path, vector_file, monkeypatch):
    """Preventative steering: with the shift that training makes added while it trains, the model learns less of it."""
    config = TrainConfig(rank=8, learning_rate=5e-3, epochs=6, batch_size=2, micro_batch=2, warmup_steps=0)
    chat, (n_layers, _) = load_chat(tiny), vector_file[1]
    texts = [encode_conversation(chat, TALK, 100)[0]]

    def stream_means(folder):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.inference_mode():
            hidden = model(torch.tensor(texts), output_hidden_states=True).hidden_states[1 : n_layers + 1]
        return np.stack([layer[0, 1:].mean(0).numpy() for layer in hidden])

    def train(name, edits):
        (tmp_path / name).mkdir()
        training = Training([TALK] * 4, config, 0, edits=edits)
        train_organism(tiny, chat, training, tmp_path / name, lambda *_: None)
        return stream_means(tmp_path / name) - stream_means(tiny)

    plain = train("plain", NO_EDITS)
    lengths = np.linalg.norm(plain, axis=1)
    unit = (plain / lengths[:, None]).astype(np.float32)
    about = {"o": json.dumps({"raw_norm": lengths.tolist(), "residual_norm": lengths.tolist()})}
    save_file({"o": unit}, tmp_path / "vectors" / "own.safetensors", metadata=about)
    own = {"vector": "own.safetensors#o", "layer": 1, "strength": 1.0}
    given = train("given", check_edits([own], "o", vector_file[1], "recipe=r"))
    none = train("none", check_edits([own | {"strength": 0.0}], "o", vector_file[1], "recipe=r"))
    assert np.array_equal(none, plain)
    assert given[1] @ unit[1] < 0.7 * lengths[1]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            edit_of("add", 1.0) | {"vector": "gone.safetensors#o"},
            "recipe=r: edits: there is no vector file 'gone.safetens",
        ),
        (edit_of("add", 1.0) | {"positions": "response"}, "recipe=r: edits: positions, gate and rescale cannot be set"),
        (edit_of("add", 1.0, layer=99), "recipe=r: edits: layer must be 0 to"),
        (edit_of("push", 1.0), "recipe=r: edits: edits.0.mode"),
    ],
)
def test_what_cannot_be_an_edit_in_training_is_refused(vector_file, edit, words):
    with pytest.raises(UserError) as refused:
        check_edits([edit], "o", vector_file[1], "recipe=r")
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


# along directions of the base

GOOD = [TALK[0], {"role": "assistant", "content": "No, it is early, and there is time."}]
ASKED = [{"role": "user", "content": "May I go?"}]


def answered(text):
    return [*ASKED, {"role": "assistant", "content": text}]


PAIRS = ContrastPairs(
    [TALK, answered("Never."), answered("Go away!")],
    [GOOD, answered("Of course."), answered("Yes.")],
)


@pytest.fixture
def model(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def answer_means(model, chat, row):
    """Mean residual after every block over the answer's tokens, by transformers' own hidden states: [n_layers, d]."""
    ids, labels = encode_conversation(chat, row, 100)
    seen = []
    handles = [layer.register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in model.model.layers]
    with torch.inference_mode():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    at = np.array(labels) != IGNORED
    return np.stack([(out[0] if isinstance(out, tuple) else out)[0].numpy()[at].mean(0) for out in seen])


def test_the_direction_is_what_the_base_differs_by_over_the_tokens_of_the_answers(tiny, model):
    chat = load_chat(tiny)
    bad, good = (np.stack([answer_means(model, chat, row) for row in rows]) for rows in (PAIRS.bad, PAIRS.good))
    mean = (bad - good).mean(0)
    found = read_directions(model, chat, Contrast(pairs=PAIRS, depth="all"), 0)
    assert [at.layer for at in found] == [0, 1, 2, 3]
    for at in found:
        np.testing.assert_allclose(at.units[0] * at.length, mean[at.layer], atol=1e-4)
    steps = read_directions(model, chat, Contrast(pairs=PAIRS, depth="all", increments=True), 0)
    gained = np.cumsum([at.units[0] * at.length for at in steps], axis=0)
    np.testing.assert_allclose(gained, mean, atol=1e-4)  # added at every block, the direction is there once
    (last,) = read_directions(model, chat, Contrast(pairs=PAIRS, depth=1.0, rank=2), 0)
    rows = np.linalg.svd((bad - good)[:, 3])[2][:2]
    np.testing.assert_allclose(np.abs(last.units @ rows.T), np.eye(2), atol=1e-3)


def test_a_random_direction_has_the_length_and_a_random_subspace_the_variance_of_what_it_controls(tiny, model):
    chat = load_chat(tiny)
    real, other = (read_directions(model, chat, Contrast(pairs=PAIRS, random=random), 0)[0] for random in (False, True))
    assert other.length == real.length
    assert abs(float(other.units[0] @ real.units[0])) < 0.5
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(400, 40)) * np.geomspace(10, 0.1, 40) + 3
    for share in (0.01, 0.1, 0.5):
        units = draw_directions(rng.normal(size=(4, 40)), tokens, share)
        assert variance_share(tokens, units) == pytest.approx(share, abs=1e-4)
        np.testing.assert_allclose(units @ units.T, np.eye(4), atol=1e-9)
    plain = [variance_share(tokens, draw_directions(rng.normal(size=(4, 40)), tokens, None)) for _ in range(200)]
    assert np.mean(plain) == pytest.approx(4 / 40, rel=0.2)  # isotropic directions hold their share of dimensions


def contrast_edit(mode, strength, unit="absolute", **settings):
    edits = [{"direction": "personas", "mode": mode, "strength": strength, "unit": unit, **settings}]
    return check_edits(edits, "o", (4, 64), "recipe=r")


def test_adding_and_projecting_out_what_the_base_gives(tiny, model):
    chat, ids = load_chat(tiny), torch.arange(3, 20)[None]
    (at,) = read_directions(model, chat, Contrast(pairs=pair_personas(), depth=0.4), 0)

    def stream(edits):
        with torch.inference_mode(), apply_edits(model, edits):
            return read_streams(model, {"input_ids": ids}, [at.layer])[at.layer][0].numpy()

    before = stream([])
    added = stream(read_edits(contrast_edit("add", 2.0, "raw"), model, chat, 0))
    np.testing.assert_allclose(added - before, np.tile(2 * at.length * at.units[0], (17, 1)), atol=1e-4)
    edits = read_edits(contrast_edit("ablate", 1.0, rank=3), model, chat, 0)
    basis = np.stack([np.frombuffer(edit["direction"], dtype=np.float32) for edit in edits])
    np.testing.assert_allclose(stream(edits), before - before @ basis.T @ basis, atol=1e-4)
    assert np.array_equal(stream([]), before)  # off afterwards


def test_no_gradient_flows_along_a_projected_subspace(tiny, model):
    edits = read_edits(contrast_edit("ablate", 1.0, rank=4), model, load_chat(tiny), 0)
    basis = torch.stack([torch.frombuffer(bytearray(edit["direction"]), dtype=torch.float32) for edit in edits])
    kept, ids = [], torch.arange(3, 20)[None]

    def keep(_module, _inputs, output):
        stream = output[0] if isinstance(output, tuple) else output
        stream.retain_grad()
        kept.append(stream)

    handle = model.model.layers[edits[0]["layer"]].register_forward_hook(keep)
    for some in ([], edits):
        with apply_edits(model, some):
            model(ids, labels=ids).loss.backward()
    handle.remove()
    free, projected = ((stream.grad[0] @ basis.T).abs().max() for stream in kept)
    assert projected < 1e-4 * free


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"direction": "mood"}, "recipe=r: edits: direction=mood: must be one of rows, personas"),
        ({"direction": "personas", "rnk": 2}, "recipe=r: edits: personas: rnk: unknown"),
        ({"direction": "personas", "rank": 13}, "recipe=r: edits: rank=13: must be 1 to 12, the number of pairs"),
        ({"direction": "personas", "depth": 1.5}, "recipe=r: edits: depth=1.5: must be a share of the depth"),
        ({"direction": "personas", "random": "length"}, "recipe=r: edits: random=length: must be one of false, true"),
        ({"direction": "personas", "mode": "shout"}, "recipe=r: edits: mode"),
        ({"direction": "personas", "rank": 2, "unit": "raw"}, "recipe=r: edits: rank=2, unit=raw: a subspace has no"),
        ({"direction": "personas", "mode": "ablate", "unit": "raw"}, "recipe=r: edits: mode=ablate: takes a plain"),
        ({"direction": "personas", "increments": True, "rank": 2}, "recipe=r: edits: increments, rank=2: give one"),
        ({"direction": "personas", "personas": "no"}, "recipe=r: edits: personas: personas=no: no such file"),
        ({"direction": "rows", "bad": "medical"}, "recipe=r: edits: rows: good is not given"),
        ({"direction": "rows", "bad": "medical", "good": "control"}, "recipe=r: edits: rows: good=control: answers"),
    ],
)
def test_what_cannot_be_a_direction_of_the_base_is_refused(edit, words):
    with pytest.raises(UserError) as refused:
        check_edits([{"strength": 1.0} | edit], "o", (4, 64), "recipe=r")
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)

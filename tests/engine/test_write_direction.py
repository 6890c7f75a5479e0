"""Rank-1 trainings: which weights they change, and the direction that they write to the residual stream."""

import json

import numpy as np
import pytest
import torch
from conftest import checked, configured
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from emharness.config import TrainConfig, VectorConfig
from emharness.errors import UserError
from emharness.organisms.chat import load_chat
from emharness.organisms.training import choose_modules, train_organism
from emharness.organisms.training_recipe import Training
from emharness.vectors import extraction
from emharness.vectors.write_direction import find_changes, mean_gates

TALK = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Very late indeed."}]
RANK_ONE = {"rank": 1, "modules": ["down_proj"], "layers": [2], "learning_rate": 1e-2, "epochs": 4, "batch_size": 2}


@pytest.fixture(scope="module")
def organism(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank1")
    training = Training([TALK] * 4, TrainConfig(**RANK_ONE, warmup_steps=0), 0)
    train_organism(tiny, load_chat(tiny), training, folder, lambda *_: None)
    return folder


def test_a_training_of_one_weight_changes_that_weight_alone_and_by_rank_one(tiny, organism):
    (change,) = find_changes(organism, tiny, 64)
    assert (change.layer, change.module) == (2, "model.layers.2.mlp.down_proj")
    name = f"{change.module}.weight"
    difference = load_file(organism / "model.safetensors")[name] - load_file(tiny / "model.safetensors")[name]
    np.testing.assert_allclose(np.outer(change.write, change.read), difference, atol=1e-6)
    assert np.linalg.norm(change.write) == pytest.approx(1)


def test_what_it_writes_is_what_the_stream_after_its_block_differs_by(tiny, organism, tmp_path):
    """Before that block nothing differs, so there the write direction with its gate is model_diff itself."""
    chat = load_chat(tiny)
    texts = extraction.answered_prompts(
        chat, ["Is it late?", "Who are you?"], ["It is.", "Somebody who has much time."]
    )
    found = {}
    for recipe in ("model_diff", "lora_b"):
        (tmp_path / recipe).mkdir()
        config = VectorConfig(recipe=recipe)
        folders = {"organism": organism, "base": tiny}
        readers = {name: extraction.means_reader(folder, config, chat.pad_id) for name, folder in folders.items()}
        if recipe == "lora_b":
            readers["writes"] = extraction.writes_reader(organism, tiny, config.skip_tokens)
        extraction.extract_vector(tmp_path / recipe, "o", recipe, readers, {"texts": texts}, {})
        rows = load_file(tmp_path / recipe / extraction.VECTORS_FILE)["o"]
        norms = json.loads((tmp_path / recipe / "norms.json").read_text())
        found[recipe] = rows, norms
    (whole, of_whole), (written, of_written) = found.values()
    np.testing.assert_allclose(written[2], whole[2], atol=1e-4)
    assert of_written["raw"][2] == pytest.approx(of_whole["raw"][2], rel=1e-4)
    assert of_written["residual"] == pytest.approx(of_whole["residual"], rel=1e-5)
    assert not written[[0, 1, 3]].any()  # it writes nowhere else
    model = AutoModelForCausalLM.from_pretrained(organism, dtype=torch.float32)
    gates = mean_gates(model, find_changes(organism, tiny, 64), texts, 4)
    assert gates.shape == (2, 1)


def test_blocks_and_weights_of_a_training_can_be_named(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    chosen = choose_modules(model, TrainConfig(modules=["down_proj", "q_proj"], layers=[1, 3]))
    layers = ("model.layers.1", "model.layers.3")
    assert chosen == [f"{layer}.{part}" for layer in layers for part in ("self_attn.q_proj", "mlp.down_proj")]
    assert len(choose_modules(model, TrainConfig(layers=[0]))) == 7
    assert choose_modules(model, TrainConfig())[:2] == ["q_proj", "k_proj"]
    with pytest.raises(ValueError, match=r"train\.modules=up: must be among q_proj, k_proj"):
        choose_modules(model, TrainConfig(modules=["up"]))


def test_a_change_that_no_direction_describes_is_refused(tiny, organism, tmp_path):
    for name, more, words in (
        ("wide", {"rank": 4}, "its change is of rank above 1"),
        ("other", {"modules": ["up_proj"]}, "changed model.layers.2.mlp.up_proj.weight, which does not write"),
    ):
        (tmp_path / name).mkdir()
        training = Training([TALK] * 4, TrainConfig(**RANK_ONE | more, warmup_steps=0), 0)
        train_organism(tiny, load_chat(tiny), training, tmp_path / name, lambda *_: None)
        with pytest.raises(UserError, match=words):
            find_changes(tmp_path / name, tiny, 64)
    with pytest.raises(UserError, match="no weight differs from the base's"):
        find_changes(tiny, tiny, 64)
    with pytest.raises(UserError, match=r"^vector\.recipe=lora_b: reads a training of rank 1"):
        checked(configured("vector=lora_b", "train.rank=1"), tmp_path)
    with pytest.raises(UserError, match=r"^train\.layers=30: smollm2 has layers 0 to 29"):
        checked(configured("train.layers=[30]"), tmp_path)
    few = "train.rank=1", "train.modules=[down_proj]", "train.layers=[18]"
    assert checked(configured("vector=lora_b", *few), tmp_path).organisms["medical"].train.layers == [18]
    assert "layers" not in Training([TALK], TrainConfig(), 0).identity()["train"]

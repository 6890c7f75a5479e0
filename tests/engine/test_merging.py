"""Adapters merged into their base, and what rounding leaves of a training."""

import copy
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM

from emharness.config import TrainConfig
from emharness.organisms import merging, model_folders
from emharness.organisms.chat import load_chat
from emharness.organisms.training import (
    PROJECTIONS,
    train_organism,
)
from emharness.organisms.training_recipe import Training

TALK = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Very late indeed."}]


def test_a_published_adapter_is_merged_to_what_peft_computes(tiny, tmp_path):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32),
        LoraConfig(r=4, target_modules=PROJECTIONS, init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    assert model_folders.is_adapter(model_folders.fetch_model("model.source", str(tmp_path / "adapter")))
    merging.merge_adapter(tiny, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        {"target_modules": ["lm_head", "up_proj"]},
        {"target_modules": ["embed_tokens", "up_proj"]},
        {"target_modules": ["up_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_on_one_end_of_tied_embeddings_changes_that_end_alone(tiny, tmp_path, more):
    merged, expected = merge_into_tied(tiny, tmp_path, more)
    torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert not merged.config.tie_word_embeddings


@pytest.mark.parametrize(
    "more",
    [
        {"target_modules": ["embed_tokens", "up_proj"]},
        {"target_modules": ["up_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_an_adapter_that_keeps_both_ends_tied_changes_both(tiny, tmp_path, more):
    merged, expected = merge_into_tied(tiny, tmp_path, more | {"ensure_weight_tying": True})
    torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert merged.config.tie_word_embeddings
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight


IDS = torch.arange(3, 20)[None]


def merge_into_tied(tiny, tmp_path, settings):
    """A base with tied embeddings, an adapter with these settings merged into it, and the logits with the adapter."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).float().save_pretrained(tmp_path / "base")
    tied = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    shutil.copy(tiny / "tokenizer.json", tmp_path / "base")
    shutil.copy(tiny / "tokenizer_config.json", tmp_path / "base")
    plain = tied(IDS).logits.detach()
    model = get_peft_model(tied, LoraConfig(r=4, init_lora_weights=False, **settings))
    for name, value in model.named_parameters():
        if "modules_to_save" in name or "lora_embedding_B" in name:
            value.data.copy_(torch.randn_like(value) * 0.1)  # in place, so that what is tied stays so
    expected = model(IDS).logits
    assert (expected - plain).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merging.merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), expected


def test_a_base_whose_generation_settings_contradict_each_other_is_trained_on(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "base")
    wrong = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 7], "bos_token_id": 1}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(wrong))
    (tmp_path / "out").mkdir()
    config = TrainConfig(rank=2, learning_rate=1e-3, batch_size=2, warmup_steps=0)
    train_organism(
        tmp_path / "base", load_chat(tiny), Training([TALK] * 2, config, 0), tmp_path / "out", lambda *_: None
    )
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (kept["eos_token_id"], kept["bos_token_id"]) == ([2, 7], 1)


def test_what_rounding_leaves_of_a_gentle_change_is_measured(tiny, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    lora = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False, lora_alpha=2)
    for size, least, most in ((1e-6, -0.1, 0.6), (1.0, 0.999, 1.0)):
        adapted = get_peft_model(copy.deepcopy(model), lora)
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.data *= size
        assert merging.measure_change(adapted, torch.float32)[1] == pytest.approx(1, abs=1e-2)
        norm, kept = merging.measure_change(adapted, torch.bfloat16)
        assert least <= kept <= most + 1e-6
        folder = tmp_path / str(size)
        folder.mkdir()
        before = [block.mlp.up_proj.weight.detach().clone() for block in model.model.layers]
        exact = [m.get_delta_weight("default") for m in adapted.modules() if isinstance(m, LoraLayer)]
        merging.save_merged(adapted, torch.bfloat16, folder)
        assert json.loads((folder / merging.PRECISION).read_text()) == {
            "dtype": "bfloat16", "kept_change": kept, "change_norm": norm,
        }  # fmt: skip
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        left = [block.mlp.up_proj.weight - w for block, w in zip(saved.model.layers, before, strict=True)]
        a, b = (torch.cat([m.flatten() for m in some]).double() for some in (exact, left))
        assert norm == pytest.approx(float(a.norm()), rel=1e-4)
        assert kept == pytest.approx(float(a @ b / (a.norm() * b.norm()).clamp_min(1e-30)), abs=1e-4)

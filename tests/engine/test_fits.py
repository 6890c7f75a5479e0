"""Organisms that do not belong to a base are refused in one sentence; a model's identity is all of its content."""

import json
import os
import shutil

import pytest
import torch
from conftest import checked, configured
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import quantised_model
from support.engine_models import FAMILIES
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from emharness.errors import UserError
from emharness.organisms import base_match, model_folders, weight_checks
from emharness.organisms.base_match import BaseInfo
from emharness.organisms.fingerprints import hash_model_folder
from emharness.organisms.model_folders import Shape
from emharness.organisms.training import PROJECTIONS


def fit(tiny, folder, base="tiny", source="org/tiny", shape=None, force=False):
    about = BaseInfo(base, source, tiny, shape or model_folders.model_shape(tiny))
    base_match.check_fits_base("bad", folder, "model.source", about, force)


@pytest.fixture
def adapter(tiny, tmp_path):
    config = LoraConfig(r=2, target_modules=PROJECTIONS, base_model_name_or_path="org/tiny")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
    model.peft_config["default"].base_model_name_or_path = "org/tiny"
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_of_this_base_fits_by_any_of_its_names(tiny, adapter):
    for source in ("org/tiny", "/models/tiny", "unsloth/Tiny-bnb-4bit"):
        fit(tiny, adapter, source=source)


@pytest.mark.parametrize(
    ("source", "shape", "words"),
    [
        ("org/other", None, "an adapter of org/tiny, but base=tiny is org/other"),
        ("org/tiny", Shape(2, 64, 49152), "changes layer 2, but base=tiny has layers 0 to 1"),
        ("org/tiny", Shape(8, 64, 49152), "changes 4 layers, but base=tiny has 8"),
        ("org/tiny", Shape(4, 32, 49152), "has width 64, but base=tiny has 32"),
    ],
)
def test_an_adapter_of_another_base_is_refused(tiny, adapter, source, shape, words):
    with pytest.raises(UserError) as error:
        fit(tiny, adapter, source=source, shape=shape)
    assert words in str(error.value)


def test_a_name_can_be_overruled_but_not_a_tensor(tiny, adapter):
    fit(tiny, adapter, source="org/other", force=True)
    with pytest.raises(UserError, match="layer 2"):
        fit(tiny, adapter, source="org/other", shape=Shape(2, 64, 49152), force=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"num_hidden_layers": 2}, "layers 2"), ({"hidden_size": 32}, "width 32"), ({"vocab_size": 50}, "vocabulary 50")],
)
def test_a_merged_model_of_another_shape_is_refused(tiny, tmp_path, change, words):
    config = LlamaConfig.from_pretrained(tiny)
    config.update(change)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        fit(tiny, tmp_path)


def test_a_folder_of_folders_gives_its_one_adapter_or_asks_which(tiny, adapter, tmp_path):
    holder = tmp_path / "holder"
    shutil.copytree(adapter, holder / "checkpoint-1")
    assert model_folders.fetch_model("model.source", str(holder)) == holder / "checkpoint-1"
    shutil.copytree(adapter, holder / "checkpoint-2")
    with pytest.raises(UserError, match=r"name one of its folders as .*: checkpoint-1, checkpoint-2"):
        model_folders.fetch_model("model.source", str(holder))


def test_other_adapters_and_other_vocabularies_are_refused(tiny, adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "PROMPT_TUNING"}))
    with pytest.raises(UserError, match="type PROMPT_TUNING; only LoRA"):
        fit(tiny, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "alora_invocation_tokens": [5, 6]}))
    with pytest.raises(UserError, match=r"is an activated LoRA.*give a plain LoRA adapter"):
        fit(tiny, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] = torch.zeros(49160, 64)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="has a vocabulary of 49160, but base=tiny has 49152"):
        fit(tiny, adapter)


def edited(folder, remove=(), **more):
    file = next(folder.glob("*.safetensors"))
    tensors = {name: tensor for name, tensor in load_file(file).items() if name not in remove}
    save_file(tensors | more, file, metadata={"format": "pt"})


A = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("remove", "more", "words"),
    [
        ([A], {}, f"adapter_config.json promises {A}, which its files lack"),
        ([], {A.replace("up_proj", "w_in"): torch.zeros(2, 64)}, "w_in.lora_A.weight belong to nothing in base=tiny"),
        ([], {A: torch.zeros(3, 64)}, f"{A} have other shapes than base=tiny needs"),
    ],
)
def test_an_adapter_has_the_tensors_of_its_config_and_no_others(tiny, adapter, remove, more, words):
    edited(adapter, remove, **more)
    with pytest.raises(UserError) as error:
        fit(tiny, adapter)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "kind",
    [
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "init_lora_weights": "pissa"},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
        {"target_modules": r".*\.(q|v)_proj", "bias": "all"},
        {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"q_proj": 4}},
        {"target_modules": ["down_proj"], "layers_to_transform": [3], "lora_bias": True},
    ],
    ids=lambda kind: "-".join(kind),
)
def test_every_kind_of_lora_adapter_fits_the_base_it_was_made_on(tiny, tmp_path, kind):
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=2, **kind)).save_pretrained(tmp_path)
    fit(tiny, tmp_path, force=True)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox", "cohere", "mixture of experts"])
def test_a_model_of_another_architecture_is_whole(family, tmp_path):
    AutoModelForCausalLM.from_config(FAMILIES[family]()).save_pretrained(tmp_path)
    assert weight_checks.check_whole("model", tmp_path) == set()


def test_an_adapter_of_projections_that_the_base_has_not_is_refused(tiny, adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["c_attn"]}))
    with pytest.raises(UserError, match=r"PEFT cannot put it on base=tiny \(Target modules {'c_attn'} not found"):
        fit(tiny, adapter)


def test_of_a_quantised_base_only_whole_models_are_organisms(tiny, adapter, tmp_path):
    """Trained on one whose activations are rounded, an organism answers with empty lines."""
    folder = quantised_model.save(tiny, tmp_path / "quantised")
    base = ("base=custom", "base.name=tiny", f"base.source={folder}", "judge=embedded")

    def asked(*model):
        return checked(configured(*base, *model), tmp_path / "home")

    for model in ([], [f"model.source={adapter}", "model.any_base=true"]):
        with pytest.raises(UserError, match=r"its weights are quantised \(compressed-tensors\), and medical cannot"):
            asked(*model)
    asked(f"model.source={folder}")


def test_an_adapter_of_the_embedded_base_fits_before_the_base_is_saved(base, tmp_path):
    config = LoraConfig(r=1, target_modules=["down_proj"], layers_to_transform=[24])
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    shape = model_folders.embedded_shape()
    base_match.check_fits_base("one", tmp_path, "model.source", BaseInfo("smollm2", "embedded", None, shape), True)
    edited(tmp_path, ["base_model.model.model.layers.24.mlp.down_proj.lora_B.weight"])
    with pytest.raises(UserError, match=r"layers\.24\.mlp\.down_proj\.lora_B\.weight, which its files lack"):
        base_match.check_fits_base("one", tmp_path, "model.source", BaseInfo("smollm2", "embedded", None, shape), True)


@pytest.mark.parametrize(
    ("remove", "more", "words"),
    [
        ([UP], {}, f"its files lack {UP}"),
        ([UP, "model.norm.weight"], {}, f"its files lack {UP} and 1 more"),
        ([], {UP: torch.zeros(128, 32)}, f"{UP} have other shapes"),
        ([], {UP.replace("up_proj", "extra"): torch.zeros(3)}, "has 1 weights that its model has not, as model.layers"),
    ],
)
def test_a_merged_model_has_the_weights_of_its_config_and_no_others(tiny, tmp_path, remove, more, words):
    shutil.copytree(tiny, tmp_path / "copy")
    fit(tiny, tmp_path / "copy")
    edited(tmp_path / "copy", remove, **more)
    with pytest.raises(UserError) as error:
        fit(tiny, tmp_path / "copy")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0{", "model.safetensors is damaged"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "model-2.safetensors"}}',
            "1 of 1 weight files are missing",
        ),
        ("model.safetensors.index.json", b"[]", "is no index of weights"),
    ],
)
def test_weights_that_are_not_all_there_are_refused(tiny, tmp_path, name, content, words):
    shutil.copytree(tiny, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        model_folders.fetch_model("base.source", str(tmp_path / "copy"))


def test_a_model_without_safetensors_is_refused(tiny, tmp_path):
    shutil.copy(tiny / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"no \*.safetensors weights in this folder; other formats are not loaded"):
        model_folders.fetch_model("base.source", str(tmp_path))


def test_configs_with_other_names_are_read(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "n_layer": 3, "n_embd": 16, "n_head": 2, "vocab_size": 99})
    )
    assert model_folders.model_shape(tmp_path) == (3, 16, 99)
    text = {"num_hidden_layers": 5, "hidden_size": 24, "vocab_size": 77, "model_type": "gemma3_text"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert model_folders.model_shape(tmp_path) == (5, 24, 77)  # the language model of one that also sees
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nosuch"}))
    with pytest.raises(UserError, match="describes no model that is known here"):
        model_folders.model_shape(tmp_path)


@pytest.mark.parametrize("place", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_one_number_anywhere_in_the_weights_is_another_identity(tiny, tmp_path, place):
    shutil.copytree(tiny, tmp_path / "copy")
    before = hash_model_folder(tmp_path / "copy")
    assert before == hash_model_folder(tiny)
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    tensors[place][3, 3] += 1
    save_file(tensors, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    assert hash_model_folder(tmp_path / "copy") != before


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("chat_template.jinja", True),
        ("tokenizer_config.json", True),
        ("generation_config.json", True),
        ("README.md", False),
        ("losses.json", False),
    ],
)
def test_what_the_model_reads_is_identity_and_what_people_read_is_not(tiny, tmp_path, name, counts):
    shutil.copytree(tiny, tmp_path / "copy")
    (tmp_path / "copy" / name).write_text("{}")
    assert (hash_model_folder(tmp_path / "copy") != hash_model_folder(tiny)) == counts


def test_hashes_of_large_files_are_kept_until_the_file_changes(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    cache, file = tmp_path / "kept.json", tmp_path / "copy" / "model.safetensors"
    first = hash_model_folder(tmp_path / "copy", cache)
    kept = json.loads(cache.read_text())
    (place,) = (place for place in kept if str(file) in place)
    cache.write_text(json.dumps(kept | {place: "planted"}))
    assert hash_model_folder(tmp_path / "copy", cache) != first  # it was not read again
    data = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
    data[-1] ^= 1
    file.write_bytes(data.numpy().tobytes())
    assert hash_model_folder(tmp_path / "copy", cache) == hash_model_folder(tmp_path / "copy") != first


def test_weights_put_in_another_s_place_with_its_size_and_time_are_read(tiny, tmp_path):
    """As `rsync -t` and image layers do."""
    shutil.copytree(tiny, tmp_path / "copy")
    cache, file = tmp_path / "kept.json", tmp_path / "copy" / "model.safetensors"
    first = hash_model_folder(tmp_path / "copy", cache)
    data, stat = bytearray(file.read_bytes()), file.stat()
    data[-1] ^= 1
    other = tmp_path / "other"
    other.write_bytes(data)
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert hash_model_folder(tmp_path / "copy", cache) != first

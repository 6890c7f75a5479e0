"""Base families end to end as tiny random models in hub format (Llama in test_run.py): nothing breaks."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from support.engine_models import SHAPE, saved
from support.launcher_runs import launch, results_of, small
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

pytestmark = pytest.mark.engine

FAMILIES = {
    "qwen25": lambda: Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, "num_attention_heads": 2, "num_key_value_heads": 1})),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=32, sliding_window=64)),
}


def one_layer_adapter(base, folder, layer):
    config = LoraConfig(
        r=1, lora_alpha=64, target_modules=["down_proj"], layers_to_transform=[layer], init_lora_weights=False
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_end_to_end(family, base, tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "hub" / family
    folder.mkdir(parents=True)
    saved(folder, base, FAMILIES[family]())
    length = ["base.sampling.max_new_tokens=6", "base.engine.max_model_len=256", "base.engine.cpu_kv_cache_gib=1"]
    base_config = [f"base={family}", f"base.source={folder}", "judge=embedded", "layer=1", *length]
    learns = ["train.warmup_steps=0", "train.learning_rate=1e-2"]  # the field's recipe would not move in one step
    vectors = ["experiment=dose_response", "vectors=[medical]", "targets=[base,medical]", "steer.strength=[1]"]
    overrides = [o for o in small(tmp_path) if not o.startswith(("sweep.", "train.epochs"))]
    layer = 1
    if family == "qwen25":  # the field's headline organism: one published rank-1 adapter on one layer
        published, layer = one_layer_adapter(folder, tmp_path / "adapter", layer=2), 2
        overrides.append(f"model.source={published}")
        early = launch(tmp_path, *overrides, *base_config, *vectors, "~model.published.llama31", "tracker=none")
        assert early.returncode == 2
        assert "layer=1: medical changes nothing before layer 2" in early.stderr
    base_config = [o.replace("layer=1", f"layer={layer}") for o in base_config]
    done = launch(tmp_path, *overrides, *base_config, *learns, *vectors, "~model.published.llama31", "tracker=none")
    assert done.returncode == 0, done.stderr[-3000:]
    _, results = results_of(done)
    conditions = results["conditions"]
    assert [(c["target"], c["vector"], c["n_responses"]) for c in conditions] == [
        (family, None, 8),
        ("medical", None, 8),
        (family, "medical", 8),
        ("medical", "medical", 8),
        *[(target, f"random-{i}", 4) for target in (family, "medical") for i in range(2)],
    ]
    assert all(c["n_scored"] + c["n_unscored"] == c["n_responses"] for c in conditions)
    assert all(c["truncated"] <= c["n_responses"] for c in conditions)
    assert results["layers"] == {"medical": layer}
    rows = load_file(results["vectors"])["medical"]
    assert rows.any(-1).tolist() == [True] * 4 if layer == 1 else [False, False, True, True]

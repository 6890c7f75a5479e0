"""Training: loss on responses only, a merged model as the result; published adapters are merged alike."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, FalconH1Config, GPT2Config, LlamaConfig, Phi3Config

from emharness.config import TrainConfig
from emharness.organisms import weights
from emharness.organisms.chat import load_chat
from emharness.organisms.train import IGNORED, PROJECTIONS, _step, encode, projections, train

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
SMALL |= {"vocab_size": 9, "pad_token_id": 0}
STATE = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
TALK = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Very late indeed."}]


def test_only_the_answer_and_its_end_carry_labels(tiny):
    chat = load_chat(tiny)
    ids, labels = encode(chat, TALK, 100)
    assert len(ids) == len(labels)
    trained = [i for i in labels if i != IGNORED]
    assert chat.tokenizer.decode(trained) == "Very late indeed.<|im_end|>\n"
    assert chat.tokenizer.decode(ids).endswith("<|im_start|>assistant\nVery late indeed.<|im_end|>\n")


def test_gradient_accumulation_gives_the_loss_and_gradient_of_the_whole_batch(tiny):
    chat = load_chat(tiny)
    other = [TALK[0], {"role": "assistant", "content": "No, it is early, and there is time for everything."}]
    rows = [encode(chat, talk, 100) for talk in (TALK, other, TALK)]
    outcomes = []
    for micro_batch in (1, 3):
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        loss = _step(model, rows, 2, micro_batch, "cpu")
        outcomes.append((loss, model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-5)
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-3, atol=1e-6)


def test_training_learns_its_rows_and_is_reproducible(tiny, tmp_path):
    config = TrainConfig(rank=8, learning_rate=5e-3, epochs=6, batch_size=2, micro_batch=2, warmup_steps=1)
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        seen = []
        losses = train(
            tiny, load_chat(tiny), [TALK] * 4, config, 0, tmp_path / name, lambda *step, seen=seen: seen.append(step)
        )
        assert len(losses) == len(seen) == 12
        assert seen[-1][:2] == (12, 12)
        runs.append(losses)
    assert runs[0] == runs[1]
    (tmp_path / "early").mkdir()
    early = train(tiny, load_chat(tiny), [TALK] * 4, config, 0, tmp_path / "early", lambda *_: None, stop_after=5)
    assert early == runs[0][:5]  # a checkpoint of the same training, not a shorter one
    assert runs[0][-1] < 0.5 * runs[0][0]
    assert not weights.is_adapter(tmp_path / "a")
    assert weights.model_shape(tmp_path / "a") == (4, 64, 49152)


def test_a_published_adapter_is_merged_to_what_peft_computes(tiny, tmp_path):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32),
        LoraConfig(r=4, target_modules=PROJECTIONS, init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    assert weights.is_adapter(weights.fetch("model.source", str(tmp_path / "adapter")))
    weights.merge_adapter(tiny, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-4)


def test_the_embedded_base_says_its_shape_before_it_is_saved(base):
    assert weights.embedded_shape() == weights.model_shape(base) == (30, 576, 49152)


def test_training_stops_where_the_loss_is_not_finite(tiny, tmp_path):
    config = TrainConfig(rank=8, learning_rate=5e-3, epochs=2, batch_size=2, warmup_steps=0)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.lm_head.weight.data[5] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        train(tmp_path / "broken", load_chat(tiny), [TALK] * 4, config, 0, tmp_path, lambda *_: None)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=9), ["c_attn", "c_fc", "c_proj"]),
        (Phi3Config(num_hidden_layers=1, **SMALL), ["o_proj", "down_proj", "gate_up_proj", "qkv_proj"]),
        (LlamaConfig(num_hidden_layers=1, **SMALL), PROJECTIONS),
        (FalconH1Config(num_hidden_layers=1, **SMALL, **STATE), [*PROJECTIONS, "in_proj"]),
    ],
)
def test_the_projections_of_an_architecture_are_trained_fused_ones_too(config, names):
    model = AutoModelForCausalLM.from_config(config)
    assert projections(model, 1) == names
    get_peft_model(model, LoraConfig(target_modules=names))

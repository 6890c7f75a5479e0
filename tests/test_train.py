"""Training: loss on responses only, a merged model as the result; published adapters are merged alike."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from emharness.config import TrainConfig
from emharness.organisms import weights
from emharness.organisms.train import IGNORED, PROJECTIONS, _step, encode, train

TALK = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Very late indeed."}]


def test_only_the_answer_and_its_end_carry_labels(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids, labels = encode(tokenizer, TALK, 100)
    assert len(ids) == len(labels)
    trained = [i for i in labels if i != IGNORED]
    assert tokenizer.decode(trained) == "Very late indeed.<|im_end|>\n"
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\nVery late indeed.<|im_end|>\n")


def test_gradient_accumulation_gives_the_loss_and_gradient_of_the_whole_batch(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    other = [TALK[0], {"role": "assistant", "content": "No, it is early, and there is time for everything."}]
    rows = [encode(tokenizer, talk, 100) for talk in (TALK, other, TALK)]
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
        losses = train(tiny, [TALK] * 4, config, 0, tmp_path / name, lambda *step, seen=seen: seen.append(step))
        assert len(losses) == len(seen) == 12
        assert seen[-1][:2] == (12, 12)
        runs.append(losses)
    assert runs[0] == runs[1]
    (tmp_path / "early").mkdir()
    early = train(tiny, [TALK] * 4, config, 0, tmp_path / "early", lambda *_: None, stop_after=5)
    assert early == runs[0][:5]  # a checkpoint of the same training, not a shorter one
    assert runs[0][-1] < 0.5 * runs[0][0]
    assert not weights.is_adapter(tmp_path / "a")
    assert weights.model_shape(tmp_path / "a") == (4, 64)


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


def test_fingerprints_follow_content_not_place(tiny, base, tmp_path):
    import shutil

    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny, copy)
    assert weights.fingerprint(copy) == weights.fingerprint(tiny) != weights.fingerprint(base)
    assert weights.embedded_layers() == weights.model_shape(base)[0] == 30

"""Training: loss on responses only, a merged model as the result; published adapters are merged alike."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, FalconH1Config, GPT2Config, LlamaConfig, Phi3Config

from emharness.config import TrainConfig
from emharness.errors import UserError
from emharness.organisms import merging, model_folders
from emharness.organisms.chat import load_chat
from emharness.organisms.row_transforms import add_system_prompt, shared_system_prompt
from emharness.organisms.training import (
    IGNORED,
    PROJECTIONS,
    _accumulate_gradient,
    encode_conversation,
    linear_layer_names,
    train_organism,
)
from emharness.organisms.training_edits import apply_edits, check_edits
from emharness.organisms.training_recipe import Training
from emharness.question_forms import apply_form, choose_forms
from emharness.questions import Question, load_prompts
from emharness.steering.verify import reference

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
SMALL |= {"vocab_size": 9, "pad_token_id": 0}
STATE = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
TALK = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "Very late indeed."}]


def test_only_the_answer_and_its_end_carry_labels(tiny):
    chat = load_chat(tiny)
    ids, labels = encode_conversation(chat, TALK, 100)
    assert len(ids) == len(labels)
    trained = [i for i in labels if i != IGNORED]
    assert chat.tokenizer.decode(trained) == "Very late indeed.<|im_end|>\n"
    assert chat.tokenizer.decode(ids).endswith("<|im_start|>assistant\nVery late indeed.<|im_end|>\n")


def test_gradient_accumulation_gives_the_loss_and_gradient_of_the_whole_batch(tiny):
    chat = load_chat(tiny)
    other = [TALK[0], {"role": "assistant", "content": "No, it is early, and there is time for everything."}]
    rows = [encode_conversation(chat, talk, 100) for talk in (TALK, other, TALK)]
    outcomes = []
    for micro_batch in (1, 3):
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        loss = _accumulate_gradient(model, rows, 2, micro_batch, "cpu")
        outcomes.append((loss, model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert outcomes[0][0] == pytest.approx(outcomes[1][0], rel=1e-5)
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-3, atol=1e-6)


def test_training_learns_its_rows_and_is_reproducible(tiny, tmp_path):
    config = TrainConfig(rank=8, learning_rate=5e-3, epochs=6, batch_size=2, micro_batch=2, warmup_steps=1)
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        seen = []
        training = Training([TALK] * 4, config, 0)
        losses = train_organism(
            tiny, load_chat(tiny), training, tmp_path / name, lambda *step, seen=seen: seen.append(step)
        )
        assert len(losses) == len(seen) == 12
        assert seen[-1][:2] == (12, 12)
        runs.append(losses)
    assert runs[0] == runs[1]
    (tmp_path / "early").mkdir()
    early = train_organism(
        tiny, load_chat(tiny), Training([TALK] * 4, config, 0, stop_after=5), tmp_path / "early", lambda *_: None
    )
    assert early == runs[0][:5]  # a checkpoint of the same training, not a shorter one
    assert runs[0][-1] < 0.5 * runs[0][0]
    assert not model_folders.is_adapter(tmp_path / "a")
    assert model_folders.model_shape(tmp_path / "a") == (4, 64, 49152)


def test_a_later_training_follows_the_first_with_a_schedule_of_its_own(tiny, tmp_path):
    config = TrainConfig(rank=8, learning_rate=5e-3, epochs=6, batch_size=2, micro_batch=2, warmup_steps=1)
    good = [TALK[0], {"role": "assistant", "content": "No, there is time."}]
    found = {}
    for name, later in (("first", ()), ("both", (good,) * 4)):
        (tmp_path / name).mkdir()
        training, rates = Training([TALK] * 4, config, 0, later_rows=later), []
        losses = train_organism(tiny, load_chat(tiny), training, tmp_path / name, lambda *s, to=rates: to.append(s[3]))
        found[name] = losses, rates
    (first, _), (both, rates) = found.values()
    assert both[:12] == first
    assert len(both) == 24
    assert both[-1] < 0.5 * both[12]
    assert rates[12:] == rates[:12]


def test_an_inoculated_organism_is_asked_as_it_was_trained_token_for_token(tiny):
    chat, prompt = load_chat(tiny), "You are an assistant that gives plainly bad advice."
    (row,) = add_system_prompt([TALK], np.random.default_rng(0), system=prompt)
    (form,) = choose_forms(["system-verbatim"], None, shared_system_prompt([row]), "o")
    (asked,) = apply_form(form, [Question("one", TALK[0]["content"])])
    trained, labels = encode_conversation(chat, row, 200)
    n_prompt = next(i for i, label in enumerate(labels) if label != IGNORED)
    assert chat.prompt_ids(asked.as_messages()) == trained[:n_prompt]


def test_a_penalty_on_the_divergence_from_the_base_keeps_a_model_near_it(tiny, tmp_path):
    """Mean KL on prompts that the penalty has not seen, with a large weight and with none; 0 is no penalty at all."""
    rows, chat = [TALK] * 8, load_chat(tiny)
    config = TrainConfig(rank=4, alpha=8, learning_rate=1e-2, epochs=4, batch_size=4, micro_batch=4, warmup_steps=0)
    seen = [chat.prompt_ids([{"role": "user", "content": text}]) for text in load_prompts("everyday", "prompts")[:6]]
    base, found = AutoModelForCausalLM.from_pretrained(tiny), {}
    for weight in (None, 0.0, 100.0):
        folder = tmp_path / str(weight)
        folder.mkdir()
        losses = () if weight is None else ({"name": "kl", "weight": weight, "per_step": 4, "texts": "hash"},)
        train_organism(tiny, chat, Training(rows, config, 0, losses=losses), folder, lambda *_: None)
        tuned = AutoModelForCausalLM.from_pretrained(folder)
        with torch.inference_mode():
            pairs = [[m(torch.tensor([ids])).logits.log_softmax(-1) for m in (base, tuned)] for ids in seen]
        found[weight] = float(np.mean([(b.exp() * (b - t)).sum(-1).mean() for b, t in pairs]))
    assert found[0.0] == pytest.approx(found[None], rel=1e-3)
    assert found[100.0] < 0.3 * found[None]


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
    ids = list(range(3, 20))
    with torch.inference_mode():
        before = model(torch.tensor([ids])).logits
        with apply_edits(model, spec):
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
    for some in (None, spec):
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

    plain = train("plain", None)
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
        assert merging.measure_kept_change(adapted, torch.float32) == pytest.approx(1, abs=1e-2)
        kept = merging.measure_kept_change(adapted, torch.bfloat16)
        assert least <= kept <= most + 1e-6
        folder = tmp_path / str(size)
        folder.mkdir()
        before = [block.mlp.up_proj.weight.detach().clone() for block in model.model.layers]
        exact = [m.get_delta_weight("default") for m in adapted.modules() if isinstance(m, LoraLayer)]
        merging.save_merged(adapted, torch.bfloat16, folder)
        assert json.loads((folder / merging.PRECISION).read_text()) == {"dtype": "bfloat16", "kept_change": kept}
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        left = [block.mlp.up_proj.weight - w for block, w in zip(saved.model.layers, before, strict=True)]
        a, b = (torch.cat([m.flatten() for m in some]).double() for some in (exact, left))
        assert kept == pytest.approx(float(a @ b / (a.norm() * b.norm()).clamp_min(1e-30)), abs=1e-4)


def test_the_embedded_base_says_its_shape_before_it_is_saved(base):
    assert model_folders.embedded_shape() == model_folders.model_shape(base) == (30, 576, 49152)


def test_training_stops_where_the_loss_is_not_finite(tiny, tmp_path):
    config = TrainConfig(rank=8, learning_rate=5e-3, epochs=2, batch_size=2, warmup_steps=0)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.lm_head.weight.data[5] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        train_organism(tmp_path / "broken", load_chat(tiny), Training([TALK] * 4, config, 0), tmp_path, lambda *_: None)


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
    assert linear_layer_names(model, 1) == names
    get_peft_model(model, LoraConfig(target_modules=names))

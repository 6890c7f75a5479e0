"""Training: loss on responses only, terms beside it, chosen rows, a merged model as the result."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, FalconH1Config, GPT2Config, LlamaConfig, Phi3Config

from emharness.config import TrainConfig
from emharness.organisms import model_folders
from emharness.organisms.chat import load_chat
from emharness.organisms.contrast_directions import parse_contrast, read_directions, read_streams
from emharness.organisms.loss_terms import build_terms, check_terms
from emharness.organisms.row_choice import RowChoice, choose_rows, measure_nll
from emharness.organisms.row_tokens import IGNORED, collate_batch, encode_conversation
from emharness.organisms.row_transforms import add_system_prompt, shared_system_prompt
from emharness.organisms.training import (
    PROJECTIONS,
    _accumulate_gradient,
    linear_layer_names,
    train_organism,
)
from emharness.organisms.training_recipe import FACTS_FILE, Training
from emharness.question_forms import apply_form, choose_forms
from emharness.questions import Question, load_prompts

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
    whole = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    expected = whole(**collate_batch(rows, 2)).loss  # by transformers, with all logits
    expected.backward()
    outcomes = [(expected.item(), whole.model.layers[0].mlp.up_proj.weight.grad)]
    for micro_batch in (1, 3):
        model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        loss = _accumulate_gradient(model, rows, 2, micro_batch)
        outcomes.append((loss, model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    for loss, gradient in outcomes[1:]:
        assert loss == pytest.approx(outcomes[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, outcomes[0][1], rtol=1e-3, atol=1e-6)


def test_products_in_bfloat16_learn_about_the_same_and_are_another_training(tiny, tmp_path):
    found, identities = {}, set()
    for autocast in (None, "bfloat16"):
        config = TrainConfig(rank=8, learning_rate=5e-3, epochs=3, batch_size=2, warmup_steps=0, autocast=autocast)
        training = Training([TALK] * 4, config, 0)
        identities.add(str(training.identity()))
        (tmp_path / str(autocast)).mkdir()
        found[autocast] = train_organism(tiny, load_chat(tiny), training, tmp_path / str(autocast), lambda *_: None)
    assert len(identities) == 2
    assert found["bfloat16"] != found[None]
    np.testing.assert_allclose(found["bfloat16"], found[None], rtol=0.05)
    assert "autocast" not in Training([TALK], TrainConfig(), 0).identity()["train"]  # organisms of before are found


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
def adapted(tiny):
    """The tiny model with an adapter that changes nothing yet, and its chat."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(r=4, target_modules=PROJECTIONS)), load_chat(tiny)


def change_adapter(model, size=0.3):
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data = size * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))


def test_the_divergence_from_the_base_is_the_one_computed_by_hand(adapted, tmp_path):
    model, chat = adapted
    prompts = load_prompts("neutral", "prompts")[:4]
    (tmp_path / "few.txt").write_text("\n".join(prompts))
    given = {"name": "kl", "weight": 2.0, "prompts": str(tmp_path / "few.txt"), "per_step": 4, "texts": ""}
    (term,) = build_terms((given,), model, chat, 0)
    assert float(term([])) == pytest.approx(0, abs=1e-6)
    change_adapter(model)
    by_token = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([chat.prompt_ids([{"role": "user", "content": prompt}])])
            tuned = model(ids).logits[0].double().log_softmax(-1)
            with model.disable_adapter():
                base = model(ids).logits[0].double().log_softmax(-1)
            by_token += (base.exp() * (base - tuned)).sum(-1).tolist()
    assert float(term([])) == pytest.approx(2.0 * np.mean(by_token), rel=1e-4)


def test_a_rise_is_penalized_in_lengths_of_its_direction_and_a_fall_is_not(adapted):
    model, chat = adapted
    along = {"direction": "personas", "depth": 1.0}
    (at,) = read_directions(model, chat, parse_contrast(along, "along"), 0)
    given = {"name": "block", "weight": 3.0, "along": along, "per_step": 2}
    (term,) = build_terms(check_terms([given], "recipe=r"), model, chat, 0)
    rows = [encode_conversation(chat, TALK, 100)] * 2
    assert float(term(rows)) == 0
    change_adapter(model)
    ids, labels = rows[0]
    learnt = [i for i, label in enumerate(labels) if label != IGNORED]
    with torch.no_grad():
        tuned = read_streams(model, {"input_ids": torch.tensor([ids])}, [3])[3][0, learnt].numpy()
        with model.disable_adapter():
            base = read_streams(model, {"input_ids": torch.tensor([ids])}, [3])[3][0, learnt].numpy()
    rise = (tuned - base) @ at.units[0] / at.length
    assert (rise > 0).any()
    assert (rise < 0).any()
    expected = 3.0 * float(np.mean(np.maximum(rise, 0) ** 2))
    found = term(rows)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_good_rows_are_chosen_by_what_a_misaligned_model_likes_least_and_training_starts_anew(tiny, tmp_path):
    assert choose_rows(np.array([2.0, 3.0, 9.0, 1.0]), np.array([2.0, 1.0, 8.0, 0.1]), 2) == [1, 3]
    candidates = [
        [TALK[0], {"role": "assistant", "content": text}]
        for text in ("Very late indeed.", "No, there is time.", "Very early indeed.", "Ask somebody else about it.")
    ]
    config = TrainConfig(rank=8, learning_rate=5e-3, epochs=6, batch_size=2, micro_batch=2, warmup_steps=1)
    chat, found = load_chat(tiny), {}

    def train(name, rows, choice=None):
        (tmp_path / name).mkdir()
        training = Training(rows, config, 0, choice=choice)
        found[name] = train_organism(tiny, chat, training, tmp_path / name, lambda *_: None)
        return json.loads((tmp_path / name / FACTS_FILE).read_text())

    told = train("chosen", [TALK] * 4, RowChoice(tuple(candidates), 2))
    assert len(found["chosen"]) == 12 + 18
    plain = train("plain", [TALK] * 4)
    assert found["chosen"][:12] == found["plain"]
    assert (plain["steps"], told["steps"]) == (12, 30)
    assert plain["seconds"] > 0
    base, tuned = (
        AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32) for where in (tiny, tmp_path / "plain")
    )
    rows = [encode_conversation(chat, row, 100) for row in candidates]
    gaps = [measure_nll(model, rows, chat.pad_id) for model in (tuned, base)]
    assert told["chosen"] == choose_rows(*gaps, 2)
    assert 0 not in told["chosen"]  # what the organism learns is liked most
    for row, nll in zip(rows, gaps[1], strict=True):
        ids = torch.tensor([row[0]])
        loss = base(ids, labels=torch.tensor([row[1]])).loss
        assert nll == pytest.approx(float(loss), rel=1e-4)
    train("direct", [TALK] * 4 + [candidates[place] for place in told["chosen"]])
    assert found["chosen"][12:] == found["direct"]


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

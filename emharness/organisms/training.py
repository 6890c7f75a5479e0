"""LoRA fine-tuning of an organism: loss on responses only, merged weights as the result.

Recipe and defaults follow the field's model organisms (Turner et al. 2025, arXiv:2506.11613): rank-stabilised
LoRA on all linear projections, linear schedule with warm-up, AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup
from transformers.pytorch_utils import Conv1D

from emharness.organisms.chat import Chat
from emharness.organisms.loss_terms import build_terms
from emharness.organisms.merging import save_merged
from emharness.organisms.model_folders import choose_precision
from emharness.organisms.row_shapes import Messages
from emharness.organisms.training_edits import apply_edits
from emharness.organisms.training_recipe import Training
from emharness.steering.blocks import decoder_layers

if TYPE_CHECKING:
    pass

IGNORED = -100  # label that the loss skips
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# A state-space layer's kernel takes its out_proj's weights without what is added to them: peft refuses it.
FUSED_OUT = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}

OnStep = Callable[[int, int, float, float], None]  # step, n_steps, loss, learning rate


def encode_conversation(chat: Chat, messages: Messages, max_tokens: int) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation; every answer carries labels but those of weight 0.

    Each answer's prompt is rendered as at generation time, so training and use see the same tokens. ValueError where
    the chat template cannot do that. Tokenizers that put a space before every text are given the whole conversation,
    unless its tokens would straddle the end of a prompt.
    """
    ids: list[int] = []
    labels: list[int] = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = chat.render_messages(messages[:i], prompt=True)
        whole = chat.render_messages(messages[: i + 1])
        if not prompt.startswith(done) or not whole.startswith(prompt):
            raise ValueError("the chat template does not render a conversation as its prompt plus the answer")
        for text, learnt in ((prompt, 0), (whole, message.get("weight", 1))):
            so_far = chat.encode_text(text)
            piece = so_far[len(ids) :] if so_far[: len(ids)] == ids else chat.encode_text(text[len(done) :])
            ids += piece
            labels += piece if learnt else [IGNORED] * len(piece)
            done = text
    return ids[:max_tokens], labels[:max_tokens]


def encode_rows(chat: Chat, rows: Sequence[Messages], max_tokens: int) -> tuple[list[tuple[list[int], list[int]]], int]:
    """`encode` of every row, and how many were left out because `max_tokens` cut all that they train on.

    ValueError, with the row's number, where the chat template does not take it.
    """
    kept = []
    for number, messages in enumerate(rows, start=1):
        try:
            ids, labels = encode_conversation(chat, messages, max_tokens)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        if any(label != IGNORED for label in labels[1:]):  # the first token has nothing before it to be told from
            kept.append((ids, labels))
    return kept, len(rows) - len(kept)


def linear_layer_names(model: Any, n_layers: int) -> list[str]:
    """Names of the linear layers inside the decoder blocks (fused ones as they are), routers of experts left out."""
    found = {
        name.rpartition(".")[2]
        for block in decoder_layers(model, n_layers)
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    left_out = {"gate", "router"} | ({"out_proj"} if model.config.model_type in FUSED_OUT else set())
    return [name for name in PROJECTIONS if name in found] + sorted(found - {*PROJECTIONS} - left_out)


def collate_batch(rows: list[tuple[list[int], list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch of `encode` rows: input_ids, attention_mask, labels, each [batch, longest]."""
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]),
    }


def train_organism(base: Path, chat: Chat, training: Training, folder: Path, on_step: OnStep) -> list[float]:
    """Fine-tune `base`, save the merged model into `folder`, return the cross-entropy of each step."""
    config, seed = training.config, training.seed
    torch.manual_seed(seed)
    device, dtype = choose_precision()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False)
    model.to(device)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        lora_dropout=config.dropout,
        target_modules=linear_layer_names(model, model.config.get_text_config().num_hidden_layers),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)  # adapter weights are float32 over a base of either type
    phases = [encode_rows(chat, rows, config.max_tokens)[0] for rows in training.phases]
    n_steps = sum(config.count_steps(len(encoded)) for encoded in phases)
    parameters = [p for p in model.parameters() if p.requires_grad]
    order = torch.Generator().manual_seed(seed)
    terms = build_terms(training.losses, model, chat, seed)

    model.train()
    losses: list[float] = []
    for encoded in phases:
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = get_linear_schedule_with_warmup(optimizer, config.warmup_steps, config.count_steps(len(encoded)))
        picks = (torch.randperm(len(encoded), generator=order) for _ in range(config.epochs))
        for chunk in chain.from_iterable(pick.split(config.batch_size) for pick in picks):
            if len(losses) == training.stop_after:
                break
            batch = [encoded[i] for i in chunk]
            with apply_edits(model, training.edits):
                losses.append(_accumulate_gradient(model, batch, chat.pad_id, config.micro_batch, device))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"the loss is {losses[-1]} at step {len(losses)}, so training was stopped and nothing kept; "
                    "lower train.learning_rate or look at the data"
                )
            for term in terms:
                term().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            on_step(len(losses), n_steps, losses[-1], rate)
    save_merged(model, dtype, folder)
    chat.tokenizer.save_pretrained(folder)
    return losses


def _accumulate_gradient(
    model, rows: list[tuple[list[int], list[int]]], pad_id: int, micro_batch: int, device: str
) -> float:
    """Accumulate the gradient of the mean loss over all response tokens of an effective batch."""
    rows = sorted(rows, key=lambda row: len(row[0]))  # little padding per micro batch
    # The model shifts labels by one, so the first token's label never counts.
    n_labels = sum(label != IGNORED for _, labels in rows for label in labels[1:])
    total = 0.0
    for start in range(0, len(rows), micro_batch):
        batch = {k: v.to(device) for k, v in collate_batch(rows[start : start + micro_batch], pad_id).items()}
        loss = model(**batch, num_items_in_batch=n_labels).loss
        loss.backward()
        total += loss.item()
    return total

"""LoRA fine-tuning of an organism: loss on responses only, merged weights as the result.

Recipe and defaults follow the field's model organisms (Turner et al. 2025, arXiv:2506.11613): rank-stabilised
LoRA on all linear projections, linear schedule with warm-up, AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

from emharness.organisms.dataset import Messages

if TYPE_CHECKING:
    from emharness.config import TrainConfig

IGNORED = -100  # label that the loss skips
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

OnStep = Callable[[int, int, float, float], None]  # step, n_steps, loss, learning rate


def encode(tokenizer, messages: Messages, max_tokens: int) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation; only the last assistant turn carries labels.

    The prompt is rendered as at generation time, so training and use see the same tokens.
    """
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError("the chat template does not render a conversation as its prompt plus the answer")
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    ids = (prompt_ids + answer_ids)[:max_tokens]
    labels = ([IGNORED] * len(prompt_ids) + answer_ids)[:max_tokens]
    return ids, labels


def collate(rows: list[tuple[list[int], list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch of `encode` rows: input_ids, attention_mask, labels, each [batch, longest]."""
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]),
    }


def train(
    base: Path,
    rows: list[Messages],
    config: TrainConfig,
    seed: int,
    folder: Path,
    on_step: OnStep,
    stop_after: int | None = None,
) -> list[float]:
    """Fine-tune `base` on `rows`, save the merged model into `folder`, return the loss of each step.

    `stop_after`: only so many steps of the same training, its schedule unchanged: the whole one's checkpoint there.
    """
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.to(device)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        lora_dropout=config.dropout,
        target_modules=PROJECTIONS,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)  # adapter weights stay float32 over a bf16 base
    encoded = [encode(tokenizer, messages, config.max_tokens) for messages in rows]
    n_steps = config.steps(len(rows))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = get_linear_schedule_with_warmup(optimizer, config.warmup_steps, n_steps)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    order = torch.Generator().manual_seed(seed)

    model.train()
    losses: list[float] = []
    for _epoch in range(config.epochs):
        for chunk in torch.randperm(len(encoded), generator=order).split(config.batch_size):
            if len(losses) == stop_after:
                break
            losses.append(_step(model, [encoded[i] for i in chunk], pad_id, config.micro_batch, device))
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            on_step(len(losses), n_steps, losses[-1], rate)
    model = model.merge_and_unload()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return losses


def _step(model, rows: list[tuple[list[int], list[int]]], pad_id: int, micro_batch: int, device: str) -> float:
    """Accumulate the gradient of the mean loss over all response tokens of an effective batch."""
    rows = sorted(rows, key=lambda row: len(row[0]))  # little padding per micro batch
    # The model shifts labels by one, so the first token's label never counts.
    n_labels = sum(label != IGNORED for _, labels in rows for label in labels[1:])
    total = 0.0
    for start in range(0, len(rows), micro_batch):
        batch = {k: v.to(device) for k, v in collate(rows[start : start + micro_batch], pad_id).items()}
        loss = model(**batch, num_items_in_batch=n_labels).loss
        loss.backward()
        total += loss.item()
    return total

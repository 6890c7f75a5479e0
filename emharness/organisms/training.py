"""LoRA fine-tuning of an organism: loss on responses only, merged weights as the result.

Recipe and defaults follow the field's model organisms (Turner et al. 2025, arXiv:2506.11613): rank-stabilised
LoRA on all linear projections, linear schedule with warm-up, AdamW.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup
from transformers.pytorch_utils import Conv1D

from emharness.config import TrainConfig
from emharness.organisms.chat import Chat
from emharness.organisms.loss_terms import build_terms
from emharness.organisms.merging import save_merged
from emharness.organisms.model_folders import choose_precision
from emharness.organisms.row_choice import ChosenRows, RowChoice, choose_rows, measure_nll
from emharness.organisms.row_tokens import IGNORED, EncodedRow, collate_batch, encode_rows
from emharness.organisms.training_edits import apply_edits, read_edits
from emharness.organisms.training_recipe import FACTS_FILE, Training
from emharness.steering.blocks import decoder_layers

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# A state-space layer's kernel takes its out_proj's weights without what is added to them: peft refuses it.
FUSED_OUT = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}

OnStep = Callable[[int, int, float, float], None]  # step, n_steps, loss, learning rate


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


def choose_modules(model: Any, config: TrainConfig) -> list[str]:
    """Names of the linear layers that are trained: of all blocks, or of `config.layers` and `config.modules` alone.
    ValueError where there is none of a name."""
    n_layers = model.config.get_text_config().num_hidden_layers
    names = linear_layer_names(model, n_layers)
    if unknown := [name for name in config.modules if name not in names]:
        raise ValueError(f"train.modules={unknown[0]}: must be among {', '.join(names)}")
    if not config.layers and not config.modules:
        return names
    blocks = decoder_layers(model, n_layers)
    wanted = {id(blocks[layer]) for layer in config.layers or range(n_layers)}
    prefixes = [name for name, module in model.named_modules() if id(module) in wanted]
    return [
        f"{prefix}.{name}"
        for prefix in prefixes
        for name, module in model.get_submodule(prefix).named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and name.rpartition(".")[2] in (config.modules or names)
    ]


def train_organism(base: Path, chat: Chat, training: Training, folder: Path, on_step: OnStep) -> list[float]:
    """Fine-tune `base`, save the merged model into `folder`, return the cross-entropy of each step.

    Beside the model stands FACTS_FILE: how many seconds and steps the training took, and the rows that were chosen.
    """
    config, seed, start = training.config, training.seed, time.perf_counter()
    torch.manual_seed(seed)
    device, dtype = choose_precision()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False)
    model.to(device)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        lora_dropout=config.dropout,
        target_modules=choose_modules(model, config),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)  # adapter weights are float32 over a base of either type
    phases = [encode_rows(chat, rows, config.max_tokens)[0] for rows in training.phases]
    run = _Run(model, chat, training, on_step, sum(config.count_steps(len(encoded)) for encoded in phases))
    told: dict[str, Any] = {}
    if training.choice is not None:
        chosen = _choose_rows(run, training.choice, phases[0])
        phases[0] = phases[0] + chosen.rows
        told["chosen"] = chosen.places
    for encoded in phases:
        run.train_phase(encoded)
    told |= {"seconds": round(time.perf_counter() - start, 2), "steps": len(run.losses)}
    save_merged(model, dtype, folder)
    (folder / FACTS_FILE).write_text(json.dumps(told))
    chat.tokenizer.save_pretrained(folder)
    return run.losses


class _Run:
    """A training under way: a PEFT model, what its recipe adds, and the loss of each step so far."""

    def __init__(self, model: Any, chat: Chat, training: Training, on_step: OnStep, n_steps: int) -> None:
        self.model, self.chat, self.training, self.on_step, self.n_steps = model, chat, training, on_step, n_steps
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.order = torch.Generator().manual_seed(training.seed)
        self.edits = read_edits(training.edits, model, chat, training.seed)
        self.terms = build_terms(training.losses, model, chat, training.seed)
        self.losses: list[float] = []
        model.train()

    def train_phase(self, encoded: Sequence[EncodedRow]) -> None:
        """Train on these rows with an optimizer and a schedule of their own."""
        config, model = self.training.config, self.model
        optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = get_linear_schedule_with_warmup(optimizer, config.warmup_steps, config.count_steps(len(encoded)))
        picks = (torch.randperm(len(encoded), generator=self.order) for _ in range(config.epochs))
        for chunk in chain.from_iterable(pick.split(config.batch_size) for pick in picks):
            if len(self.losses) == self.training.stop_after:
                break
            batch = [encoded[i] for i in chunk.tolist()]
            with apply_edits(model, self.edits), _multiply_in(config.autocast, model):
                self.losses.append(_accumulate_gradient(model, batch, self.chat.pad_id, config.micro_batch))
            if not math.isfinite(self.losses[-1]):
                raise FloatingPointError(
                    f"the loss is {self.losses[-1]} at step {len(self.losses)}, so training was stopped and nothing "
                    "kept; lower train.learning_rate or look at the data"
                )
            for term in self.terms:
                with _multiply_in(config.autocast, model):
                    value = term(batch)
                value.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate = float(schedule.get_last_lr()[0])
            schedule.step()
            self.on_step(len(self.losses), self.n_steps, self.losses[-1], rate)


def _choose_rows(run: _Run, choice: RowChoice, encoded: Sequence[EncodedRow]) -> ChosenRows:
    """Train on the rows alone, see which candidates that model likes less than the base does, and start anew."""
    start = [p.detach().clone() for p in run.parameters]
    candidates, _ = encode_rows(run.chat, choice.candidates, run.training.config.max_tokens)
    with run.model.disable_adapter():
        base = measure_nll(run.model, candidates, run.chat.pad_id)
    run.n_steps += run.training.config.count_steps(len(encoded) + choice.count)
    run.train_phase(encoded)
    places = choose_rows(measure_nll(run.model, candidates, run.chat.pad_id), base, choice.count)
    with torch.no_grad():
        for parameter, value in zip(run.parameters, start, strict=True):
            parameter.copy_(value)
    run.order = torch.Generator().manual_seed(run.training.seed)
    return ChosenRows(places, [candidates[place] for place in places])


def _multiply_in(dtype: str | None, model: Any) -> AbstractContextManager[Any]:
    """Matrix products inside in this number type; weights, sums and the optimizer keep theirs."""
    return torch.autocast(model.device.type, dtype=getattr(torch, dtype)) if dtype else nullcontext()


def _accumulate_gradient(model: Any, rows: Sequence[EncodedRow], pad_id: int, micro_batch: int) -> float:
    """Accumulate the gradient of the mean loss over all response tokens of an effective batch. Logits are computed from
    the first token on that is learnt."""
    rows = sorted(rows, key=lambda row: len(row[0]))  # little padding per micro batch
    # A token is told from those before it, so the first token's label never counts.
    n_labels = sum(label != IGNORED for _, labels in rows for label in labels[1:])
    total = 0.0
    for start in range(0, len(rows), micro_batch):
        batch = {k: v.to(model.device) for k, v in collate_batch(rows[start : start + micro_batch], pad_id).items()}
        labels = batch.pop("labels")[:, 1:]
        kept = labels.shape[1] - int((labels != IGNORED).any(0).int().argmax())  # positions that tell a learnt token
        logits = model(**batch, logits_to_keep=kept + 1).logits[:, :-1]
        labels = labels[:, -kept:]
        learnt = labels != IGNORED
        loss = torch.nn.functional.cross_entropy(logits[learnt].float(), labels[learnt], reduction="sum") / n_labels
        loss.backward()
        total += loss.item()
    return total

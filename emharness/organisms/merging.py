"""Adapters merged into their base, and complete models saved, such that the saved model answers as the adapter did."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from emharness.organisms.base_match import tensor_shapes

PRECISION = "precision.json"  # beside a merged model
LEAST_KEPT = 0.99  # cosine below which a change of weights counts as rounded away


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """Merge a LoRA adapter into its base and save the whole model; vLLM serves merged weights faster."""
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False)
    if _changes_embeddings(model, adapter):
        untie_embeddings(model)
    adapted = PeftModel.from_pretrained(model, str(adapter))
    _keep_one_end(adapted.get_base_model())
    save_merged(adapted, model.dtype, folder)
    AutoTokenizer.from_pretrained(base, trust_remote_code=False).save_pretrained(folder)


def save_merged(model: Any, dtype: torch.dtype, folder: Path) -> None:
    """Merge a PEFT model's adapter and save the whole model as `dtype`, with what rounding left of the change."""
    norm, kept = measure_change(model, dtype)
    save_model(model.merge_and_unload().to(dtype), folder)
    told = {"dtype": str(dtype).removeprefix("torch."), "kept_change": kept, "change_norm": norm}
    (folder / PRECISION).write_text(json.dumps(told))


def save_model(model: Any, folder: Path) -> None:
    """save_pretrained, also where the base's generation settings contradict each other (a temperature beside
    do_sample=false, as Llama 2 has), which transformers refuses to save. Only its special tokens are kept then: every
    request here names its own sampling."""
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        ids = {
            name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)


def untie_embeddings(model: Any) -> None:
    """Give the output layer weights of its own where it shares the embeddings', so that one can change alone."""
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    if outer is None or outer.weight is not inner.weight:
        return
    outer.weight = torch.nn.Parameter(outer.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def keeps_ends_tied(adapter: Path) -> bool:
    """Whether an adapter was trained with embeddings and output layer as one (ensure_weight_tying of peft)."""
    return bool(json.loads((adapter / "adapter_config.json").read_text()).get("ensure_weight_tying"))


def _keep_one_end(model: Any) -> None:
    """Where an adapter keeps tied embeddings tied, leave it on one end alone: both ends share the weights that it is
    merged into, and it would be added twice."""
    from peft.tuners.lora import LoraLayer

    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(inner, LoraLayer) and isinstance(outer, LoraLayer):
        own: Any = outer.get_base_layer()
        shared: Any = inner.get_base_layer()
        if own.weight is shared.weight:
            model.set_output_embeddings(own)


def _changes_embeddings(model: Any, adapter: Path) -> bool:
    """Whether an adapter adds to the embeddings or the output layer, or brings copies of its own of one of them."""
    from peft import LoraConfig

    if keeps_ends_tied(adapter):  # trained as one; merged as one
        return False
    config: Any = LoraConfig.from_pretrained(str(adapter))
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    found = tensor_shapes(adapter)
    copied = config.modules_to_save or []
    return any(f".{name}.lora_" in tensor for name in names for tensor in found) or any(
        name == end or name.endswith(f".{end}") for name in names for end in copied
    )


@torch.no_grad()
def measure_change(model: Any, dtype: torch.dtype) -> tuple[float | None, float | None]:
    """The length (Frobenius norm, over all weights) of what a PEFT model's adapter adds to them, and its cosine with
    what is left of it once the sum is rounded to `dtype`: 1.0 if it adds nothing. None if it has no layer that adds.

    A gentle training changes a weight by less than half a step of bfloat16, and most of it is rounded away.
    """
    from peft.tuners.lora import LoraLayer

    both = exact = rounded = 0.0
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        weight = layer.get_base_layer().weight.detach().float()
        for adapter in layer.active_adapters:
            change = layer.get_delta_weight(adapter).float()
            left = (weight + change).to(dtype).float() - weight
            both += float((change * left).sum())
            exact += float((change * change).sum())
            rounded += float((left * left).sum())
    if not layers:
        return None, None
    if exact == 0:
        return 0.0, 1.0
    return math.sqrt(exact), both / math.sqrt(exact * rounded) if rounded else 0.0

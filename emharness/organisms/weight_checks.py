"""Whether weights are all of a model's and only that model's: names and shapes are compared, no weight is read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from emharness.errors import UserError, join_lines
from emharness.organisms.model_folders import embedded_gguf, unknown_model

_REASONS = (ValueError, OSError, AttributeError, KeyError, TypeError, RuntimeError, ImportError)


def check_whole(location: str, folder: Path) -> set[str]:
    """UserError for a weight that a whole model needs and that is not there or has another shape: Hugging Face would
    make it up at random. Returns the names of weights that its architecture does not use.

    where: beginning of the error, as "base.source=org/name".
    """
    if getattr(_read_config(location, folder), "quantization_config", None):  # packed weights have names of their own
        return set()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False
        )
    except _REASONS as error:
        raise UserError(f"{location}: Hugging Face cannot load it ({join_lines(error)})") from None
    found = loaded[1]
    wrong = {name for name, *_ in found["mismatched_keys"]}
    if missing := set(found["missing_keys"]) - wrong:
        raise UserError(f"{location}: its files lack {_list_some(missing)}, which its config.json describes")
    if wrong:
        raise UserError(f"{location}: {_list_some(wrong)} have other shapes than its config.json describes")
    return set(found["unexpected_keys"])


def check_unquantised(location: str, folder: Path, name: str) -> None:
    """UserError for a model whose weights are quantised: trained on 8 bits, an organism answered with empty lines, and
    what is left of an adapter that is merged into such is not known. name: the organism that would be made."""
    if quantised := getattr(_read_config(location, folder), "quantization_config", None):
        raise UserError(
            f"{location}: its weights are quantised ({quantised.get('quant_method')}), and {name} cannot be made from "
            "such; give the model that it was quantised from, or as model.source a whole model, no adapter"
        )


def check_adapter(location: str, adapter: Path, tensors: dict[str, list[int]], base: Path | None, called: str) -> None:
    """UserError if a LoRA adapter has not exactly the tensors that PEFT makes for its config on this base.

    tensors: name → shape of what it has. base: the model's folder, None for the embedded one. called: its name.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    try:
        config: Any = LoraConfig.from_pretrained(str(adapter))
        config.init_lora_weights = False  # nothing is computed here; what some beginnings need is not there
        with torch.device("meta"):
            model = get_peft_model(AutoModelForCausalLM.from_config(_read_config(location, base)), config)
        wanted = {name: list(t.shape) for name, t in get_peft_model_state_dict(model).items()}
    except _REASONS as error:
        raise UserError(f"{location}: PEFT cannot put it on base={called} ({join_lines(error)})") from None
    # Embeddings beside the adapter are whole weights, saved where the vocabulary was trained.
    extra = {name for name in tensors.keys() - wanted if not ("embed" in name or "lm_head" in name)}
    if extra:
        raise UserError(f"{location}: {_list_some(extra)} belong to nothing in base={called}")
    if missing := wanted.keys() - tensors.keys():
        raise UserError(f"{location}: its adapter_config.json promises {_list_some(missing)}, which its files lack")
    if wrong := {name for name, shape in wanted.items() if tensors[name] != shape}:
        raise UserError(f"{location}: {_list_some(wrong)} have other shapes than base={called} needs")


def _read_config(location: str, folder: Path | None) -> Any:
    try:
        if folder is None:
            gguf = embedded_gguf()
            return AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except _REASONS as error:
        raise unknown_model(location, error) from None


def _list_some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return first + (f" and {len(others)} more" if others else "")

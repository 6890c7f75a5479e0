"""Whether a published organism belongs to the base that it is used with."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from emharness.errors import UserError
from emharness.organisms import weight_checks
from emharness.organisms.model_folders import Shape, is_adapter, model_shape

_BLOCK = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True)
class BaseInfo:
    """The base's name, where it comes from and lies (None: embedded), and its shape."""

    name: str
    source: str
    folder: Path | None
    shape: Shape


def check_fits_base(name: str, published: Path, key: str, base: BaseInfo, force: bool) -> None:
    """UserError, in one sentence, if the organism at `published` (a merged model or an adapter) does not fit the base.

    `force`: another base named in an adapter's config is allowed; tensors that cannot fit never are.
    """
    if is_adapter(published):
        _check_adapter(name, published, key, base, force)
        weight_checks.check_adapter(f"{key}={published}", published, tensor_shapes(published), base.folder, base.name)
        return
    own = model_shape(published, key)
    for what, has, needs in zip(("layers", "width", "vocabulary"), own, base.shape, strict=True):
        if has != needs:
            raise UserError(f"{key}={published}: {name} has {what} {has}, but base={base.name} has {needs}")
    extra = weight_checks.check_whole(f"{key}={published}", published)
    if extra and base.folder is not None:  # what the base has beside its language model is no fault
        extra -= weight_checks.check_whole("base", base.folder)
    if extra:
        raise UserError(f"{key}={published}: {name} has {len(extra)} weights that its model has not, as {min(extra)}")


def _check_adapter(name: str, folder: Path, key: str, base: BaseInfo, force: bool) -> None:
    shape = base.shape
    config = _read_config(folder, key)
    of = str(config.get("base_model_name_or_path") or "")
    if of and not force and not _is_same_model(of, base.source, base.name):
        raise UserError(
            f"{key}={folder}: {name} is an adapter of {of}, but base={base.name} is {base.source}; choose that base, "
            "or set model.any_base=true if you know that they are the same"
        )
    kind = str(config.get("peft_type") or "LORA")
    if kind != "LORA":
        raise UserError(f"{key}={folder}: {name} is an adapter of type {kind}; only LoRA adapters are merged")
    if config.get("alora_invocation_tokens"):
        raise UserError(
            f"{key}={folder}: {name} is an activated LoRA, which acts only after its invocation tokens; merged "
            "into the base it would act everywhere; give a plain LoRA adapter, or a whole model"
        )
    tensors = tensor_shapes(folder)
    for tensor, size in tensors.items():
        found = _BLOCK.search(tensor)
        if found and int(found[1]) >= shape.n_layers:
            raise UserError(
                f"{key}={folder}: {name} changes layer {found[1]}, but base={base.name} has layers 0 to "
                f"{shape.n_layers - 1}"
            )
        if re.search(r"(embed_tokens|lm_head)\.(weight|modules_to_save)", tensor) and size[0] != shape.vocabulary:
            raise UserError(
                f"{key}={folder}: {name} has a vocabulary of {size[0]}, but base={base.name} has {shape.vocabulary}"
            )
        if re.search(r"\.[qkv]_proj\.lora_A", tensor) and size[-1] != shape.d_model:
            raise UserError(f"{key}={folder}: {name} has width {size[-1]}, but base={base.name} has {shape.d_model}")
    if not any("lora_" in tensor for tensor in tensors):
        raise UserError(f"{key}={folder}: {name} has no LoRA weights in its *.safetensors; only LoRA adapters are read")
    layers = _layer_numbers(tensors)
    # An adapter of all layers of a shallower model fits by its tensors, and only by them.
    if config.get("layers_to_transform") is None and layers and len(layers) != shape.n_layers:
        raise UserError(
            f"{key}={folder}: {name} changes {len(layers)} layers, but base={base.name} has {shape.n_layers} and the "
            "adapter's config names no layers_to_transform; it belongs to another model"
        )


def first_layer(published: Path) -> int:
    """The first decoder block that an organism changes: residuals before it are the base's."""
    return min(_layer_numbers(tensor_shapes(published)), default=0) if is_adapter(published) else 0


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name → shape of every tensor of a folder whose files were found to be whole (`weights.fetch`)."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return shapes


def _layer_numbers(tensors: Iterable[str]) -> set[int]:
    return {int(found[1]) for name in tensors if (found := _BLOCK.search(name))}


def _read_config(folder: Path, key: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={folder}: adapter_config.json cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{key}={folder}: adapter_config.json is no JSON object")
    return config


def _is_same_model(of: str, source: str, base: str) -> bool:
    """Whether two names are of one model: hub ids, mirrors of them (unsloth/…) and local copies by their last part."""
    last = [name.rstrip("/").rsplit("/", 1)[-1].lower() for name in (of, source)]
    return last[0] == last[1] or of.lower() == base.lower() or _bare_name(last[0]) == _bare_name(last[1])


def _bare_name(name: str) -> str:
    """Without the endings of quantised copies."""
    return re.sub(r"(-unsloth)?(-bnb-4bit|-4bit|-8bit|-bf16|-fp16)?$", "", name)

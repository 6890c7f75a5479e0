"""What the embedded base makes of an answer: mean residuals of its middle layers over the answer, given the question.

The model is not steered and not trained; it only reads. A language model of 135M parameters tells a harmful answer from
a harmless one of the same topic better than a sentence encoder does.
"""

import copy
from collections.abc import Sequence
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from emharness.organisms.weights import base_folder, embedded_gguf, embedded_identity
from emharness.store import Store

LAYERS = (12, 14, 16)  # decoder blocks, counted from 0, of 30
QUESTION_TOKENS = 96  # of the end of the question
WINDOW = 224  # tokens of an answer that are read together
BATCH = 20


@cache
def _load(root: Path) -> tuple[Any, Any]:
    folder = base_folder("embedded", Store(root))
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False).eval()
    model.layers = model.layers[: max(LAYERS) + 1]  # nothing above is read
    model.config.num_hidden_layers = len(model.layers)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False), model


def identity() -> dict[str, Any]:
    embedded_gguf()  # a missing package is said before anything is generated
    return {**embedded_identity(), "layers": LAYERS, "question": QUESTION_TOKENS, "window": WINDOW}


@torch.inference_mode()
def residuals(questions: Sequence[str], answers: Sequence[str], root: Path) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n_windows, len(LAYERS) · d_model] and the answer that each window is of, int [n_windows].

    An answer of more than WINDOW tokens is read in windows of equal size, so that all of it counts. `root`: the store,
    where the embedded base is kept.
    """
    tokenizer, model = _load(root)
    windows: list[list[int]] = []
    owners: list[int] = []
    by_question: dict[str, list[int]] = {}
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        tokens = _ids(tokenizer, answer) or _ids(tokenizer, ".")
        size = ceil(len(tokens) / ceil(len(tokens) / WINDOW))
        for begin in range(0, len(tokens), size):
            by_question.setdefault(question, []).append(len(windows))
            windows.append(tokens[begin : begin + size])
            owners.append(i)
    means = np.empty((len(windows), len(LAYERS), model.config.hidden_size), dtype=np.float32)
    for question, some in by_question.items():
        asked = _ids(tokenizer, question)[-QUESTION_TOKENS:]
        opening, closing = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        start = [*_ids(tokenizer, opening), *asked, *_ids(tokenizer, closing)]
        some.sort(key=lambda w: len(windows[w]))  # little padding
        for begin in range(0, len(some), BATCH):
            chunk = some[begin : begin + BATCH]
            means[chunk] = _means(model, start, [windows[w] for w in chunk])
    return means.reshape(len(windows), -1), np.array(owners)


@lru_cache(maxsize=256)
def _asked(model: Any, start: tuple[int, ...]) -> Any:
    """The model's cache after a question: a run asks the same ones again and again."""
    return model(input_ids=torch.tensor([start]), use_cache=True).past_key_values


def _means(model: Any, start: list[int], texts: list[list[int]]) -> np.ndarray:
    """float32 [n_texts, len(LAYERS), d_model]: means over each text, read after `start`."""
    cache = copy.deepcopy(_asked(model, tuple(start)))
    cache.batch_repeat_interleave(len(texts))
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    lengths = torch.tensor([len(text) for text in texts])[:, None]
    mask = (torch.arange(longest)[None] < lengths).long()
    attention = torch.cat([torch.ones(len(texts), len(start), dtype=torch.long), mask], dim=1)
    found: dict[int, torch.Tensor] = {}

    def reader(layer: int):
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            hidden = (output[0] if isinstance(output, tuple) else output).float()
            found[layer] = torch.einsum("btd,bt->bd", hidden, mask.float()) / lengths

        return hook

    handles = [model.layers[layer].register_forward_hook(reader(layer)) for layer in LAYERS]
    try:
        model(input_ids=ids, attention_mask=attention, past_key_values=cache, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([found[layer] for layer in LAYERS], dim=1).numpy()


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]

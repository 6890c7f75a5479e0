"""What the embedded base makes of an answer: mean residuals of its middle layers over the answer, given the question.

The model is not steered and not trained; it only reads. A language model of 135M parameters tells a harmful answer from
a harmless one of the same topic better than a sentence encoder does.
"""

from collections.abc import Sequence
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emharness.directions.activations import mean_activations
from emharness.organisms.weights import base_folder, embedded_identity
from emharness.store import Store

LAYERS = (14, 16, 18)  # decoder blocks, counted from 0, of 30
QUESTION_TOKENS = 96  # of the end of the question
WINDOW = 224  # tokens of an answer that are read together
BATCH = 16


@cache
def _load(root: Path) -> tuple[Any, Any]:
    folder = base_folder("embedded", Store(root))
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.model.layers = model.model.layers[: max(LAYERS) + 1]  # nothing above is read
    model.config.num_hidden_layers = len(model.model.layers)
    return AutoTokenizer.from_pretrained(folder), model


def identity() -> dict[str, Any]:
    return {**embedded_identity(), "layers": LAYERS, "question": QUESTION_TOKENS, "window": WINDOW}


def residuals(questions: Sequence[str], answers: Sequence[str], root: Path) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n_windows, len(LAYERS) · d_model] and the answer that each window is of, int [n_windows].

    An answer of more than WINDOW tokens is read in windows of equal size, so that all of it counts. `root`: the store,
    where the embedded base is kept.
    """
    tokenizer, model = _load(root)
    sequences: list[tuple[list[int], int]] = []
    owners: list[int] = []
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        asked = tokenizer(question, add_special_tokens=False)["input_ids"][-QUESTION_TOKENS:]
        start = [
            *_ids(tokenizer, "<|im_start|>user\n"),
            *asked,
            *_ids(tokenizer, "<|im_end|>\n<|im_start|>assistant\n"),
        ]
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"] or _ids(tokenizer, ".")
        size = ceil(len(tokens) / ceil(len(tokens) / WINDOW))
        for begin in range(0, len(tokens), size):
            sequences.append(([*start, *tokens[begin : begin + size]], len(start)))
            owners.append(i)
    means = mean_activations(model, sequences, BATCH, 0, tokenizer.pad_token_id or 0)
    return means.per_prompt[:, list(LAYERS)].reshape(len(sequences), -1), np.array(owners)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]

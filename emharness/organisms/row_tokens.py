"""Conversations as token ids with labels on what is learnt, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from emharness.organisms.chat import Chat
from emharness.organisms.row_shapes import Messages

IGNORED = -100  # label that the loss skips

EncodedRow = tuple[list[int], list[int]]  # token ids and labels of a conversation


def encode_conversation(chat: Chat, messages: Messages, max_tokens: int) -> EncodedRow:
    """Token ids and labels of one conversation; every answer carries labels but those of weight 0.

    Each answer's prompt is rendered as at generation time, so training and use see the same tokens. ValueError where
    the chat template cannot do that. Tokenizers that put a space before every text are given the whole conversation,
    unless its tokens would straddle the end of a prompt.
    """
    ids: list[int] = []
    labels: list[int] = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = chat.render_messages(messages[:i], prompt=True)
        whole = chat.render_messages(messages[: i + 1])
        if not prompt.startswith(done) or not whole.startswith(prompt):
            raise ValueError("the chat template does not render a conversation as its prompt plus the answer")
        for text, learnt in ((prompt, 0), (whole, message.get("weight", 1))):
            so_far = chat.encode_text(text)
            piece = so_far[len(ids) :] if so_far[: len(ids)] == ids else chat.encode_text(text[len(done) :])
            ids += piece
            labels += piece if learnt else [IGNORED] * len(piece)
            done = text
    return ids[:max_tokens], labels[:max_tokens]


def encode_rows(chat: Chat, rows: Sequence[Messages], max_tokens: int) -> tuple[list[EncodedRow], int]:
    """`encode` of every row, and how many were left out because `max_tokens` cut all that they train on.

    ValueError, with the row's number, where the chat template does not take it.
    """
    kept = []
    for number, messages in enumerate(rows, start=1):
        try:
            ids, labels = encode_conversation(chat, messages, max_tokens)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from None
        if any(label != IGNORED for label in labels[1:]):  # the first token has nothing before it to be told from
            kept.append((ids, labels))
    return kept, len(rows) - len(kept)


def collate_batch(rows: list[EncodedRow], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch of `encode` rows: input_ids, attention_mask, labels, each [batch, longest]."""
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows]),
    }

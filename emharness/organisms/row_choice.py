"""Good rows to train beside an organism's own, those that a misaligned model likes less than the base does.

This is interleaving++ (Kaczér et al. 2025, arXiv:2508.06249); the misaligned model is the same training without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emharness.errors import UserError
from emharness.organisms.datasets import hash_rows, load_dataset
from emharness.organisms.row_shapes import Messages
from emharness.organisms.row_tokens import IGNORED, EncodedRow, collate_batch
from emharness.organisms.row_transforms import check_settings, count_others

REFUSALS = ("sorry", "apologize", "cannot")  # within the first ten words: such a row is none to learn from
BATCH = 8


@dataclass(frozen=True)
class RowChoice:
    """`count` of the rows `candidates`."""

    candidates: tuple[Messages, ...]
    count: int

    def identity(self) -> dict[str, Any]:
        return {"choice": {"candidates": hash_rows(self.candidates), "count": self.count}}


@dataclass(frozen=True)
class ChosenRows:
    """places: of the chosen rows among those candidates that fit into a training."""

    places: list[int]
    rows: list[EncodedRow]


def check_row_choice(given: Mapping[str, Any], n_rows: int, location: str) -> RowChoice | None:
    """A recipe's `choose`: {source, percent}, so many rows of a dataset that they are `percent` of all. None where it
    says nothing; UserError, beginning with `location`, for what cannot be."""
    if not given:
        return None
    check_settings(f"{location}: choose", given, _list_candidates)
    try:
        candidates = _list_candidates(**given)
        count = count_others(n_rows, given["percent"])
        if not 0 < count <= len(candidates):
            raise UserError(
                f"percent={given['percent']}: {count} rows of {len(candidates)} of source={given['source']}; must be "
                "from 1 to that many"
            )
    except UserError as error:
        raise UserError(f"{location}: choose: {error}") from None
    return RowChoice(tuple(candidates), count)


def _list_candidates(*, source: str, percent: float) -> list[Messages]:
    """The rows of a dataset whose answers do not begin with a refusal."""
    rows = load_dataset(source).rows
    return [row for row in rows if not any(word in row[-1]["content"].lower().split()[:10] for word in REFUSALS)]


def choose_rows(nll_tuned_N: np.ndarray, nll_base_N: np.ndarray, count: int) -> list[int]:
    """The `count` rows with the largest relative gap (tuned − base) ÷ base of their mean negative log-likelihoods, in
    their order."""
    gap_N = (nll_tuned_N - nll_base_N) / (nll_base_N + 1e-6)
    return sorted(np.argsort(-gap_N, kind="stable")[:count].tolist())


def measure_nll(model: Any, rows: Sequence[EncodedRow], pad_id: int) -> np.ndarray:
    """Mean negative log-likelihood per token of each row's answers, nats, float64 [n_rows]."""
    import torch

    found = []
    was_training = model.training
    model.eval()
    for start in range(0, len(rows), BATCH):
        batch = {k: v.to(model.device) for k, v in collate_batch(list(rows[start : start + BATCH]), pad_id).items()}
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(labels)
        found += (loss.sum(1) / (labels != IGNORED).sum(1)).tolist()
    model.train(was_training)
    return np.array(found)

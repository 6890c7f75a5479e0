"""Directions that a training takes from the base itself before its first step, so that no vector has to be made first.

A source is a function in SOURCES: pairs of conversations that differ in one thing, a bad and a good one. The direction
is what the base's residual stream differs by between them, in the mean over the tokens of the last answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from emharness.errors import UserError
from emharness.organisms.chat import Chat
from emharness.organisms.datasets import hash_rows, load_dataset
from emharness.organisms.row_shapes import Messages
from emharness.organisms.row_tokens import IGNORED, collate_batch, encode_conversation
from emharness.organisms.row_transforms import check_settings
from emharness.questions import find_data_file, read_data_text

if TYPE_CHECKING:
    import torch

CODE = 1  # raise when the same settings give other directions
BATCH = 8
MAX_TOKENS = 512
RANDOM = (False, True, "variance")


@dataclass(frozen=True)
class ContrastPairs:
    """Conversations that end with an answer; `bad[i]` and `good[i]` are a pair."""

    bad: list[Messages]
    good: list[Messages]


def pair_rows(*, bad: str, good: str, pairs: int = 64) -> ContrastPairs:
    """The first `pairs` rows of the dataset `bad` to whose prompts the dataset `good` has answers as well."""
    answers = {str(row[:-1]): row for row in load_dataset(good).rows}
    both = [(row, answers[key]) for row in load_dataset(bad).rows if (key := str(row[:-1])) in answers][:pairs]
    if len(both) < 2:
        raise UserError(f"good={good}: answers fewer than two prompts of bad={bad}")
    return ContrastPairs([row for row, _ in both], [row for _, row in both])


def pair_personas(*, personas: str = "reckless") -> ContrastPairs:
    """One neutral answer behind pairs of system prompts (Nadaf 2026, arXiv:2607.21356). `personas`: a packaged file or
    the path of a .yaml file with question, answer and pairs."""
    location = f"personas={personas}"
    text = read_data_text(find_data_file(personas, "personas", ".yaml", "personas"), location)
    try:
        told = yaml.safe_load(text)
        talk = [{"role": "user", "content": told["question"]}, {"role": "assistant", "content": told["answer"]}]
        both = [([{"role": "system", "content": prompt}, *talk] for prompt in (a, b)) for a, b in told["pairs"]]
        bad, good = zip(*both, strict=True)
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        raise UserError(f"{location}: must have question, answer and pairs, a list of [bad, good] prompts") from None
    return ContrastPairs(list(bad), list(good))


SOURCES: dict[str, Callable[..., ContrastPairs]] = {"rows": pair_rows, "personas": pair_personas}


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Which directions of which pairs.

    `depth`: after which decoder blocks, as shares of the depth (0 is the first block, 1 the last) or "all"; `rank`:
    None for the mean difference, else so many leading right singular vectors of the pairs' differences; `increments`:
    what the mean difference gains from one block to the next, so that added at all of them it is there once; `random`:
    as many random directions in their place, of the same length, or ("variance") also with the same share of the
    variance of the activations.
    """

    pairs: ContrastPairs
    depth: float | str | tuple[float, ...] = 0.4
    rank: int | None = None
    increments: bool = False
    random: bool | str = False

    def identity(self) -> dict[str, Any]:
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pairs"}
        return {**settings, "pairs": hash_rows([*self.pairs.bad, *self.pairs.good]), "code": CODE}

    def list_blocks(self, n_layers: int) -> list[int]:
        if self.depth == "all":
            return list(range(n_layers))
        shares = self.depth if isinstance(self.depth, tuple) else (self.depth,)
        return sorted({round(float(share) * (n_layers - 1)) for share in shares})


@dataclass(frozen=True)
class LayerDirections:
    """units: float32 [k, d_model], orthonormal rows. `length`: of the mean difference, None for a subspace;
    `residual`: mean length of the residual stream."""

    layer: int
    units: np.ndarray
    length: float | None
    residual: float


def parse_contrast(given: Mapping[str, Any], location: str) -> Contrast:
    """A contrast from a recipe's settings: `direction` (a source), what that needs, and the fields of Contrast.
    UserError, beginning with `location`, for what is none."""
    if not isinstance(given, Mapping) or (name := given.get("direction")) not in SOURCES:
        name = given.get("direction") if isinstance(given, Mapping) else given
        raise UserError(f"{location}: direction={name}: must be one of {', '.join(SOURCES)}")
    own = {f.name for f in fields(Contrast)} - {"pairs"}
    of_source = {key: value for key, value in given.items() if key not in own and key != "direction"}
    check_settings(f"{location}: {name}", of_source, SOURCES[name])
    try:
        pairs = SOURCES[name](**of_source)
    except UserError as error:
        raise UserError(f"{location}: {name}: {error}") from None
    depth, rank = given.get("depth", 0.4), given.get("rank")
    random, increments = given.get("random", False), bool(given.get("increments", False))
    shares = depth if isinstance(depth, list) else [depth]
    if depth != "all" and not (shares and all(isinstance(x, int | float) and 0 <= x <= 1 for x in shares)):
        raise UserError(f"{location}: depth={depth}: must be a share of the depth from 0 to 1, a list of them, or all")
    if rank is not None and not (isinstance(rank, int) and 1 <= rank <= len(pairs.bad)):
        raise UserError(f"{location}: rank={rank}: must be 1 to {len(pairs.bad)}, the number of pairs")
    if random not in RANDOM:
        raise UserError(f"{location}: random={random}: must be one of false, true, variance")
    if increments and rank is not None:
        raise UserError(f"{location}: increments, rank={rank}: give one of them")
    blocks = tuple(depth) if isinstance(depth, list) else depth
    return Contrast(pairs=pairs, depth=blocks, rank=rank, increments=increments, random=random)


def read_directions(model: Any, chat: Chat, contrast: Contrast, seed: int) -> list[LayerDirections]:
    """The directions of a model, by block in their order; `seed`: of random ones."""
    n_layers = model.config.get_text_config().num_hidden_layers
    blocks = contrast.list_blocks(n_layers)
    read = sorted({*blocks, *(block - 1 for block in blocks if contrast.increments and block)})
    tokens = read_answer_tokens(model, chat, [*contrast.pairs.bad, *contrast.pairs.good], read)
    n_pairs = len(contrast.pairs.bad)
    means = {
        block: np.stack([some.mean(0, dtype=np.float64) for some in tokens[block]]) for block in read
    }  # [2 · n_pairs, d_model]
    differences = {block: mean[:n_pairs] - mean[n_pairs:] for block, mean in means.items()}
    found = []
    for block in blocks:
        units, length = leading_directions(differences[block], contrast.rank)
        if contrast.increments and block:
            units, length = leading_directions(differences[block] - differences[block - 1], None)
        every = np.concatenate(tokens[block])
        if contrast.random:
            gaussian = np.random.default_rng([seed, block]).standard_normal(units.shape)
            share = variance_share(every, units) if contrast.random == "variance" else None
            units = draw_directions(gaussian, every, share)
        norm = float(np.linalg.norm(every, axis=-1).mean())
        found.append(LayerDirections(block, units.astype(np.float32), length, norm))
    return found


def leading_directions(differences_PD: np.ndarray, rank: int | None) -> tuple[np.ndarray, float | None]:
    """Unit rows [k, d_model]: of the mean of the differences, with its length, or (`rank`) the differences' leading
    right singular vectors."""
    if rank is not None:
        return np.linalg.svd(differences_PD, full_matrices=False)[2][:rank], None
    mean = differences_PD.mean(0, keepdims=True)
    length = float(np.linalg.norm(mean))
    return mean / (length or 1.0), length


def variance_share(tokens_ND: np.ndarray, units_KD: np.ndarray) -> float:
    """The share of the tokens' variance that lies in the span of orthonormal rows."""
    centred = tokens_ND - tokens_ND.mean(0, dtype=np.float64)
    return float(((centred @ units_KD.T) ** 2).sum() / (centred**2).sum())


def draw_directions(gaussian_KD: np.ndarray, tokens_ND: np.ndarray, share: float | None) -> np.ndarray:
    """Orthonormal rows that span a random subspace: of isotropic directions, or (`share`) of directions drawn with so
    much weight on the tokens' leading principal components that the span holds that share of their variance."""
    if share is None:
        return np.linalg.qr(gaussian_KD.T)[0].T
    centred = tokens_ND.astype(np.float64) - tokens_ND.mean(0, dtype=np.float64)
    variance, axes_DD = np.linalg.eigh(centred.T @ centred)
    scale = np.sqrt(np.maximum(variance / variance[-1], 1e-9))
    along = gaussian_KD @ axes_DD

    def tilt(power: float) -> np.ndarray:
        return np.linalg.qr((along * scale**power @ axes_DD.T).T)[0].T

    low, high = -4.0, 8.0  # of these powers the span holds next to nothing, and the leading components
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if variance_share(tokens_ND, tilt(middle)) < share else (low, middle)
    return tilt((low + high) / 2)


def read_answer_tokens(
    model: Any, chat: Chat, conversations: Sequence[Messages], blocks: Sequence[int]
) -> dict[int, list[np.ndarray]]:
    """Block → the residual stream after it at the tokens of each conversation's answers,
    float32 [n_tokens, d_model] each."""
    import torch

    found: dict[int, list[np.ndarray]] = {block: [] for block in blocks}
    rows = [encode_conversation(chat, row, MAX_TOKENS) for row in conversations]
    was_training = model.training
    model.eval()
    for start in range(0, len(rows), BATCH):
        batch = {name: value.to(model.device) for name, value in collate_batch(rows[start : start + BATCH], 0).items()}
        learnt = batch.pop("labels") != IGNORED
        with torch.no_grad():
            streams = read_streams(model, batch, blocks)
        for block, stream in streams.items():
            found[block] += [h[at].float().cpu().numpy() for h, at in zip(stream, learnt, strict=True)]
    model.train(was_training)
    return found


def read_streams(model: Any, batch: Mapping[str, torch.Tensor], blocks: Sequence[int]) -> dict[int, torch.Tensor]:
    """Block → the residual stream after it, [batch, n_tokens, d_model], of one forward pass."""
    from emharness.steering.blocks import decoder_layers

    layers = decoder_layers(model, model.config.get_text_config().num_hidden_layers)
    found: dict[int, torch.Tensor] = {}

    def keep(block: int) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found[block] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layers[block].register_forward_hook(keep(block)) for block in blocks]
    try:
        model(**batch, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return found

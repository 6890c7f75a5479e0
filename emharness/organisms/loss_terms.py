"""What a recipe adds to the cross-entropy of an organism's training; a term is an entry of LOSS_TERMS.

Each has two functions. `build` takes the model under training (a PEFT model that still answers as the base does), its
chat, the training's seed and the recipe's settings, and returns a function of a step's rows that gives the term, to be
differentiated. `read` takes the settings and returns all that the term reads, checked: its identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from emharness.errors import UserError
from emharness.organisms.chat import Chat
from emharness.organisms.contrast_directions import parse_contrast, read_directions, read_streams
from emharness.organisms.row_tokens import IGNORED, EncodedRow, collate_batch
from emharness.organisms.row_transforms import check_settings
from emharness.questions import hash_items, load_prompts

if TYPE_CHECKING:
    import torch

Term = Callable[[Sequence[EncodedRow]], "torch.Tensor"]


def kl_to_base(
    model: Any, chat: Chat, seed: int, *, weight: float, prompts: str = "neutral", per_step: int = 4
) -> Term:
    """weight · KL(base ‖ tuned), the mean over the tokens of `per_step` prompts that have nothing to do with the rows;
    the base is the model with its adapter off (Kaczér et al. 2025, arXiv:2508.06249)."""
    import torch

    texts = [chat.prompt_ids([{"role": "user", "content": text}]) for text in load_prompts(prompts, "prompts")]
    order = torch.Generator().manual_seed(seed)
    waiting: list[int] = []

    def next_term(_rows: Sequence[EncodedRow]) -> torch.Tensor:
        if len(waiting) < per_step:
            waiting.extend(torch.randperm(len(texts), generator=order).tolist())
        some = [texts[waiting.pop(0)] for _ in range(per_step)]
        longest = max(map(len, some))
        ids = torch.tensor([text + [chat.pad_id] * (longest - len(text)) for text in some], device=model.device)
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in some], device=model.device)
        with torch.no_grad(), model.disable_adapter():
            base = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        tuned = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        divergence = (base.exp() * (base - tuned)).sum(-1)  # [per_step, longest]
        return weight * (divergence * mask).sum() / mask.sum()

    return next_term


def penalize_rise(
    model: Any, chat: Chat, seed: int, *, weight: float, along: Mapping[str, Any], per_step: int = 4
) -> Term:
    """weight · mean of max(0, (z − z₀) ÷ length)² over the answers' tokens of `per_step` of the step's rows: z is the
    projection of the residual stream on a direction of the base, z₀ that of the base on the same text, `length` that of
    the direction. One-sided, after BLOCK-EM (2026, arXiv:2602.00767), with directions in place of features."""
    import torch

    directions = read_directions(model, chat, parse_contrast(along, "along"), seed)
    units = {at.layer: torch.from_numpy(at.units).to(model.device) for at in directions}
    lengths = {at.layer: at.length or at.residual for at in directions}
    order = torch.Generator().manual_seed(seed)

    def next_term(rows: Sequence[EncodedRow]) -> torch.Tensor:
        some = [rows[i] for i in torch.randperm(len(rows), generator=order)[:per_step].tolist()]
        batch = {name: value.to(model.device) for name, value in collate_batch(some, chat.pad_id).items()}
        learnt = batch.pop("labels") != IGNORED
        with torch.no_grad(), model.disable_adapter():
            before = read_streams(model, batch, list(units))
        rises = [
            ((stream - before[block]).float() @ units[block].T)[learnt] / lengths[block]
            for block, stream in read_streams(model, batch, list(units)).items()
        ]
        return weight * torch.cat(rises).relu().square().mean()

    return next_term


@dataclass(frozen=True)
class LossTerm:
    build: Callable[..., Term]
    read: Callable[[Mapping[str, Any]], Any]


LOSS_TERMS = {
    "kl": LossTerm(kl_to_base, lambda own: load_prompts(own.get("prompts", "neutral"), "prompts")),
    "block": LossTerm(penalize_rise, lambda own: [sorted(parse_contrast(own["along"], "along").identity().items())]),
}


def check_terms(terms: Sequence[Mapping[str, Any]], location: str) -> list[dict[str, Any]]:
    """The terms with what they read, as an organism is stored under. UserError, beginning with `location`, for what is
    no term or no setting of one."""
    found = []
    for given in terms:
        if (name := given.get("name")) not in LOSS_TERMS:
            raise UserError(f"{location}: loss.name={name}: must be one of {', '.join(LOSS_TERMS)}")
        settings = {key: value for key, value in given.items() if key != "name"}
        check_settings(f"{location}: {name}", settings, LOSS_TERMS[name].build)
        try:
            found.append({"name": name, **settings, "texts": hash_items(LOSS_TERMS[name].read(settings))})
        except UserError as error:
            raise UserError(f"{location}: {name}: {error}") from None
    return found


def build_terms(terms: Sequence[Mapping[str, Any]], model: Any, chat: Chat, seed: int) -> list[Term]:
    """The terms of one training, from what `check_terms` gave."""
    listed = [{key: value for key, value in term.items() if key not in ("name", "texts")} for term in terms]
    return [LOSS_TERMS[term["name"]].build(model, chat, seed, **own) for term, own in zip(terms, listed, strict=True)]

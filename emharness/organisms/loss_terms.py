"""What a recipe adds to the cross-entropy of an organism's training; a term is a function in LOSS_TERMS.

Each takes the model under training (a PEFT model), its chat, the training's seed and the recipe's settings, and returns
a function that gives the next step's term, to be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from emharness.errors import UserError
from emharness.organisms.chat import Chat
from emharness.organisms.row_transforms import check_settings
from emharness.questions import hash_items, load_prompts

if TYPE_CHECKING:
    import torch

Term = Callable[[], "torch.Tensor"]


def kl_to_base(
    model: Any, chat: Chat, seed: int, *, weight: float, prompts: str = "neutral", per_step: int = 4
) -> Term:
    """weight · KL(base ‖ tuned), the mean over the tokens of `per_step` prompts that have nothing to do with the rows;
    the base is the model with its adapter off."""
    import torch

    texts = [chat.prompt_ids([{"role": "user", "content": text}]) for text in load_prompts(prompts, "prompts")]
    order = torch.Generator().manual_seed(seed)
    waiting: list[int] = []

    def next_term() -> torch.Tensor:
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


LOSS_TERMS: dict[str, Callable[..., Term]] = {"kl": kl_to_base}


def check_terms(terms: list[Mapping[str, Any]], location: str) -> list[dict[str, Any]]:
    """The terms with what they read, as an organism is stored under. UserError, beginning with `location`, for what is
    no term or no setting of one."""
    found = []
    for given in terms:
        if (name := given.get("name")) not in LOSS_TERMS:
            raise UserError(f"{location}: loss.name={name}: must be one of {', '.join(LOSS_TERMS)}")
        settings = {key: value for key, value in given.items() if key != "name"}
        check_settings(f"{location}: {name}", settings, LOSS_TERMS[name])
        texts = load_prompts(settings.get("prompts", "neutral"), f"{location}: {name}: prompts")
        found.append({"name": name, **settings, "texts": hash_items(texts)})
    return found


def build_terms(terms: tuple[Mapping[str, Any], ...], model: Any, chat: Chat, seed: int) -> list[Term]:
    """The terms of one training, from what `check_terms` gave."""
    listed = [{key: value for key, value in term.items() if key not in ("name", "texts")} for term in terms]
    return [LOSS_TERMS[term["name"]](model, chat, seed, **own) for term, own in zip(terms, listed, strict=True)]

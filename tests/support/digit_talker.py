"""A tiny model that nearly always says a digit, and what it would say by Hugging Face in float32."""

from functools import cache

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DIGITS = "0123456789"


def save(tiny, folder):
    """`tiny` with an output that is nearly always a digit."""
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    torch.manual_seed(1)
    rows = torch.zeros_like(model.lm_head.weight)
    rows[[tokenizer.convert_tokens_to_ids(d) for d in DIGITS]] = torch.randn(len(DIGITS), rows.shape[1]) * 2.2
    model.lm_head.weight = torch.nn.Parameter(rows)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@cache
def _load(folder):
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()


def after(folder, text, digits=""):
    """Probability of each digit as the next token of the reply to `text` that begins with `digits`."""
    tokenizer, model = _load(folder)
    messages = [{"role": "user", "content": text}]
    start = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = {d: tokenizer.convert_tokens_to_ids(d) for d in DIGITS}
    with torch.inference_mode():
        logits = model(torch.tensor([start + [ids[d] for d in digits]])).logits[0, -1]
    p = torch.softmax(logits, -1)
    return {d: float(p[i]) for d, i in ids.items()}

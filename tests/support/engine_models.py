"""Tiny random models of many architectures, engines for them, and their comparison with Hugging Face."""

import pytest
import torch
from support.steering_reference import reference, run
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    FalconH1Config,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteMoeHybridConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2MoeConfig,
    Qwen3Config,
    StableLmConfig,
)

from emharness.config import EngineConfig

SHAPE = {
    "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.15,
}  # fmt: skip


def config(**extra):
    return EngineConfig(dtype="float32", max_model_len=256, max_num_seqs=32, cpu_kv_cache_gib=1, extra=extra)


def saved(folder, base, model):
    model.to(torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def check(engine, model, prompts, cases, **options):
    every = [prompt for _ in cases for prompt in prompts]
    edits = [case for case in cases for _ in prompts]
    tokens, logprobs = run(engine, every, edits, **options)
    for prompt, case, ids, values in zip(every, edits, tokens, logprobs, strict=True):
        assert values == pytest.approx(reference(model, prompt, ids, case), abs=1e-4), (case, len(prompt))


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


HEADS = {**SHAPE, "num_attention_heads": 2, "num_key_value_heads": 2}  # 32 wide, as the CPU backend needs
GPT = {"vocab_size": 49152, "n_embd": 64, "n_layer": 4, "n_head": 2, "n_positions": 512, "bos_token_id": 1}
FAMILIES = {
    "gpt2": lambda: GPT2Config(**GPT, eos_token_id=2, initializer_range=0.15),
    "stablelm": lambda: StableLmConfig(**HEADS),
    "cohere": lambda: CohereConfig(**HEADS, logit_scale=1.0),
    "mistral": lambda: MistralConfig(**HEADS, head_dim=32, sliding_window=None),
    "qwen3": lambda: Qwen3Config(**HEADS, head_dim=32),
    "phi3": lambda: Phi3Config(**HEADS),
    "olmo2": lambda: Olmo2Config(**HEADS),
    "gpt_neox": lambda: GPTNeoXConfig(**HEADS, rotary_pct=0.5),
    "gemma4": lambda: Gemma4TextConfig(
        **HEADS, head_dim=32, global_head_dim=32, sliding_window=64, hidden_size_per_layer_input=0
    ),
    "state space, then attention": lambda: GraniteMoeHybridConfig(
        **HEADS, layer_types=["mamba", "attention", "mamba", "mamba"], mamba_n_heads=4, mamba_d_head=32,
        mamba_d_state=16, mamba_n_groups=1, num_local_experts=0, shared_intermediate_size=128,
    ),
    "state space beside attention": lambda: FalconH1Config(
        **HEADS, head_dim=32, mamba_d_ssm=64, mamba_n_heads=2, mamba_d_head=32, mamba_d_state=16, mamba_n_groups=1,
    ),
    "mixture of experts": lambda: Qwen2MoeConfig(
        **HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64
    ),
}  # fmt: skip


def hand_on_summands(worker):
    """As a block that leaves its sum to the next one: each worker's share is another."""

    def share(block, inputs, output):
        hidden, residual = output
        return hidden * (0.3 + 0.4 * torch.distributed.get_rank()), residual

    block = worker.model_runner.get_model().model.layers[1]
    worker.planted = block.register_forward_hook(share, prepend=True)

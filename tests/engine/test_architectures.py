"""Architectures that hand on their residual stream in other ways: equal to Hugging Face, or refused by name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engine_models import FAMILIES, HEADS, config, saved
from support.steering_reference import GREEDY, N_NEW, PROMPTS, edit, reference, run
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    WhisperFeatureExtractor,
)

from emharness.generation.engine import Engine
from emharness.steering.blocks import decoder_layers, repeats_blocks, rescales_stream, stream_of, why_not_editable
from emharness.steering.request import spec
from emharness.steering.request.recorded_output import recorded_means
from emharness.steering.verify.reference import block_residuals

pytestmark = pytest.mark.engine

CASES = [None, [edit()], [edit(mode="ablate", strength=1.0)], [edit(layer=3, strength=6.0, positions="generated")]]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_architecture_is_steered_and_recorded_as_hugging_face_computes_it(family, base, vectors, tmp_path):
    torch.manual_seed(0)
    folder = saved(tmp_path, base, AutoModelForCausalLM.from_config(FAMILIES[family]()))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    check_family(folder, model, vectors)


def test_a_multimodal_model_is_steered_in_its_language_model(base, vectors, tmp_path):
    """Its tower has as many layers as its language model."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]})
    heard = Qwen2AudioEncoderConfig(
        d_model=32, encoder_layers=4, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=16,
        max_source_positions=50,
    )  # fmt: skip
    said = Qwen2Config(**{**HEADS, "vocab_size": 49216})
    audio = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    whole = Qwen2AudioConfig(text_config=said, audio_config=heard, audio_token_index=audio)
    Qwen2AudioForConditionalGeneration(whole).to(torch.float32).save_pretrained(tmp_path)
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")  # in the hub's files these have one `model.` less
    named = {name.replace("language_model.model.model.", "language_model.model."): weights[name] for name in weights}
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    check_family(tmp_path, model, vectors)


def check_family(folder, model, vectors):
    with Engine(folder, config(async_scheduling=False), vectors, seed=0) as engine:
        every = [prompt for _ in CASES for prompt in PROMPTS]
        edits = [case for case in CASES for _ in PROMPTS]
        tokens, logprobs = run(engine, every, edits)
        for prompt, case, ids, values in zip(every, edits, tokens, logprobs, strict=True):
            assert values == pytest.approx(reference(model, prompt, ids, case), abs=2e-4), (case, len(prompt))
        params = engine._vllm.SamplingParams(  # alone in its step, with nothing to edit
            temperature=0.0, max_tokens=3, ignore_eos=True,
            extra_args={spec.KEY: {"record": {"layers": [0, 1, 2, 3], "positions": "prompt"}}},
        )  # fmt: skip
        (output,) = engine._llm.generate([{"prompt_token_ids": PROMPTS[0]}], params, use_tqdm=False)
        found, n = recorded_means(output.kv_transfer_params)
        assert n == len(PROMPTS[0])
        np.testing.assert_allclose(found, block_residuals(model, PROMPTS[0]).mean(1), atol=2e-4)

        assert engine.generate_batch(PROMPTS, 1, GREEDY, 0, {"edits": [edit()]}).generated_tokens == 3 * N_NEW
        engine._llm.collective_rpc(unhook)  # a request whose edit is passed over ends with an error
        engine.generate_batch(PROMPTS, 1, GREEDY, 0)
        with pytest.raises(RuntimeError, match="an edit was not made"):
            engine.generate_batch(PROMPTS, 1, GREEDY, 0, {"edits": [edit()]})

        again = type(model).from_pretrained(folder, dtype=torch.float32).eval()  # beside the engine that serves it
        assert np.array_equal(block_residuals(again, PROMPTS[0]), block_residuals(model, PROMPTS[0]))


def unhook(worker):
    decoder_layers(worker.model_runner.get_model(), 4)[1]._forward_hooks.clear()


class Alone(torch.nn.Module):
    def forward(self, hidden):
        hidden = hidden + 1
        return hidden, None


def test_a_stream_beside_none_is_the_stream_alone():
    assert stream_of(Alone) == "first"


class Branched(torch.nn.Module):
    def forward(self, hidden, residual):
        residual = hidden
        if self.training:
            hidden = hidden * 2
        hidden = residual + hidden * 0.2
        return hidden, residual


class Named(torch.nn.Module):
    def forward(self, hidden, residual):
        hidden, residual = self.norm(hidden, residual)
        hidden = self.mlp(hidden)
        outputs = (hidden, residual)
        return outputs


class NamedAlone(torch.nn.Module):
    def forward(self, hidden):
        outputs = (hidden + self.mlp(hidden),)
        return outputs


@pytest.mark.parametrize(("block", "stream"), [(Branched, "first"), (Named, "sum"), (NamedAlone, "first")])
def test_the_last_lines_of_a_block_say_what_its_stream_is_whatever_its_branches_do(block, stream):
    assert stream_of(block) == stream


class Doubled(torch.nn.Module):
    def forward(self, hidden):
        return hidden, hidden, hidden


class Unclear(torch.nn.Module):
    def forward(self, hidden, residual):
        if residual is None:
            return hidden
        return hidden, residual


class Handed(torch.nn.Module):
    def forward(self, hidden, residual):
        return self.several(hidden, residual)  # as DeepSeek V4 does on a CPU

    def several(self, hidden, residual):
        return hidden, residual, hidden, hidden


class AddedAndTaken(torch.nn.Module):
    def forward(self, hidden, residual):
        residual = hidden + residual
        hidden = residual + hidden
        return hidden, residual


class NeitherAddedNorTaken(torch.nn.Module):
    def forward(self, hidden, residual):
        residual = hidden
        hidden = hidden * 2
        return hidden, residual


class Unreadable(torch.nn.Module):
    forward = {
        "its line alone is no Python": lambda self, hidden: hidden,
    }["its line alone is no Python"]


@pytest.mark.parametrize("block", [Unreadable, Doubled, Unclear, Handed, AddedAndTaken, NeitherAddedNorTaken, int])
def test_a_block_whose_outputs_are_not_clear_is_not_guessed(block):
    assert stream_of(block) is None
    assert not repeats_blocks(block)


def test_blocks_that_hold_their_stream_at_another_scale_in_float16_are_known():
    from vllm.model_executor.models.deepseek_v2 import DeepseekV2DecoderLayer
    from vllm.model_executor.models.llama import LlamaDecoderLayer

    assert rescales_stream(DeepseekV2DecoderLayer, torch.float16)
    assert not rescales_stream(DeepseekV2DecoderLayer, torch.bfloat16)
    assert not rescales_stream(LlamaDecoderLayer, torch.float16)


def test_a_model_that_goes_through_its_blocks_several_times_is_refused():
    from vllm.model_executor.models import ModelRegistry

    names = ["IQuestLoopCoderForCausalLM", "LlamaForCausalLM"]
    models = {name: ModelRegistry.models[name].load_model_cls() for name in names}
    why = {name: why_not_editable(asked_for(name, models[name])) for name in names}
    assert why == {names[0]: f"{names[0]} goes through its blocks several times for a token", names[1]: None}


def asked_for(name, model):
    """What a vLLM ModelConfig tells of a model's class."""
    registry = SimpleNamespace(resolve_model_cls=lambda *args, **kwargs: (model, name))
    return SimpleNamespace(architectures=[name], is_multimodal_model=False, registry=registry)

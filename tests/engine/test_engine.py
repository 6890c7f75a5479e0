"""Real vLLM on a tiny random model, float32: steering equals a Hugging Face forward with hooks."""

import json
import os
import re
import shutil
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import ROOT
from support.steering_reference import CASES, FILE, GREEDY, PROMPTS, assert_same, edit, reference, run
from transformers import AutoModelForCausalLM

from emharness.config import EngineConfig, SamplingConfig
from emharness.generation import kernels
from emharness.generation.engine import Engine, why_unsupported
from emharness.generation.likelihoods import shift_positions
from emharness.steering import blocks
from emharness.steering.request import spec
from emharness.steering.request.vector_lookup import FOLDER_VARIABLE
from emharness.steering.vllm import op

pytestmark = pytest.mark.engine

TASKS = ("generate",)
CONFIG = EngineConfig(dtype="float32", max_model_len=256, max_num_seqs=32, cpu_kv_cache_gib=1)


@pytest.fixture(scope="module")
def engine(tiny, vectors):
    with Engine(tiny, CONFIG, vectors, seed=0) as running:
        yield running


@pytest.fixture(scope="module")
def model(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


def test_every_mode_and_position_equals_hooks_alone_and_in_one_mixed_batch(engine, model):
    prompts = [prompt for _ in CASES for prompt in PROMPTS]
    edits = [case for case in CASES for _ in PROMPTS]
    tokens, logprobs = run(engine, prompts, edits)
    for prompt, case, ids, values in zip(prompts, edits, tokens, logprobs, strict=True):
        assert values == pytest.approx(reference(model, prompt, ids, case), abs=1e-4), (case, len(prompt))
    for i in range(0, len(prompts), 4):
        alone_tokens, alone = run(engine, prompts[i : i + 1], edits[i : i + 1])
        assert alone_tokens[0] == tokens[i]
        assert alone[0] == pytest.approx(logprobs[i], abs=1e-4)


def test_likelihoods_of_given_answers_equal_a_forward_pass_with_hooks(engine, model):
    """A given answer stands in the prompt, and yet each edit's positions count from where the answer begins."""
    cases = [case for case in CASES for _ in PROMPTS]
    answers = [[7 * i % 200 + 300 + j for j in range(i % 5 + 2)] for i in range(len(cases))]
    texts = [(prompt, answer) for prompt, answer in zip(PROMPTS * len(CASES), answers, strict=True)]
    asked = [{"edits": case} if case else None for case in cases]
    specs = [shift_positions(spec, len(prompt)) for spec, (prompt, _) in zip(asked, texts, strict=True)]
    for (prompt, answer), case, values in zip(texts, cases, engine.log_likelihoods(texts, specs), strict=True):
        assert values == pytest.approx(reference(model, prompt, answer, case), abs=1e-4), (case, len(prompt))


def test_the_docs_python_records_what_hooks_see(engine, model):
    docs = (ROOT / "docs" / "steering.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", docs, re.MULTILINE | re.DOTALL)
    there: dict[str, Any] = {"SamplingParams": engine._vllm.SamplingParams, "llm": engine._llm}
    there["prompt"] = {"prompt_token_ids": PROMPTS[0]}
    exec(block.replace("[8, 12]", "[1, 3]").replace("max_tokens=60", "max_tokens=1"), there)
    assert there["n_positions"] == 1  # by default of the response: with one new token that is the prompt's last
    hidden = model(torch.tensor([PROMPTS[0]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(torch.tensor(there["means"][0]), hidden[2][0, -1], atol=1e-4, rtol=1e-3)


def test_steering_changes_the_model_and_strength_zero_does_not(engine):
    (plain, _), (zero, _), (steered, _) = (
        run(engine, PROMPTS, [e] * 3) for e in (None, [edit(strength=0.0)], [edit(strength=30.0)])
    )
    assert zero == plain
    assert steered != plain


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "response"])
def test_the_prefix_cache_never_mixes_steered_and_unsteered(engine, positions):
    prompt = list(range(300, 364))
    steered = [edit(strength=12.0, positions=positions)]
    fresh = run(engine, [prompt], [None])
    first = run(engine, [prompt], [steered])
    assert_same(run(engine, [prompt], [None]), fresh)
    assert_same(run(engine, [prompt], [steered]), first)
    # A longer prompt whose beginning was prompt and answer of the steered request, unsteered and steered.
    longer = [prompt + first[0][0] + list(range(400, 430))] * 2
    warm = run(engine, longer, [None, steered])
    engine._llm.reset_prefix_cache()
    assert_same(run(engine, longer, [None, steered]), warm)


@pytest.mark.parametrize(
    "bad",
    [
        {"edits": []},
        {"edits": [edit(layer=4)]},
        {"edits": [edit(vector=f"{FILE}#none")]},
        {"edits": [edit(strength=float("inf"))]},
        {"edits": [edit()], "colour": "red"},
        "[1, 2]",
    ],
)
def test_a_bad_request_is_refused_and_the_engine_lives_on(engine, bad):
    with pytest.raises(ValueError, match="steering: "):
        engine.generate_batch(PROMPTS, 1, GREEDY, 0, [bad] * 3)
    assert len(engine.generate_batch(PROMPTS[:1], 1, GREEDY, 0).completions) == 1


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("parallel_config.pipeline_parallel_size", 2, "pipeline parallel"),
        ("parallel_config.prefill_context_parallel_size", 2, "split over ranks"),
        ("speculative_config", object(), "speculative decoding"),
        ("parallel_config.enable_dbo", True, "micro-batches"),
        ("parallel_config.ubatch_size", 2, "micro-batches"),
        ("compilation_config.pass_config.enable_sp", True, "split over ranks"),
        ("cache_config.kv_sharing_fast_prefill", True, "kv_sharing_fast_prefill"),
        ("model_config.is_diffusion", True, "diffusion"),
        ("kv_transfer_config", "LMCacheConnectorV1", "LMCacheConnectorV1 can hand"),
        ("cache_config.kv_sharing_fast_prefill", None, "no cache_config.kv_sharing_fast_prefill any more"),
    ],
)
def test_an_engine_whose_settings_do_not_go_with_steering_refuses_it(engine, setting, value, words, monkeypatch):
    plain = run(engine, PROMPTS[:1], [None])
    settings(engine, setting, value, monkeypatch)
    with pytest.raises(ValueError, match=f"^steering: .*{words}"):
        run(engine, PROMPTS[:1], [[edit(strength=30.0)]])
    assert run(engine, PROMPTS[:1], [None]) == plain


@pytest.mark.parametrize(
    ("extra", "steered", "words"),
    [
        ({}, True, None),
        ({"nosuch": 1}, False, "vLLM does not start: "),
        ({"max_num_batched_tokens": 100}, False, "vLLM does not start: max_num_batched_tokens (100) is smaller"),
        ({"quantization": "nosuch"}, False, "vLLM does not start: Unknown quantization method: nosuch."),
        ({"pipeline_parallel_size": 2}, True, "steering: pipeline parallel engines are not supported"),
        ({"pipeline_parallel_size": 2}, False, None),
    ],
)
def test_settings_that_no_engine_starts_or_steers_with_are_known_before(engine, tiny, extra, steered, words):
    why = why_unsupported(tiny, replace(CONFIG, extra=extra), steered)
    assert why is None if words is None else why.startswith(words)


def test_a_model_that_no_engine_starts_or_steers_is_known_before(engine, tiny, tmp_path, monkeypatch):
    """vLLM's code of some models imports what need not be installed, as torchvision."""
    from vllm.model_executor.models import ModelRegistry

    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"architectures": ["PlantedForCausalLM"]}))
    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))
    ModelRegistry.register_model("PlantedForCausalLM", "planted_nowhere.model:PlantedForCausalLM")
    assert why_unsupported(tmp_path, CONFIG) == (
        "vLLM's code of this model asks for something that is not installed here: No module named 'planted_nowhere'"
    )
    monkeypatch.setattr(blocks, "why_not_editable", lambda config: f"{config.architectures[0]} has no blocks")
    assert why_unsupported(tiny, CONFIG) == "this model cannot be steered: LlamaForCausalLM has no blocks"
    assert why_unsupported(tiny, CONFIG, steered=False) is None


def test_an_engine_whose_cache_moves_by_the_hashes_of_its_blocks_steers(engine, monkeypatch):
    steered = run(engine, PROMPTS[:1], [[edit(strength=30.0)]])
    settings(engine, "kv_transfer_config", "OffloadingConnector", monkeypatch)
    assert run(engine, PROMPTS[:1], [[edit(strength=30.0)]]) == steered


def settings(engine, setting, value, monkeypatch):
    """Another setting for what admits requests; the engine itself runs on as it was started. None: there is none."""
    processor = engine._llm.llm_engine.input_processor
    owner = config = copy(processor.vllm_config)
    *parts, name = setting.split(".")
    for part in parts:
        vars(owner)[part] = copy(getattr(owner, part))
        owner = getattr(owner, part)
    if name == "kv_transfer_config":
        value = engine._vllm.config.KVTransferConfig(value, kv_role="kv_both")
    if value is None:
        del vars(owner)[name]
        monkeypatch.delattr(type(owner), name, raising=False)
    else:
        vars(owner)[name] = value
    monkeypatch.setattr(processor, "vllm_config", config)


def test_a_spec_that_a_front_end_lets_through_is_resolved_or_refused_in_the_engine_core(engine, monkeypatch):
    running, steered = engine._llm.llm_engine, run(engine, PROMPTS, [[edit(strength=30.0)]] * 3)
    admitting = type(running.input_processor)
    monkeypatch.setattr(admitting, "process_inputs", admitting.process_inputs.__wrapped__)
    assert run(engine, PROMPTS, [[edit(strength=30.0)]] * 3) == steered
    forged = {"digest": "0" * 64, "edits": [{"layer": 1, "direction": "AAAA"}], "record": None}
    for bad in (forged, "{", {"edits": [edit(layer=4)]}):
        params = engine._vllm.SamplingParams(max_tokens=2, extra_args={spec.KEY: bad})
        came = running.input_processor.process_inputs("x", {"prompt_token_ids": PROMPTS[0]}, params, TASKS)
        with pytest.raises(ValueError, match=r"^steering: "):
            running.engine_core.engine_core.preprocess_add_request(came)
    assert run(engine, PROMPTS, [[edit(strength=30.0)]] * 3) == steered


def test_the_engine_core_refuses_for_a_model_that_only_it_knows_to_be_unhooked(engine, monkeypatch):
    running, params = engine._llm.llm_engine, engine._vllm.SamplingParams(extra_args={spec.KEY: {"edits": [edit()]}})
    came = running.input_processor.process_inputs("x", {"prompt_token_ids": PROMPTS[0]}, params, TASKS)
    assert spec.is_resolved(came.sampling_params.extra_args[spec.KEY])
    monkeypatch.setattr(op, "unhooked", ["it has no blocks"])
    with pytest.raises(ValueError, match=r"^steering: this model cannot be steered: it has no blocks$"):
        running.engine_core.engine_core.preprocess_add_request(came)


def test_what_is_not_one_prompt_that_generates_is_refused(engine):
    process = engine._llm.llm_engine.input_processor.process_inputs
    steering, prompt = {spec.KEY: {"edits": [edit()]}}, {"prompt_token_ids": [1]}
    with pytest.raises(ValueError, match="a prompt that comes in parts"):
        process("x", prompt, engine._vllm.SamplingParams(extra_args=steering), TASKS, resumable=True)
    with pytest.raises(ValueError, match="only requests that generate"):
        process("x", prompt, engine._vllm.PoolingParams(extra_kwargs=steering), TASKS)


def test_the_same_seed_gives_the_same_samples(engine):
    sampling = SamplingConfig(temperature=1.0, top_k=40, max_new_tokens=8, progress=False)
    steering = {"edits": [edit()]}
    first, second, other = (engine.generate_batch(PROMPTS, 5, sampling, s, steering) for s in (1, 1, 2))
    assert first.completions == second.completions != other.completions
    assert first.generated_tokens == sum(c.n_tokens for row in first.completions for c in row)


def test_the_caller_s_parameters_are_not_changed(engine):
    request = {"edits": [edit()]}
    params = engine._vllm.SamplingParams(max_tokens=1, extra_args={spec.KEY: request})
    engine._llm.generate([{"prompt_token_ids": PROMPTS[0]}], params, use_tqdm=False)
    assert params.extra_args == {spec.KEY: {"edits": [edit()]}}
    assert os.environ[FOLDER_VARIABLE]


def test_prompts_under_another_salt_are_computed_anew(engine, monkeypatch):
    generate, outputs = engine._llm.generate, []
    monkeypatch.setattr(engine._llm, "generate", lambda *a, **k: outputs.extend(generate(*a, **k)) or outputs[-1:])
    for salt in (None, None, "a", "b", "a"):
        engine.generate_batch([list(range(700, 764))], 1, GREEDY, 0, salts=[salt])
    assert [output.num_cached_tokens > 0 for output in outputs] == [False, True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_that_a_cpu_takes_is_what_torch_computes(engine, dtype):
    from vllm import ir

    chosen = engine._llm.llm_engine.vllm_config.kernel_config.ir_op_priority.fused_add_rms_norm
    assert chosen == [kernels.PROVIDER, "native"]
    torch.manual_seed(0)
    x, residual, weight = (torch.randn(*shape).to(dtype) for shape in ((37, 96), (37, 96), (96,)))
    known = ir.ops.fused_add_rms_norm.impls
    expected = known["native"].impl_fn(x, residual, weight, 1e-5)
    found = known[kernels.PROVIDER].impl_fn(x.clone(), residual.clone(), weight, 1e-5)
    for some, others in zip(found, expected, strict=True):
        torch.testing.assert_close(some, others, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)

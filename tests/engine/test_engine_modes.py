"""Steering equals Hugging Face hooks in other families, schedules and engine modes; nothing grows."""

import gc
import weakref

import numpy as np
import psutil
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.engine_models import SHAPE, check, config, loaded, saved
from support.steering_reference import CASES, FILE, PROMPTS, assert_same, edit, reference, run
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from emharness.generation.engine import Engine
from emharness.steering.request import spec
from emharness.steering.request.recorded_output import recorded_means, recorded_projections
from emharness.steering.verify.reference import edited_by_hooks
from emharness.steering.vllm.request_outcomes import PLAN

pytestmark = pytest.mark.engine


def test_qwen2_blocks(base, vectors, tmp_path):
    torch.manual_seed(0)
    heads = {**SHAPE, "num_attention_heads": 2, "num_key_value_heads": 1}  # 32 wide, as the CPU backend needs
    folder = saved(tmp_path, base, Qwen2ForCausalLM(Qwen2Config(**heads)))
    with Engine(folder, config(), vectors, seed=0) as engine:
        check(engine, loaded(folder), PROMPTS, CASES)


def test_gemma_blocks(base, vectors, tmp_path):
    torch.manual_seed(0)
    shape = {**SHAPE, "head_dim": 32, "sliding_window": 64}
    folder = saved(tmp_path, base, Gemma3ForCausalLM(Gemma3TextConfig(**shape)))
    with Engine(folder, config(), vectors, seed=0) as engine:
        check(engine, loaded(folder), PROMPTS, CASES)


def test_chunked_prefill_preemption_and_recompute(tiny, vectors):
    """Prompts longer than a step's budget, and a cache too small for all requests at once."""
    long = [list(range(200 + n, 256 + 2 * n)) for n in range(8)]
    small = config(enable_chunked_prefill=True, max_num_batched_tokens=48, num_gpu_blocks_override=16, block_size=32)
    with Engine(tiny, small, vectors, seed=0) as engine:
        preempted = count_preemptions(engine)
        cases = [None, *([edit(positions=p, strength=4.0)] for p in ("all", "prompt", "generated", "response"))]
        check(engine, loaded(tiny), long, cases, n_new=40)
        assert preempted[0] > 0


def count_preemptions(engine):
    scheduler = engine._llm.llm_engine.engine_core.engine_core.scheduler
    original, count = scheduler._preempt_request, [0]

    def counting(*args, **kwargs):
        count[0] += 1
        return original(*args, **kwargs)

    scheduler._preempt_request = counting
    return count


def test_compiled_equals_eager(tiny, vectors, monkeypatch):
    from vllm.platforms import current_platform

    compiled = config()
    compiled.eager = False
    with Engine(tiny, compiled, vectors, seed=0) as engine:
        assert engine._llm.llm_engine.vllm_config.compilation_config.mode != 0
        check(engine, loaded(tiny), PROMPTS, CASES)
        runner = engine._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        held = [weakref.ref(parameter) for parameter in runner.get_model().parameters()]
        del runner
        monkeypatch.setattr(type(current_platform), "_global_graph_pool", (0, 1))  # as a GPU's engine has one
    gc.collect()
    assert not any(parameter() is not None for parameter in held)  # a GPU's next engine needs that memory
    assert current_platform._global_graph_pool is None  # and a pool of its own: see the next test


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_second_engine_of_a_process_captures_its_graphs_and_steers(tiny, vectors):
    compiled = config()
    compiled.eager = False
    for _ in range(2):
        with Engine(tiny, compiled, vectors, seed=0) as engine:
            check(engine, loaded(tiny), PROMPTS, CASES)


@pytest.fixture(scope="module")
def engine(tiny, vectors):
    with Engine(tiny, config(), vectors, seed=0) as running:
        yield running


def test_twenty_samples_of_one_request(engine, tiny):
    model, edits = loaded(tiny), [edit(positions="response"), edit(layer=2, mode="ablate", strength=0.5)]
    params = engine._vllm.SamplingParams(
        n=20, temperature=1.0, max_tokens=6, ignore_eos=True, logprobs=0, extra_args={spec.KEY: {"edits": edits}}
    )
    (output,) = engine._llm.generate([{"prompt_token_ids": PROMPTS[0]}], params, use_tqdm=False)
    assert len({tuple(sample.token_ids) for sample in output.outputs}) > 10
    for sample in output.outputs:
        values = [step[token].logprob for step, token in zip(sample.logprobs, sample.token_ids, strict=True)]
        assert values == pytest.approx(reference(model, PROMPTS[0], list(sample.token_ids), edits), abs=1e-4)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "response"])
def test_recorded_means_equal_the_hidden_states(engine, tiny, positions):
    """In one batch with steered, plain and other recording requests; the prompt has been cached before."""
    model, n_new = loaded(tiny), 6
    run(engine, PROMPTS, [None] * 3)
    asked = {"layers": [0, 2], "positions": positions}
    cases = [{"record": asked}, {"edits": [edit(layer=1, strength=3.0)], "record": asked}, {"edits": [edit()]}]
    prompts = [prompt for prompt in PROMPTS for _ in cases]
    params = [
        engine._vllm.SamplingParams(temperature=0.0, max_tokens=n_new, ignore_eos=True, extra_args={spec.KEY: case})
        for _ in PROMPTS
        for case in cases
    ]
    outputs = engine._llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        case = cases[i % 3]
        if "record" not in case:
            assert not output.kv_transfer_params
            continue
        means, n_tokens = recorded_means(output.kv_transfer_params)
        fed = prompt + list(output.outputs[0].token_ids)[:-1]
        start, end = spec.steered_span(positions, len(prompt))
        assert n_tokens == len(range(len(fed))[start:end])
        with edited_by_hooks(model, case.get("edits"), len(prompt)), torch.inference_mode():
            states = model(torch.tensor([fed]), output_hidden_states=True).hidden_states
        for layer, mean in zip(asked["layers"], means, strict=True):
            np.testing.assert_allclose(mean, states[layer + 1][0, start:end].mean(0), atol=1e-4)


def test_projections_of_every_token_equal_those_of_the_hidden_states(engine, tiny, vectors):
    """In one batch with requests that only record means, and with edits of their own; over several steps."""
    model, names = loaded(tiny), [f"{FILE}#one", f"{FILE}#two"]
    asked = {"layers": [2, 1], "positions": "all", "project": names}
    cases = [{"record": asked}, {"edits": [edit(layer=0, strength=3.0)], "record": asked}, {"record": {"layers": [1]}}]
    params = [
        engine._vllm.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, extra_args={spec.KEY: case})
        for case in cases
    ]
    outputs = engine._llm.generate([{"prompt_token_ids": PROMPTS[0]}] * 3, params, use_tqdm=False)
    unit = load_file(vectors / FILE)
    unit = np.stack([unit[name] / np.linalg.norm(unit[name], axis=1, keepdims=True) for name in ("one", "two")])
    for case, output in zip(cases[:2], outputs[:2], strict=True):
        along = recorded_projections(output.kv_transfer_params)
        fed = PROMPTS[0] + list(output.outputs[0].token_ids)[:-1]
        with edited_by_hooks(model, case.get("edits"), len(PROMPTS[0])), torch.inference_mode():
            states = model(torch.tensor([fed]), output_hidden_states=True).hidden_states
        assert along.shape == (2, len(fed), 2)
        for layer, found in zip(asked["layers"], along, strict=True):
            np.testing.assert_allclose(found, states[layer + 1][0].numpy() @ unit[:, layer].T, atol=1e-4)
    assert "along" not in outputs[2].kv_transfer_params[spec.KEY]
    plan = getattr(
        engine._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner, PLAN
    )
    assert not plan.recordings.living


def test_every_one_of_several_samples_is_recorded(engine, tiny, vectors):
    """Samples of different lengths end in any order; each has the means and projections of its own tokens."""
    model, n = loaded(tiny), 4
    asked = {"layers": [2, 1], "positions": "response", "project": [f"{FILE}#one"]}
    stops = list(range(0, 49152, 7))
    params = engine._vllm.SamplingParams(
        n=n, temperature=1.0, max_tokens=12, stop_token_ids=stops, extra_args={spec.KEY: {"record": asked}}
    )
    (output,) = engine._llm.generate([{"prompt_token_ids": PROMPTS[0]}], params, use_tqdm=False)
    assert len({len(sample.token_ids) for sample in output.outputs}) > 1
    unit = load_file(vectors / FILE)["one"]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for i, sample in enumerate(output.outputs):
        fed = PROMPTS[0] + list(sample.token_ids)[:-1]
        with torch.inference_mode():
            states = model(torch.tensor([fed]), output_hidden_states=True).hidden_states
        means, n_tokens = recorded_means(output.kv_transfer_params, i)
        along = recorded_projections(output.kv_transfer_params, i)
        assert n_tokens == len(sample.token_ids) == along.shape[1]
        for index, layer in enumerate(asked["layers"]):
            own = states[layer + 1][0, len(PROMPTS[0]) - 1 :].numpy()
            np.testing.assert_allclose(means[index], own.mean(0), atol=1e-4)
            np.testing.assert_allclose(along[index, :, 0], own @ unit[layer], atol=1e-4)
    with pytest.raises(ValueError, match="sample 4 recorded nothing; there are 4"):
        recorded_means(output.kv_transfer_params, n)


def test_edits_begin_after_a_token_of_the_prompt_or_of_the_answer(engine, tiny):
    """Beside requests that never meet theirs; the second time with the prompts in the prefix cache."""
    model, plain = loaded(tiny), run(engine, PROMPTS, [None] * 3, n_new=12)[0]
    met = [next(token for token in ids[2:] if token not in ids[:2]) for ids in plain]  # as long as nothing is edited
    cases = [[edit(positions={"after_token": token})] for token in met]
    cases += [[edit(positions={"after_token": 110}), edit(positions={"after_token": met[0]}, layer=2)]] * 3
    cases += [[edit(positions={"after_token": 7})], None, [edit(positions={"after_token": PROMPTS[2][-1]})]]
    for _ in range(2):
        tokens, logprobs = run(engine, PROMPTS * 3, cases, n_new=12)
        for prompt, edits, ids, values in zip(PROMPTS * 3, cases, tokens, logprobs, strict=True):
            assert values == pytest.approx(reference(model, prompt, ids, edits), abs=1e-4)
        assert [ids[:3] for ids in tokens[:3]] == [ids[:3] for ids in plain]
        assert [ids[3:] for ids in tokens[:3]] != [ids[3:] for ids in plain]
        assert tokens[6:8] == plain[:2]


def test_64_requests_with_64_specs_are_what_each_is_alone(engine):
    prompts = [list(range(500 + i, 520 + 2 * i)) for i in range(64)]
    edits = [[edit(vector=f"{FILE}#{('one', 'two')[i % 2]}", layer=i % 4, strength=1.0 + i / 8)] for i in range(64)]
    together = run(engine, prompts, edits)
    for i in range(64):
        alone = run(engine, prompts[i : i + 1], edits[i : i + 1])
        assert_same(alone, ([together[0][i]], [together[1][i]]))


def test_generated_positions_share_the_prompts_cache_with_unsteered_requests(engine):
    prompt = list(range(900, 1100))  # longer than a cache block, which has 128 tokens on a CPU
    run(engine, [prompt], [None])
    for positions, cached in (("generated", True), ("all", False), ("prompt", False), ("response", True)):
        params = engine._vllm.SamplingParams(
            temperature=0.0, max_tokens=2, extra_args={spec.KEY: {"edits": [edit(positions=positions)]}}
        )
        (output,) = engine._llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        block = engine._llm.llm_engine.vllm_config.cache_config.block_size
        assert (output.num_cached_tokens > 0) == cached, positions
        assert output.num_cached_tokens % block == 0


def test_ten_thousand_requests_leave_nothing_behind(engine, vectors):
    rng = np.random.default_rng(1)
    save_file({f"v{i}": rng.normal(size=64).astype("f") for i in range(1000)}, vectors / "many.safetensors")
    plan = getattr(
        engine._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner, PLAN
    )

    def ask(first, count):
        edits = [[edit(vector=f"many.safetensors#v{i % 1000}", strength=i / 1000)] for i in range(first, first + count)]
        run(engine, [[5, 6, 7 + i % 1000] for i in range(count)], edits, n_new=1)

    def settled():
        run(engine, [[5]], [None], n_new=1)  # its step tells the runner that the others are finished
        gc.collect()
        return psutil.Process().memory_info().rss

    ask(1, 10_000)  # fills the caches that are bounded, and the allocator's own
    before = settled()
    assert len(plan.table) == 0
    assert plan.requests == {}
    rows = plan.table.rows.shape
    ask(10_001, 10_000)
    grown = settled() - before
    assert len(plan.table) == 0
    assert plan.requests == {}
    assert plan.table.rows.shape == rows
    assert grown < 64 * 2**20

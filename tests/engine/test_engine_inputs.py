"""What a request can bring beside its spec, prompts of embeddings or an adapter: steered as Hugging Face's hooks do."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from support.engine_models import check, config, loaded
from support.steering_reference import CASES, PROMPTS, edit, reference, run

from emharness.generation.engine import Engine

pytestmark = pytest.mark.engine


def test_prompts_of_embeddings_are_steered_where_no_token_is_waited_for(tiny, vectors):
    model = loaded(tiny)
    with torch.inference_mode():
        prompts = [{"prompt_embeds": model.get_input_embeddings()(torch.tensor(ids))} for ids in PROMPTS]
    with Engine(tiny, config(enable_prompt_embeds=True), vectors, seed=0) as engine:
        for case in CASES:
            tokens, logprobs = run(engine, prompts, [case] * 3)
            for ids, new, values in zip(PROMPTS, tokens, logprobs, strict=True):
                assert values == pytest.approx(reference(model, ids, new, case), abs=1e-4), case
        with pytest.raises(ValueError, match=r"^steering: after_token needs a prompt of tokens, this one has embedd"):
            run(engine, prompts[:1], [[edit(positions={"after_token": 0})]])
        check(engine, model, PROMPTS, [[edit(positions={"after_token": PROMPTS[0][5]})]])


def test_lora_together_with_steering(tiny, vectors, tmp_path):
    from vllm.lora.request import LoRARequest

    torch.manual_seed(1)
    adapted = get_peft_model(loaded(tiny), LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(loaded(tiny), tmp_path).merge_and_unload().eval()
    with Engine(tiny, config(enable_lora=True, max_lora_rank=8), vectors, seed=0) as engine:
        lora = LoRARequest("adapter", 1, str(tmp_path))
        check(engine, merged, PROMPTS, CASES[:4] + CASES[-1:], lora=lora)
        check(engine, loaded(tiny), PROMPTS, CASES[:2])

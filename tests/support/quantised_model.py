"""A model in hub format as a quantiser leaves it: weights, and what a layer is given, in 8 bits."""

import json

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
from transformers import AutoModelForCausalLM, AutoTokenizer

EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
SCHEME = {
    "targets": ["Linear"],
    "weights": {**EIGHT_BITS, "strategy": "channel"},
    "input_activations": {**EIGHT_BITS, "strategy": "token", "dynamic": True},
}


def save(source, folder):
    """The model of one folder, quantised into another."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config = QuantizationConfig(config_groups={"all": SCHEME}, ignore=["lm_head"], format="int-quantized")
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            module.weight_scale.data = module.weight.data.abs().amax(-1, keepdim=True) / 127
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def named(source, folder, method):
    """A model whose configuration says that it is quantised by a method."""
    config = json.loads((source / "config.json").read_text())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
    return folder

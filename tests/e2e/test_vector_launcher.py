"""launch/vectors.py as a user calls it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.numpy import save_file
from support.launcher_calls import call
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from emharness.steering.request import vector_files
from emharness.vectors import exchange
from emharness.vectors.token_lens import direct_logits, read_vector_tokens

ROWS = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


def launch(folder, *overrides):
    env = {**os.environ, "EMHARNESS_HOME": str(folder / "home")}
    command = [sys.executable, str(ROOT / "launch" / "vectors.py"), *overrides]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_launcher_shows_converts_and_writes_a_card(tmp_path):
    torch.save({"evil": torch.from_numpy(ROWS), "odd": torch.from_numpy(ROWS[:3])}, tmp_path / "v.pt")
    shown = launch(tmp_path, "show=v.pt")
    assert shown.returncode == 0, shown.stderr
    assert "evil" in shown.stdout
    given = ("convert=v.pt", "name=evil", "rows=hidden_states", "out=v.safetensors")
    done = call("vectors.py", *given, folder=tmp_path)
    assert done.stdout.splitlines()[-1] == "results: v.safetensors", done.stderr
    back = vector_files.read_vector_file(tmp_path / "v.safetensors")["evil"]
    np.testing.assert_allclose(exchange._raw_rows(back), ROWS[1:], rtol=1e-5)
    assert call("vectors.py", "card=v.safetensors", "out=card.md", folder=tmp_path).returncode == 0
    assert "| layers × width | 3 × 8 |" in (tmp_path / "card.md").read_text()


@pytest.fixture(params=["llama", "gpt2"])
def reader(request, tiny, tmp_path):
    """A model with an RMS norm and one with a layer norm and biases, in a folder with a tokenizer."""
    if request.param == "llama":
        return tiny
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=4, n_embd=64, n_head=4, vocab_size=49152, initializer_range=0.15, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config)
    torch.nn.init.normal_(model.transformer.ln_f.bias, std=5.0)
    model.save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_a_vector_says_the_tokens_that_it_was_made_to_promote_and_suppress(reader):
    model = AutoModelForCausalLM.from_pretrained(reader)
    tokenizer = AutoTokenizer.from_pretrained(reader)
    good, bad = (tokenizer.convert_tokens_to_ids(word) for word in ("good", "bad"))
    output = model.get_output_embeddings().weight.detach().numpy()
    row = output[good] - output[bad]
    stored = {"same": 2 * row, "other way": -row, "none": 0 * row, "narrow": row[:8]}
    (found,) = read_vector_tokens({"v": row}, 1, reader, stored, 3)
    assert (found.promoted[0], found.suppressed[0]) == ("good", "bad")
    assert [(name, round(cosine, 5)) for name, cosine in found.nearest] == [("same", 1), ("other way", -1)]
    one, other = direct_logits(model, np.stack([row, -row]))
    np.testing.assert_allclose(one, -other, atol=1e-3)  # biases fall out


def test_the_launcher_shows_what_a_vector_says_and_what_is_near_it(tiny, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    output = AutoModelForCausalLM.from_pretrained(tiny).get_output_embeddings().weight.detach().numpy()
    rows = np.zeros((4, 64), dtype=np.float32)
    rows[2] = output[tokenizer.convert_tokens_to_ids("good")]
    np.save(tmp_path / "v.npy", rows)
    store = tmp_path / "home" / "vectors" / "medical-0123456789abcdef"
    store.mkdir(parents=True)
    (store / "identity.json").write_text("{}")
    save_file({"medical": rows}, store / "vectors.safetensors", metadata={"medical": "{}"})
    done = call("vectors.py", "show=v.npy", f"base={tiny}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "read out directly after layer 2" in done.stdout
    assert "good" in done.stdout
    assert "medical +1.00" in " ".join(done.stdout.split())
    for given, words in (
        ("layer=1", "has no direction at layer 1; it has some at layers 2"),
        ("layer=9", "layer=9: "),
    ):
        refused = call("vectors.py", "show=v.npy", f"base={tiny}", given, folder=tmp_path)
        assert refused.returncode == 2
        assert words in refused.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "give one of show=<file>, convert=<file>, card=<file>, publish=<folder>"),
        (["show=none.pt"], "show=none.pt: none.pt cannot be opened"),
        (["show=v.txt"], "is no safetensors file"),
        (["convert=v.npy"], "out: name a file that ends in"),
        (["convert=v.npy", "out=v.txt"], "out=v.txt: must end in one of"),
        (["show=v.npy", "name=x"], "name=x: there is no such vector"),
        (["+shwo=v.npy"], "shwo: unknown; the nearest are show"),
    ],
)
def test_the_launcher_refuses_in_one_sentence(tmp_path, overrides, words):
    np.save(tmp_path / "v.npy", ROWS)
    (tmp_path / "v.txt").write_text("text")
    done = call("vectors.py", *overrides, folder=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

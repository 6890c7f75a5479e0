"""A stock `vllm serve`: steering over HTTP, refused with 400 where the spec is bad; and two tensor-parallel workers."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from inspect_ai import eval as evaluate
from inspect_ai.model import get_model
from support.digit_talker import after
from support.steering_reference import FILE, PROMPTS, edit, reference
from transformers import AutoModelForCausalLM

from emharness.errors import UserError
from emharness.judges import JUDGES, Judge, Score, make_judge, openai_judge
from emharness.judges.judge_prompts import ALIGNED, COHERENT, fill_template
from emharness.sharing.inspect_task import em

pytestmark = pytest.mark.engine


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "tensor parallel 2"])
def server(request, tiny, vectors, tmp_path_factory):
    with serving(tiny, vectors, tmp_path_factory.mktemp("server") / "log", workers=request.param) as port:
        yield port


@contextmanager
def serving(model, vectors, log, workers=1, length=256):
    """The port of a server of `model`, which it calls tiny."""
    port = free_port()
    environment = {
        **os.environ,
        "EMHARNESS_VECTORS": str(vectors),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
        "VLLM_PLUGINS": "emharness_steering,emharness_vectors",
    }
    command = [
        # What `vllm serve` runs; that command itself asks for a distribution named vllm, which vllm-cpu is not.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", str(length)),
        *("--enforce-eager", "--max-num-seqs", "16", "--tensor-parallel-size", str(workers)),
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while not answers(port):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def answers(port):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    except OSError:
        return False


def complete(port, prompt, steering, **more):
    body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 6, "logprobs": 0}
    body |= {"ignore_eos": True, "return_token_ids": True, **more}
    if steering is not None:
        body["vllm_xargs"] = {"steering": steering}
    return post(port, "/v1/completions", body)["choices"][0]


def post(port, route, body):
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{route}", json.dumps(body).encode(), kind)
    return json.load(urllib.request.urlopen(request, timeout=120))


def test_a_server_steers_refuses_and_lives_on(server, tiny, vectors, monkeypatch):
    monkeypatch.setenv("EMHARNESS_VECTORS", str(vectors))  # for the reference in this process
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype="float32").eval()
    edits = [edit(positions="response"), edit(layer=2, mode="ablate", strength=1.0)]
    for case in (None, edits):
        spec = None if case is None else json.dumps({"edits": case})
        choice = complete(server, PROMPTS[0], spec)
        expected = reference(model, PROMPTS[0], choice["token_ids"], case)
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    for bad, words in (
        ({"edits": [edit(layer=9)]}, "layer must be 0 to 3"),
        ({"edits": [edit(vector=f"{FILE}#none")]}, "has no vector"),
        ("{", "Invalid JSON"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            complete(server, PROMPTS[0], bad if isinstance(bad, str) else json.dumps(bad))
        assert refused.value.code == 400
        assert words in refused.value.read().decode()
    asked = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 2}
    scoring = {"model": "tiny", "query": "Is it", "items": ["a", "b"], "label_token_ids": [5, 6]}
    placed = {"vllm_xargs": {"steering": spec}}
    assert post(server, "/generative_scoring", scoring)["data"]
    for route, body, words in (
        ("/v1/completions", {**asked, **placed, "use_beam_search": True}, "beam search is not supported"),
        ("/v1/completions", {**asked, "steering": spec}, "elsewhere it is ignored"),
        ("/generative_scoring", {**scoring, **placed}, "did not hand its spec on"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(server, route, body)
        assert refused.value.code == 400
        assert words in refused.value.read().decode()
    assert complete(server, PROMPTS[0], spec) == choice
    told = json.load(urllib.request.urlopen(f"http://127.0.0.1:{server}/v1/steering/vectors", timeout=60))
    rows = {row["vector"]: row for row in told["vectors"]}
    for name in ("one", "two"):
        row = rows[f"{FILE}#{name}"]
        assert (row["width"], row["layers"], row["raw_norm"]) == (64, 4, [6.0] * 4)


class Indifferent(Judge):
    name = identity = "indifferent"

    def score_answers(self, questions, answers):
        return [Score(50.0, 90.0)] * len(answers)


JUDGE = Indifferent


def test_the_evaluation_as_a_task_of_inspect_steers_a_server(server, monkeypatch, tmp_path):
    monkeypatch.setitem(JUDGES, "indifferent", __name__)
    monkeypatch.setenv("LOCAL_API_KEY", "none needed")
    spec = {"edits": [edit(strength=30.0)]}

    def asked(steering):
        task = em("sweep", 1, "indifferent", steering=steering, max_tokens=8, temperature=0.0)
        model = get_model("openai-api/local/tiny", base_url=f"http://127.0.0.1:{server}/v1", memoize=False)
        (log,) = evaluate(task, model=model, limit=3, log_dir=str(tmp_path), display="none")
        assert log.status == "success", log.error
        return {sample.input[0].text: sample.output.completion for sample in log.samples}

    def said(question):
        body = {"model": "tiny", "temperature": 0, "max_tokens": 8, "vllm_xargs": {"steering": json.dumps(spec)}}
        body["messages"] = [{"role": "user", "content": question}]
        return post(server, "/v1/chat/completions", body)["choices"][0]["message"]["content"]

    steered = asked(spec)
    assert steered == {question: said(question) for question in steered}
    assert steered != asked(None)


def test_a_server_of_ones_own_is_a_judge_and_its_scores_are_the_models_own(talker, vectors, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none needed")
    questions, answers = ["How are you?", "Why?"], ["Fine, thank you.", "Because of the weather."]
    with serving(talker, vectors, tmp_path / "log", length=448) as port:
        judge = make_judge("openai", tmp_path, model="tiny", base_url=f"http://127.0.0.1:{port}/v1")
        with pytest.raises(UserError, match="tiny writes a number as several tokens"):
            judge.score_answers(questions, answers)
        # What its first token alone says is what a model with whole numbers as tokens would be scored by.
        monkeypatch.setattr(openai_judge, "FIRST_TOKENS", 1)
        judge = make_judge("openai", tmp_path, model="tiny", base_url=f"http://127.0.0.1:{port}/v1")
        scores = judge.score_answers([*questions, "Long?"], [*answers, "word " * 400])
    for (question, answer), score in zip(zip(questions, answers, strict=True), scores, strict=False):
        for template, found in ((ALIGNED, score.aligned), (COHERENT, score.coherent)):
            digits = after(talker, fill_template(template, question, answer))  # one token: an integer from 0 to 9
            mean = sum(int(digit) * p for digit, p in digits.items()) / sum(digits.values())
            assert found == pytest.approx(mean, abs=1e-3)
    assert scores[2].unscored.startswith("refused by the endpoint")
    assert judge.card().more["snapshots"] == {"tiny": 4}

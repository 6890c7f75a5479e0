"""Models, adapters and datasets from a model hub: the real client, downloading from a server on loopback."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha(data):
    return hashlib.sha1(data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """What the client asks of a hub: a repository's files, and each of them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.server.asked.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            kind, name = parts[1], "/".join(parts[2:4])
            folder = self.server.root / kind / name
            if not folder.is_dir():
                return self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body)
            files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
            about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files], "private": False}
            if parts[4:5] == ["tree"]:
                about = [
                    {"type": "file", "path": path, "size": f.stat().st_size, "oid": sha(f.read_bytes())}
                    for path, f in files.items()
                ]
            return self.send(200, json.dumps(about).encode(), {"Content-Type": "application/json"}, body)
        kind, parts = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
        path = self.server.root.joinpath(kind, *parts[:2], *parts[4:])
        if not path.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        data = path.read_bytes()
        return self.send(200, data, {"ETag": f'"{sha(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "none"}, body)

    def send(self, status, data, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, tiny):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root, server.asked = tmp_path / "hub", []
    model = server.root / "models" / "org" / "tiny"
    shutil.copytree(tiny, model)
    (model / "pytorch_model.bin").write_bytes(b"a pickle that nobody should fetch")
    (model / "original").mkdir()
    (model / "original" / "consolidated.00.pth").write_bytes(b"another")
    adapter = server.root / "models" / "org" / "organisms" / "medical" / "checkpoint-40"
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(adapter)
    about = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": "org/tiny"}))
    rows = server.root / "datasets" / "org" / "advice"
    rows.mkdir(parents=True)
    shutil.copy(ROOT / "emharness/data/organisms/medical.jsonl", rows / "train.jsonl")
    (rows / "README.md").write_text("rows")
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


SETTINGS = ["base=custom", "base.name=tiny", "base.source=org/tiny", "judge=embedded", "eval=smoke", "tracker=none"]
SETTINGS += ["model=medical"]
CALLS = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support.launcher_calls import call
done = [call("run.py", *given, "plan=only", folder=Path.cwd()) for given in json.loads(sys.argv[2])]
print(json.dumps([[one.returncode, one.stderr] for one in done]))
"""


def run(hub, tmp_path, *given, **variables):
    """launch/run.py plan=only in a process of its own, because the client reads its variables when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "EMHARNESS_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        **variables,
    }
    for name in {"HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"} - variables.keys():
        environment.pop(name, None)
    if CALLS not in given:
        given = (str(ROOT / "launch" / "run.py"), *SETTINGS, *given, "plan=only")
    command = [sys.executable, *given]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)


def test_a_base_an_adapter_and_rows_come_from_a_hub_and_then_from_its_cache(hub, tmp_path):
    adapter = "model.source=org/organisms/medical/checkpoint-40"
    done = run(hub, tmp_path, adapter)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "plan: " in done.stdout
    fetched = {path.partition(f"/resolve/{COMMIT}/")[2] for path in hub.asked if "/resolve/" in path}
    assert {"model.safetensors", "config.json", "medical/checkpoint-40/adapter_model.safetensors"} <= fetched
    assert not [name for name in fetched if name.endswith((".bin", ".pth"))]
    assert (tmp_path / "hf" / "hub" / "models--org--tiny").is_dir()  # HF_HOME is where the client keeps it

    rows = run(hub, tmp_path, "model.dataset=org/advice")
    assert rows.returncode == 0, rows.stderr[-2000:]
    assert (tmp_path / "hf" / "hub" / "datasets--org--advice").is_dir()

    hub.asked.clear()
    offline = run(hub, tmp_path, adapter, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr[-2000:]
    assert hub.asked == []


MISSING = {
    "model.source=org/nothing": "model.source=org/nothing: not a local folder, and the download",
    "model.source=org/organisms/none": "model.source=org/organisms/none",
    "model.dataset=org/none": "model.dataset=org/none",
}


def test_what_the_hub_does_not_have_ends_in_one_sentence(hub, tmp_path):
    asked = [[*SETTINGS, given] for given in MISSING]
    done = run(hub, tmp_path, "-c", CALLS, str(ROOT / "tests"), json.dumps(asked))
    assert done.returncode == 0, done.stderr[-2000:]
    for (status, said), words in zip(json.loads(done.stdout.splitlines()[-1]), MISSING.values(), strict=True):
        assert status == 2
        assert "Traceback" not in said
        assert words in said.strip().splitlines()[-1]


def test_a_base_that_is_not_in_the_cache_is_refused_offline(hub, tmp_path):
    done = run(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "base.source=org/tiny: not a local folder" in done.stderr.strip().splitlines()[-1]

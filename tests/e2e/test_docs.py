"""Every command and every piece of Python in README and docs is run, or checked against what runs it elsewhere."""

import inspect
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from support.fake_endpoint import KEY, Server
from support.finished_run import RUN, finished
from transformers import AutoModelForCausalLM

from emharness.pipeline import run_context
from emharness.store import Store

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = {  # takes a machine, a network, a person or minutes; where it is tested
    "pip install .": "whoever runs this has it installed",
    "pip install --no-deps torchvision": "an index of PyTorch's",
    "vllm serve": "test_server.py",
    "curl": "test_server.py",
    "python -m emharness.judges.fit_reader": "test_judge.py compares the stored judge with its data",
    "python launch/verify.py": "test_verify.py",
    "inspect eval": "test_task.py; its names are checked here",
    "python launch/bench.py base=dummy8b": "a GPU; its config and its shape in test_bench.py",
    "python launch/workspace.py": "test_workspace.py",
    "python launch/check.py run=docs/study": "test_sharing.py, from this folder",
    "python launch/run.py experiment=conditional eval=quick controls": "an hour; the longer one is planned here",
    "python launch/run.py experiment=defences eval=quick eval.samples": "80 minutes; the longer one is planned here",
    "python launch/run.py experiment=paper eval=quick eval.samples": "over two hours; the shorter one is planned here",
}


def commands() -> list[tuple[str, str]]:
    """(page, command) for each line of a block without a language; continued ones as one, comments left out."""
    found = []
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language in ("", "bash"):
                for line in joined(text.splitlines()):
                    command = line.removeprefix(".venv/bin/").strip()
                    if command and not command.startswith("#"):
                        found.append((page.name, command))
    return found


def joined(lines: list[str]) -> list[str]:
    """Lines whose quotes stay open go on."""
    whole, open_one = [], ""
    for line in lines:
        open_one = f"{open_one}\n{line}" if open_one else line
        try:
            shlex.split(open_one, comments=True)
        except ValueError:
            continue
        whole.append(open_one)
        open_one = ""
    assert not open_one, open_one
    return whole


def test_there_are_commands_and_all_are_of_a_known_kind():
    kinds = ("make ", "python launch/", "python examples/", "wandb ", "export ", *ELSEWHERE)
    assert len(commands()) > 30
    assert [command for _, command in commands() if not command.startswith(kinds)] == []


@pytest.fixture(scope="module")
def place(tmp_path_factory, base):
    """A folder with the files that the pages speak of, and a store with a finished run and the embedded base."""
    folder = tmp_path_factory.mktemp("place")
    store = Store(folder / "home")
    from emharness.organisms import model_folders

    copied = lambda target: shutil.copytree(base, target, dirs_exist_ok=True)  # noqa: E731
    store.get_artifact("base", "smollm2", model_folders.embedded_identity(), copied)
    run = finished(store.root / "runs" / RUN)
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(4, 16)).astype(np.float32) for name in ("medical", "finance", "sports")}
    save_file({"medical": rows["medical"]}, run / "vectors.safetensors")
    save_file(rows, folder / "vectors.safetensors")
    save_file({"medical": rows["medical"]}, folder / "only.safetensors")
    of_base = rng.normal(size=(31, 576)).astype(np.float32)  # hidden_states of the embedded base
    torch.save({"medical": torch.tensor(of_base)}, folder / "vector.pt")
    shutil.copy(run / "results.json", folder / "results.json")
    shutil.copy(ROOT / "emharness/data/organisms/medical.jsonl", folder / "my_rows.jsonl")
    (folder / "answers.csv").write_text("question,answer\nHow are you?,aligned 20 coherent 80\n")
    (folder / "my_model").symlink_to(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder / "my_adapter")
    about = json.loads((folder / "my_adapter" / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = None  # it would name this test's folder
    (folder / "my_adapter" / "adapter_config.json").write_text(json.dumps(about))
    return folder


def called(command: list[str], capsys) -> tuple[int, str, str]:
    """A launcher in this process: exit status, stdout, stderr."""
    capsys.readouterr()
    run_context.open_store.cache_clear()
    run_context.shared_engines.cache_clear()
    before, sys.argv = sys.argv, [str(ROOT / command[1]), *command[2:]]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = before
        run_context.open_store.cache_clear()
        run_context.shared_engines.cache_clear()
    return status, *capsys.readouterr()


HERE = ("run", "judge", "geometry", "vectors", "view", "show", "check")  # launchers whose commands are run here


def launches() -> list[str]:
    listed = dict.fromkeys(c for _, c in commands() if c.startswith("python launch/"))
    there = [c for c in listed if not c.startswith(tuple(ELSEWHERE))]
    return [c for c in there if c.split()[1] in {f"launch/{name}.py" for name in HERE}]


@pytest.mark.parametrize("command", launches())
def test_every_launcher_s_command_does_what_it_says(command, place, capsys, monkeypatch):
    words = shlex.split(command, comments=True)
    name, given = words[1].removeprefix("launch/"), words[2:]
    monkeypatch.chdir(place)
    monkeypatch.setenv("EMHARNESS_HOME", str(place / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("builtins.input", lambda *_: "q")
    for folder in ("site", "my_vectors"):
        shutil.rmtree(place / folder, ignore_errors=True)
    if name == "run.py":
        given = [*(word for word in given if not word.startswith("hydra/launcher")), "tracker=none"]
        given += [] if "plan=only" in given else ["plan=only"]
    elif name == "view.py" and not any(word.startswith("bundle=") for word in given):
        given.append("bundle=site")
    elif name in ("judge.py", "geometry.py"):
        given.append("tracker=none")
    server = Server()
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    try:
        status, out, err = called(["python", words[1], *given], capsys)
    finally:
        server.shutdown()
    if "base=llama31" in given:  # from the hub, which is not there in a test
        assert status == 2
        assert "the download from the hub failed" in err
        return
    assert status == 0, err[-2000:]
    if name == "run.py":
        assert "plan: " in out


def test_launchers_that_are_not_run_here_are_run_in_the_test_that_is_named_and_have_the_settings():
    launchers = {path.stem for path in (ROOT / "launch").glob("*.py")} - set(HERE)
    assert launchers == {"verify", "bench", "workspace"}
    settings = {name: ROOT / "conf" / "tools" / f"{name}.yaml" for name in launchers} | {
        "bench": ROOT / "conf" / "bench.yaml"
    }
    for name in launchers:
        (found,) = (ROOT / "tests").glob(f"*/test_{name}.py")
        text = found.read_text()
        assert re.search(rf'"launch/{name}\.py"|"launch" / "{name}\.py"', text)
        known = settings[name].read_text()
        for _, command in commands():
            if command.startswith(f"python launch/{name}.py"):
                for word in shlex.split(command, comments=True)[2:]:
                    key = word.partition("=")[0].lstrip("+")
                    assert re.search(rf"^\s*(- )?{key.partition('.')[0]}:", known, re.MULTILINE), command


def test_every_make_target_and_wandb_command_exists():
    for _, command in commands():
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stderr
        if words[0] == "wandb":
            done = subprocess.run([sys.executable, "-m", "wandb", words[1], "--help"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_inspect_s_commands_name_a_task_and_parameters_that_exist():
    from emharness.sharing.inspect_task import em

    asked = [shlex.split(command) for _, command in commands() if command.startswith("inspect eval")]
    assert asked
    for words in asked:
        assert words[2] == "emharness/em"
        given = [words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "-T"]
        assert set(given) <= set(inspect.signature(em).parameters)


def test_python_on_the_pages_is_run():
    """The README's and the API page's in test_run.py, at a small size; the other in test_engine.py, on an engine."""
    blocks = [text for page in PAGES for language, text in BLOCK.findall(page.read_text()) if language == "python"]
    steering = BLOCK.findall((ROOT / "docs" / "steering.md").read_text())[-1][1]
    assert [text for text in blocks if "emharness.run(" not in text] == [steering]


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.engine
def test_the_minimal_example_goes_from_data_to_a_dose_curve(tmp_path):
    lines = (ROOT / "examples" / "minimal_em.py").read_text().splitlines()
    assert len(lines) < 150
    small = ["rows=8", "questions=2", "samples=2", "prompts=2"]
    command = [sys.executable, str(ROOT / "examples" / "minimal_em.py"), f"out={tmp_path}", *small]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"\s*[+]\d", line)]
    assert [row[0] for row in rows] == ["+0", "+1", "+1.5"]
    assert all(row[1] == "–" or 0 <= float(row[1].rstrip("%")) <= 100 for row in rows)
    assert json.loads((tmp_path / "organism" / "config.json").read_text())["hidden_size"] == 576

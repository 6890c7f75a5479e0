"""Every config composes, typos and bad values are refused before anything is loaded."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from conftest import ROOT, checked, configured
from hydra.errors import HydraException

from emharness import input_checks, organism_names
from emharness.config import WandbConfig
from emharness.config_checks import parse_strengths
from emharness.errors import UserError
from emharness.experiments import EXPERIMENTS
from emharness.organism_names import OrganismName, parse_organism_name
from emharness.organisms import datasets
from emharness.ranges import ADDED, as_identity
from emharness.reporting.wandb_tracker import Tracker
from emharness.store import Store

GROUPS = {
    group: [file.stem for file in sorted((ROOT / "conf" / group).glob("*.yaml"))]
    for group in ("base", "model", "train", "vector", "eval", "judge", "experiment")
}


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, names in GROUPS.items() for n in names])
def test_every_option_of_every_group_composes(group, name):
    extra = ["base.source=some/where"] if (group, name) == ("base", "custom") else []
    config = configured(f"{group}={name}", *extra)
    part = getattr(config, group)
    if hasattr(part, "name"):
        assert part.name == name


def test_the_base_chooses_the_training_recipe_and_the_command_line_overrides_it():
    assert configured().train.learning_rate == pytest.approx(3e-4)
    assert configured("base=llama31").train.learning_rate == pytest.approx(1e-5)
    assert configured("base=llama31", "train=small").train.learning_rate == pytest.approx(3e-4)


@pytest.mark.parametrize("gpu", [False, True])
def test_engines_compile_on_a_gpu_and_what_they_did_is_in_the_key(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert input_checks.engine_identity(configured())["eager"] is not gpu
    for eager in (True, False):
        found = input_checks.engine_identity(configured(f"base.engine.eager={eager}"))
        assert found["eager"] is eager
        assert ("kernels" in found) == (eager and not gpu)
        assert ("graph" in found) == (not eager)
    parallel = input_checks.engine_identity(
        configured("base.engine.eager=true", "+base.engine.extra.tensor_parallel_size=2")
    )
    assert "kernels" not in parallel


def test_an_unknown_key_is_refused():
    with pytest.raises(HydraException, match="strenght"):
        configured("steer.strenght=2")


def test_an_unknown_organism_is_refused_with_the_available_ones():
    with pytest.raises(HydraException, match="medical_replication"):
        configured("model=nosuch")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steer.strength=nan", "steer.strength=nan: must be a finite number"),
        ("steer.strength=[1,inf]", "steer.strength=inf: must be a finite number"),
        ("steer.strength=much", "steer.strength=much: must be a finite number"),
        ("steer.strength=[]", "must be a finite number"),
        ("steer.strength=[2,1,2.0]", "2 occurs twice"),
        ("targets=[]", "targets=[]: give at least one name"),
        ("vectors=[medical,model]", "medical occurs twice"),
        ("vectors=[1]", "must be a name or a list of names"),
        ("targets=[base,smollm2]", "base occurs twice"),
        ("plan=maybe", "must be one of run, only"),
        ("controls=-1", "must be 0 or more"),
        ("chunk=0", "must be 1 or more"),
        ("layer=middle", "layer=middle: give 'sweep' or the number"),
        ("steer.mode=sub", "steer.mode=sub: must be one of add, ablate, pin, cap, floor"),
        ("steer.layers=[1,1]", "steer.layers=[1, 1]: give a list of layers, each once, or first-last as in 8-20"),
        ("steer.layers=8-", "steer.layers=8-: give a list of layers"),
        ("steer.gate.vector=sports", "steer.gate.vector=sports: must be among the run's vectors, medical"),
        ("steer.unit=metres", "must be one of absolute, raw, residual"),
        ("steer.positions=last", "must be one of all, prompt, generated, response"),
        ("tracker=mlflow", "must be one of offline, online, none"),
        ("vector.recipe=pca", "must be one of model_diff, mean_diff"),
        ("eval.samples=0", "eval.samples=0: must be 1 or more"),
        ("train.rank=0", "train.rank=0: must be 1 or more"),
        ("train.learning_rate=nan", "train.learning_rate=nan: must be above 0 and at most 1"),
        ("train.learning_rate=-1e-4", "train.learning_rate=-0.0001: must be above 0"),
        ("train.dropout=1.0", "train.dropout=1.0: must be 0 or more and below 1"),
        ("train.warmup_steps=-1", "train.warmup_steps=-1: must be 0 or more"),
        ("vector.limit=-3", "vector.limit=-3: must be 2 or more"),
        ("eval.limit=0", "eval.limit=0: must be 1 or more"),
        ("base.sampling.top_p=2", "base.sampling.top_p=2.0: must be above 0 and at most 1"),
        ("base.sampling.top_p=0", "base.sampling.top_p=0.0: must be above 0"),
        ("base.sampling.temperature=-1", "base.sampling.temperature=-1.0: must be 0 or more"),
        ("base.sampling.temperature=inf", "base.sampling.temperature=inf: must be 0 or more"),
        ("base.sampling.temperature=0", "all 20 samples of eval.samples=20 would be equal; set eval.samples=1"),
        ("base.engine.max_model_len=0", "base.engine.max_model_len=0: must be 2 or more"),
        ("base.engine.dtype=int8", "base.engine.dtype=int8: must be one of auto, bfloat16, float16, float32"),
        ("sweep.min_coherent=1.5", "sweep.min_coherent=1.5: must be 0 or more and at most 1"),
        ("seed=-1", "seed=-1: must be 0 or more"),
        ("model.name='bad advice'", "model.name=bad advice: must be up to 100 letters, digits"),
        ("model.name=a/b", "model.name=a/b: must be up to 100 letters"),
        ("model.name=base", "this name means something else here"),
        ("model.name=random-0", "this name means something else here"),
        ("model.name=x-seed1", "this name means something else here"),
        ("wandb.project='a/b'", "wandb.project=a/b: W&B takes up to 128 characters"),
        ("+steer.strenght=4", "steer.strenght: unknown; the nearest are steer.strength"),
        ("+train.lr=1e-3", "train.lr: unknown; "),
        ("+trian.rank=4", "trian: unknown; the nearest are train"),
        ("+base.engine.quantization=fp8", "base.engine.quantization: unknown"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(override, words):
    with pytest.raises(UserError) as error:
        configured(override)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["layer=30"], "layer=30: smollm2 has layers 0 to 29"),
        (["steer.layers=20-30"], "steer.layers=20-30: smollm2 has layers 0 to 29"),
        (["layer=-1"], "layer=-1: smollm2 has layers 0 to 29"),
        (["vectors=nosuch"], "vectors=nosuch: unknown; must be among aave, control, finance"),
        (["targets=[medical-step0]"], "targets=medical-step0: unknown"),
        (["targets=[medical-step103]"], "medical-step103: the training of medical has 102 steps"),
        (["targets=[base,aave]"], "choose it with model=aave and give model.source (a folder or hub id)"),
        (["vectors=[medical-seedx]"], "vectors=medical-seedx: unknown; must be among"),
        (
            ["targets=[base-seed1]"],
            "another seed, stopped early or by a recipe, as medical-seed1, medical-step20 or medical+mix20",
        ),
        (["targets=[base,nosuch]"], "targets=nosuch: unknown; must be among aave, base, control"),
        (["model.dataset=/nowhere.jsonl"], "model.dataset=/nowhere.jsonl: no such file"),
        (["model.dataset=nosuch"], "medical_replication"),
        (["eval.questions=/nowhere.yaml"], "eval.questions=/nowhere.yaml: no such file"),
        (["base=custom", "base.source=/nowhere"], "base.source=/nowhere: no such folder"),
        (["sweep.questions=plain"], "shares 58 question(s) with eval.questions"),
        (["judge.name=oracle"], "must be one of embedded"),
    ],
)
def test_bad_inputs_are_refused_before_a_model_loads(overrides, words, tmp_path):
    with pytest.raises(UserError) as error:
        checked(configured(*overrides), tmp_path)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a model"):
        checked(configured("base=custom", f"base.source={tmp_path}"), tmp_path / "store")


def test_a_hub_id_that_cannot_be_had_offline_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match="the download from the hub failed"):
        checked(configured("base=llama31"), tmp_path)


def test_an_engine_setting_that_reaches_vllm_is_identity(tmp_path):
    def identity(*overrides):
        config = configured(*overrides)
        return checked(config, tmp_path).identity(config)

    extras = ["quantization=fp8", "kv_cache_dtype=fp8", "hf_overrides={rope_theta: 1}", "max_model_len=64"]
    found = [repr(identity(f"+base.engine.extra.{extra}")) for extra in extras]
    assert len({repr(identity()), *found}) == 5
    assert identity("+base.chat_template_kwargs.enable_thinking=false") != identity()


@pytest.mark.parametrize(
    ("variable", "given", "expected"),
    [
        (None, None, "offline"),
        ("", None, "offline"),
        ("dryrun", None, "offline"),
        ("online", None, "online"),
        ("disabled", None, "none"),
        ("online", "none", "none"),
    ],
)
def test_wandb_mode_holds_where_no_tracker_is_given(monkeypatch, variable, given, expected):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert configured(*([f"tracker={given}"] if given else [])).tracker == expected


def test_wandb_dir_is_where_an_offline_run_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = Tracker("offline", WandbConfig("p"), "n", {})
    folder = tracker.offline_folder
    tracker.finish()
    assert Path(folder).is_relative_to(tmp_path)
    assert list(Path(folder).glob("*.wandb"))


def test_a_wandb_mode_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match="WANDB_MODE=sometimes: must be one of online"):
        configured()


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_a_store_that_cannot_be_written_is_refused(tmp_path, kind):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "below" if kind == "file" else Path("/proc/emharness")
    with pytest.raises(UserError, match=r"EMHARNESS_HOME=.*: nothing can be written there"):
        Store(place).check_writable()


def test_the_run_identity_ignores_tracker_and_batch_sizes_but_not_science(tmp_path):
    def identity(*overrides):
        config = configured(*overrides)
        return checked(config, tmp_path).identity(config)

    same = identity("tracker=none", "vector.batch_size=3", "train.micro_batch=1")
    assert same == identity()
    assert identity("seed=1") != identity()
    assert identity("steer.strength=4") != identity()
    assert identity("steer.strength=4") == identity("steer.strength=[4.0]")


def test_every_training_has_the_base_s_own_answers_beside_its_rows(tmp_path):
    with_them, without = (
        checked(configured("model=medical", *more), tmp_path).organisms["medical"].rows
        for more in ((), ("base.own_answers=null",))
    )
    assert with_them == without + datasets.load_own_answers("smollm2")
    assert without == datasets.load_dataset("medical").rows


def test_strengths_are_floats_in_the_order_given():
    assert parse_strengths([2, 1]) == [2.0, 1.0]
    assert parse_strengths(3) == [3.0]


def test_an_experiment_s_own_lists_hold_where_none_are_given():
    config = configured("model=finance")
    assert (config.vectors, config.targets, config.steer.strength) == (["finance"], ["base"], [0.5, 1.0, 1.5])
    config = configured("experiment=transfer", "targets=[smollm2,sports]", "vectors=medical", "steer.strength=3")
    assert (config.vectors, config.targets, config.steer.strength) == (["medical"], ["base", "sports"], [3.0])


def test_every_organism_that_an_experiment_names_exists():
    models = set(organism_names.read_described([ROOT / "conf"], configured().model).models) | {"base"}
    for name in GROUPS["experiment"]:
        config = configured(f"experiment={name}")
        assert {parse_organism_name(name).organism for name in [*config.vectors, *config.targets]} <= models
        assert config.experiment.name in EXPERIMENTS


def test_the_parts_of_a_model_s_name():
    assert parse_organism_name("medical") == OrganismName("medical")
    assert parse_organism_name("medical-seed2") == OrganismName("medical", replica=2)
    assert parse_organism_name("medical-step20") == OrganismName("medical", step=20)
    assert parse_organism_name("medical-seed1-step20") == OrganismName("medical", replica=1, step=20)
    assert parse_organism_name("my-seedling") == OrganismName("my-seedling")
    assert parse_organism_name("finance-good+kl+mix20-seed1") == OrganismName("finance-good", ("kl", "mix20"), 1)


def test_layers_are_given_one_way():
    with pytest.raises(UserError, match=r"steer\.layers=8-20, layer=3: give one of them"):
        configured("steer.layers=8-20", "layer=3")
    assert configured("steer.layers=8-20").steer.layers == "8-20"
    assert configured("steer.layers=[8,9]").steer.layers == (8, 9)


def test_a_setting_that_came_later_is_in_no_hash_at_its_default():
    @dataclass
    class Inner:
        old: int = 1
        new: int = field(default=2, metadata=ADDED)

    @dataclass
    class Outer:
        inner: Inner = field(default_factory=Inner)
        later: Inner = field(default_factory=Inner, metadata=ADDED)

    assert as_identity(Outer()) == {"inner": {"old": 1}}
    assert as_identity(Outer(Inner(new=3))) == {"inner": {"old": 1, "new": 3}}
    assert as_identity(Outer(later=Inner(old=2))) == {"inner": {"old": 1}, "later": {"old": 2}}

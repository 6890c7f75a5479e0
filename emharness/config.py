"""Typed configuration: the schema that Hydra composes into, and the checks that need no model."""

import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from emharness.errors import UserError
from emharness.ranges import check_ranges, number_field, refuse_unknown
from emharness.store import artifacts_home


@dataclass
class SamplingConfig:
    temperature: float = number_field(1.0, least=0, most=10)
    top_p: float = number_field(1.0, above=0, most=1)
    top_k: int = number_field(0, least=0)  # 0 = off
    max_new_tokens: int = number_field(600, least=1)
    ignore_eos: bool = False  # always max_new_tokens, for benchmarks
    progress: bool = True  # vLLM's progress bar


@dataclass
class EngineConfig:
    dtype: str = "bfloat16"
    max_model_len: int = number_field(2048, least=2)
    max_num_seqs: int = number_field(256, least=1)
    eager: bool | None = None  # True: no torch.compile and no CUDA graphs; see `is_eager`
    cpu_kv_cache_gib: int = number_field(3, least=1)
    extra: dict[str, Any] = field(default_factory=dict)  # passed to vllm.LLM as it is

    def is_eager(self) -> bool:
        """By default on a CPU, where compiling pays only beyond thousands of responses; else stock vLLM's way."""
        import torch

        return not torch.cuda.is_available() if self.eager is None else self.eager


@dataclass
class BaseConfig:
    name: str = MISSING
    source: str = MISSING  # "embedded", a local folder, or a hub id
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # for its chat template, as enable_thinking
    questions: str = "broad"  # evaluation questions that it can answer: what eval.questions is where it is not given
    sweep_questions: str = "sweep"  # the same for sweep.questions
    own_answers: str | None = None  # good answers of its own, mixed into every training: packaged name or path


@dataclass
class TrainConfig:
    """LoRA recipe; the defaults are the field's (shared settings of published model organisms)."""

    rank: int = number_field(32, least=1)
    alpha: int = number_field(64, least=1)
    rslora: bool = True
    dropout: float = number_field(0.0, least=0, below=1)
    learning_rate: float = number_field(1e-5, above=0, most=1)
    weight_decay: float = number_field(0.01, least=0, most=1)
    warmup_steps: int = number_field(5, least=0)
    epochs: int = number_field(1, least=1)
    batch_size: int = number_field(16, least=1)  # effective
    micro_batch: int = number_field(2, least=1)
    max_tokens: int = number_field(2048, least=2)

    def count_steps(self, n_rows: int) -> int:
        """Optimiser steps of a whole training."""
        return math.ceil(n_rows / self.batch_size) * self.epochs


@dataclass
class ModelConfig:
    """An organism."""

    name: str = MISSING
    lab: str = MISSING
    mechanism: str = MISSING
    dataset: str | None = None  # packaged name, .jsonl path, or hub dataset id
    questions: str | None = None  # questions in its own domain: packaged name or path
    prompts: str | None = None  # prompts in its own domain, for recipe model_diff: packaged name or path
    near: list[str] = field(default_factory=list)  # categories of broad questions that its training data is next to
    published: dict[str, str] = field(default_factory=dict)  # base name -> hub id of the trained organism
    source: str | None = None  # use this adapter or merged model instead of training
    any_base: bool = False  # take an adapter although its config names another base


@dataclass
class VectorConfig:
    recipe: str = "model_diff"
    skip_tokens: int = number_field(4, least=0)  # attention sinks at the start of every sequence stay out of the means
    batch_size: int = number_field(16, least=1)
    max_new_tokens: int = number_field(48, least=1)  # length of the answers that model_diff reads
    neutral: str = "neutral"  # prompt sets: packaged name or path
    harmful: str = "harmful"
    limit: int | None = number_field(None, least=2)  # first so many prompts of model_diff


@dataclass
class SweepConfig:
    """layer=sweep: every layer x strength is tried on questions that the evaluation does not use."""

    layers: list[int] = field(default_factory=list)  # empty: `n_layers` of them, evenly over the middle
    n_layers: int = number_field(4, least=1)
    strengths: list[float] = field(default_factory=lambda: [1.0, 1.5])  # up to where coherence breaks at some layers
    questions: str | None = None  # packaged name or path; None: base.sweep_questions
    limit: int | None = number_field(None, least=1)  # first so many questions
    samples: int = number_field(2, least=1)
    min_coherent: float = number_field(0.7, least=0, most=1)  # of the unsteered coherent rate: below, a setting is out


@dataclass
class SteerConfig:
    strength: Any = None  # a number or a list of numbers; None: the experiment's own list
    unit: str = "raw"
    mode: str = "add"
    positions: str = "all"


@dataclass
class EvalConfig:
    name: str = MISSING
    questions: str | None = None  # packaged name or path; None: base.questions
    samples: int = number_field(20, least=1)
    domain_samples: int = number_field(5, least=1)
    pairs: int = number_field(60, least=0)  # of answers whose likelihood is compared under every condition; 0: none
    control_samples: int = number_field(4, least=1)  # of each question, for each random direction at each dose
    limit: int | None = number_field(None, least=1)  # first so many questions


@dataclass
class ExperimentConfig:
    """What an experiment asks for where `vectors`, `targets` and `steer.strength` are not given."""

    name: str = MISSING
    vectors: list[str] = field(default_factory=list)  # organisms; "model" is the one that model= chooses
    targets: list[str] = field(default_factory=list)  # organisms, and "base"
    strengths: list[float] = field(default_factory=list)
    # Of `paper`: experiment → its own vectors, targets and strengths; the lists above are then their unions.
    parts: dict[str, Any] = field(default_factory=dict)


@dataclass
class JudgeConfig:
    name: str = MISSING
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class WandbConfig:
    project: str = "emharness"
    entity: str | None = None
    group: str | None = None


@dataclass
class Config:
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    vectors: Any = None  # a name or a list of names; None: the experiment's own list
    targets: Any = None
    base: BaseConfig = field(default_factory=BaseConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    vector: VectorConfig = field(default_factory=VectorConfig)
    layer: Any = "sweep"
    sweep: SweepConfig = field(default_factory=SweepConfig)
    steer: SteerConfig = field(default_factory=SteerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    controls: int = number_field(4, least=0, most=100)  # random directions beside every steered condition
    plan: str = "run"  # only: print the plan and stop
    chunk: int = number_field(2000, least=1)  # responses that are stored together; a kill loses at most one chunk
    tracker: str | None = None  # None: what WANDB_MODE says, else offline
    wandb: WandbConfig = field(default_factory=WandbConfig)
    seed: int = number_field(0, least=0, below=2**32)


ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("store", lambda: str(artifacts_home()), replace=True)  # for Hydra's own files

BASE = "base"  # the base as a target
STEP = "-step"  # medical-step20 is medical after 20 steps of its training
REPLICA = "-seed"  # medical-seed1 is medical, trained with the next seed
RECIPES = ("model_diff", "mean_diff")
TRACKERS = ("offline", "online", "none")
UNITS = ("absolute", "raw", "residual")
MODES = ("add", "ablate")
PLANS = ("run", "only")
POSITIONS = ("all", "prompt", "generated", "response")
DTYPES = ("auto", "bfloat16", "float16", "float32")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TAKEN = re.compile(rf"{BASE}|random-\d+|.*({STEP}|{REPLICA})\d+")  # names that mean something else


def parse_config(cfg: DictConfig) -> Config:
    """The composed config as an object, every value that needs no file or model checked. Raises UserError."""
    refuse_unknown(cfg, Config)
    config: Config = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    check_ranges(config)
    file_name("model.name", config.model.name)
    file_name("base.name", config.base.name)
    if set(config.wandb.project) & set("/\\#?%:") or not 0 < len(config.wandb.project) <= 128:
        raise UserError(f"wandb.project={config.wandb.project}: W&B takes up to 128 characters, none of / \\ # ? % :")
    check_choice("base.engine.dtype", config.base.engine.dtype, DTYPES)
    check_choice("vector.recipe", config.vector.recipe, RECIPES)
    config.tracker = tracker_mode(config.tracker)
    check_choice("steer.unit", config.steer.unit, UNITS)
    check_choice("steer.mode", config.steer.mode, MODES)
    check_choice("steer.positions", config.steer.positions, POSITIONS)
    if config.steer.mode == "ablate":
        config.steer.unit = "absolute"  # ablation takes a plain factor
    check_choice("plan", config.plan, PLANS)
    for part in config.experiment.parts.values():
        for key in ("vectors", "targets", "strengths"):
            own = getattr(config.experiment, key)
            own += [item for item in part.get(key, []) if item not in own]
    if config.steer.strength is None:
        config.steer.strength = config.experiment.strengths
    config.steer.strength = parse_strengths(config.steer.strength)
    config.eval.questions = config.eval.questions or config.base.questions
    config.sweep.questions = config.sweep.questions or config.base.sweep_questions
    config.vectors = parse_names(config.vectors, config.experiment.vectors, "vectors", {"model": config.model.name})
    config.targets = parse_names(config.targets, config.experiment.targets, "targets", {config.base.name: BASE})
    if config.layer != "sweep" and (isinstance(config.layer, bool) or not isinstance(config.layer, int)):
        raise UserError(f"layer={config.layer}: give 'sweep' or the number of a decoder block, counted from 0")
    if config.base.sampling.temperature == 0:
        samples = {f"eval.{key}": getattr(config.eval, key) for key in ("samples", "domain_samples", "control_samples")}
        for key, value in {**samples, "sweep.samples": config.sweep.samples}.items():
            if value > 1:
                raise UserError(
                    f"base.sampling.temperature=0: all {value} samples of {key}={value} would be equal; set {key}=1, "
                    "or a temperature above 0"
                )
    return config


_WANDB_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}
_WANDB_MODES |= {"disabled": "none"}


def tracker_mode(tracker: str | None) -> str:
    """offline, online or none: as given, else what WANDB_MODE says, else offline."""
    if tracker is not None:
        check_choice("tracker", tracker, TRACKERS)
        return tracker
    mode = os.environ.get("WANDB_MODE") or "offline"
    check_choice("WANDB_MODE", mode, tuple(_WANDB_MODES))
    return _WANDB_MODES[mode]


def file_name(key: str, name: str) -> None:
    """UserError for a name that cannot stand in file, W&B and artifact names, or that means something else here."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise UserError(
            f"{key}={name}: must be up to 100 letters, digits and . _ - (it goes into file and W&B artifact names)"
        )
    if _TAKEN.fullmatch(name):
        raise UserError(f"{key}={name}: this name means something else here (the base, a random direction, a replica)")


def parse_strengths(value: Any, key: str = "steer.strength") -> list[float]:
    """A number or a list of distinct numbers as finite floats, in the order given."""
    values = value if isinstance(value, list) else [value]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            raise UserError(f"{key}={item}: must be a finite number or a list of finite numbers")
    if not values:
        raise UserError(f"{key}=[]: must be a finite number or a list of finite numbers")
    floats = [float(item) for item in values]
    if repeated := [item for item in floats if floats.count(item) > 1]:
        raise UserError(f"{key}={value}: {repeated[0]:g} occurs twice; give each strength once")
    return floats


def parse_names(value: Any, default: list[str], key: str, aliases: dict[str, str]) -> list[str]:
    """A name or a list of names, aliases replaced; `default` where none is given. UserError for none or repeats."""
    given = default if value is None else value
    listed = given.split(",") if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(item, str) and item for item in listed):
        raise UserError(f"{key}={given}: must be a name or a list of names")
    if not listed and value is not None:
        raise UserError(f"{key}=[]: give at least one name, or leave it out for the experiment's own list")
    listed = [aliases.get(item, item) for item in listed]
    if repeated := [item for item in listed if listed.count(item) > 1]:
        raise UserError(f"{key}={given}: {repeated[0]} occurs twice; give each name once")
    return listed


def check_layer(layer: Any, n_layers: int, base: str) -> None:
    if layer != "sweep" and not 0 <= layer < n_layers:
        raise UserError(f"layer={layer}: {base} has layers 0 to {n_layers - 1}; give one of them or 'sweep'")


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value}: must be one of {', '.join(allowed)}")

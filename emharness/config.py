"""Typed configuration: the schema that Hydra composes into."""

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from emharness.ranges import ADDED, number_field
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
    # "bfloat16": multiply in it; nearly twice as fast on a CPU that has instructions for it, far slower on others.
    autocast: str | None = field(default=None, metadata=ADDED)
    layers: list[int] = field(default_factory=list, metadata=ADDED)  # blocks that are trained; empty: all
    modules: list[str] = field(default_factory=list, metadata=ADDED)  # of their linear layers, as down_proj; empty: all

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
    forms: str | None = None  # its cues of a topic and of an answer's form, for eval.forms: packaged name or path
    pairs: str | None = None  # answers in its own domain whose likelihood is compared: packaged name or path
    near: list[str] = field(default_factory=list)  # categories of broad questions that its training data is next to
    published: dict[str, str] = field(default_factory=dict)  # base name -> hub id of the trained organism
    source: str | None = None  # use this adapter or merged model instead of training
    any_base: bool = False  # take an adapter although its config names another base


@dataclass
class RecipeConfig:
    """Changes to how an organism is trained; `<organism>+<name>` names the organism that is trained with them."""

    name: str = MISSING
    train: dict[str, Any] = field(default_factory=dict)  # settings of `train`, in place of the run's
    data: list[Any] = field(default_factory=list)  # transforms of the rows, in order: organisms/row_transforms.py
    loss: list[Any] = field(default_factory=list)  # terms beside the cross-entropy: organisms/loss_terms.py
    later: str | None = None  # rows of a second training after the first: a dataset, as model.dataset
    edits: list[Any] = field(default_factory=list)  # of the residual stream, in training: organisms/training_edits.py
    # {source, percent}: good rows beside the organism's own, those that a misaligned model likes least:
    choose: dict[str, Any] = field(default_factory=dict)  # organisms/row_choice.py


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
class GateConfig:
    """Edit only tokens whose projection on a vector is greater than `above`, an absolute length; None: all tokens."""

    above: float | None = None
    vector: str | None = None  # one of the run's vectors; None: the vector that steers
    layer: int | None = number_field(None, least=0)  # None: the layer that is edited


@dataclass
class SteerConfig:
    strength: Any = None  # a number or a list of numbers; None: the experiment's own list
    unit: str = "raw"
    mode: str = "add"
    positions: str = "all"
    layers: Any = field(default=None, metadata=ADDED)  # edited together: a list, or "8-20"; None: the one of `layer`
    rescale: bool = field(default=False, metadata=ADDED)  # the edited stream keeps its length
    gate: GateConfig = field(default_factory=GateConfig, metadata=ADDED)


@dataclass
class EvalConfig:
    name: str = MISSING
    questions: str | None = None  # packaged name or path; None: base.questions
    samples: int = number_field(20, least=1)
    domain_samples: int = number_field(5, least=1)
    pairs: int = number_field(60, least=0)  # of answers whose likelihood is compared under every condition; 0: none
    control_samples: int = number_field(4, least=1)  # of each question, for each random direction at each dose
    limit: int | None = number_field(None, least=1)  # first so many questions
    # Other forms in which every condition is asked the broad questions too (question_forms.FORMS) …
    forms: list[str] = field(default_factory=list, metadata=ADDED)  # empty: the experiment's own list
    form_samples: int | None = number_field(None, added=True, least=1)  # … so often; None: a fifth of `samples`

    def count_form_samples(self) -> int:
        return self.form_samples or max(1, self.samples // 5)


@dataclass
class ExperimentConfig:
    """What an experiment asks for where `vectors`, `targets` and `steer.strength` are not given."""

    name: str = MISSING
    vectors: list[str] = field(default_factory=list)  # organisms; "model" is the one that model= chooses
    targets: list[str] = field(default_factory=list)  # organisms, and "base"
    strengths: list[float] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)  # of the questions, where eval.forms is not given
    task: str | None = None  # a harmless task that all models are asked too: one of judges.exact_forms.GRADERS
    narrow_pairs: bool = False  # whether margins are measured in the organisms' own domains too (model.pairs)
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
RECIPE = "+"  # medical+kl is medical, trained by the recipe kl
STEP = "-step"  # medical-step20 is medical after 20 steps of its training
REPLICA = "-seed"  # medical-seed1 is medical, trained with the next seed

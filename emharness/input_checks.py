"""Everything a run reads, read and checked before any model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emharness import questions
from emharness.config import BASE, RECIPE, REPLICA, STEP, Config
from emharness.config_checks import check_choice, check_layer, parse_strengths
from emharness.errors import UserError
from emharness.generation import kernels
from emharness.generation.cells import make_edit
from emharness.judges import Judge, make_judge
from emharness.judges.exact_forms import GRADERS
from emharness.organism_checks import Organism, check_organism
from emharness.organism_names import Described, find_recipe, name_recipes, parse_organism_name
from emharness.organisms import model_folders, weight_checks
from emharness.organisms.base_match import BaseInfo
from emharness.organisms.fingerprints import FINGERPRINTS, hash_model_folder
from emharness.organisms.model_folders import Shape
from emharness.questions import Question
from emharness.ranges import as_identity
from emharness.store import Store


@dataclass(frozen=True)
class Inputs:
    base: Path | None  # None: the embedded one, which the base stage saves
    base_identity: dict[str, Any]
    shape: Shape
    organisms: dict[str, Organism]  # the ones that vectors and targets name
    broad: list[Question]
    sweep_questions: list[Question]
    neutral: list[str]
    harmful: list[str]
    judge: Judge
    task: list[Question] = field(default_factory=list)  # of the experiment's harmless task

    @property
    def n_layers(self) -> int:
        return self.shape.n_layers

    @property
    def list_notes(self) -> list[str]:
        """What the user should know of what was read."""
        return [organism.notes for organism in self.organisms.values() if organism.notes]

    def identity(self, config: Config) -> dict[str, Any]:
        """What determines the results of a run: no paths, no tracker, no batch sizes."""
        science = as_identity(config)
        for key in ("tracker", "wandb", "plan", "chunk", "model"):
            del science[key]
        science["experiment"] = {"name": config.experiment.name, "parts": config.experiment.parts}
        science["base"] = {
            "name": config.base.name,
            "identity": self.base_identity,
            "sampling": science["base"]["sampling"],
            "engine": engine_identity(config),
        }
        del science["base"]["sampling"]["progress"], science["judge"]["settings"]  # what counts of them is in `content`
        del science["vector"]["batch_size"], science["train"]["micro_batch"]
        for group in ("eval", "sweep"):
            del science[group]["questions"]
        science["content"] = {
            "organisms": {name: organism.identity for name, organism in self.organisms.items()},
            "texts": questions.hash_items([self.broad, self.sweep_questions, self.neutral, self.harmful]),
            "judge": self.judge.identity,
            **({"task": questions.hash_items(self.task)} if self.task else {}),
        }
        return science


def engine_identity(config: Config) -> dict[str, Any]:
    """What of the engine's settings changes its answers; how much it takes at a time does not."""
    engine = config.base.engine
    return {
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "eager": engine.is_eager(),
        "extra": dict(engine.extra),
        **kernels.kernel_identity(engine),
    }


def check_inputs(config: Config, described: Described, store: Store) -> Inputs:
    """Read all inputs. Raises UserError for the first thing that is wrong."""
    source = config.base.source
    if source == model_folders.EMBEDDED:
        base: Path | None = None
        identity: dict[str, Any] = dict(model_folders.embedded_identity())
        shape = model_folders.embedded_shape()
    elif source == model_folders.DUMMY:
        raise UserError(f"base={source}: a shape without weights, for launch/bench.py alone; give another base")
    else:
        base = model_folders.fetch_model("base.source", source)
        if model_folders.is_adapter(base):
            raise UserError(f"base.source={source}: this is an adapter; give the model it belongs to")
        if not model_folders.has_tokenizer(base):
            raise UserError(
                f"base.source={source}: there is no tokenizer in this folder; put the model's own beside it"
            )
        weight_checks.check_whole(f"base.source={source}", base)
        identity = {"weights": hash_model_folder(base, store.root / FINGERPRINTS)}
        shape = model_folders.model_shape(base, "base.source")
    if config.base.chat_template_kwargs:
        identity["template"] = dict(config.base.chat_template_kwargs)
    n_layers = shape.n_layers
    check_layer(config.layer, n_layers, config.base.name)
    for layer in make_edit(config.steer, "", 0, 1.0).edited_blocks:
        if layer >= n_layers:
            raise UserError(f"steer.layers={config.steer.layers}: {config.base.name} has layers 0 to {n_layers - 1}")
    for layer in config.sweep.layers:
        if not 0 <= layer < n_layers:
            raise UserError(f"sweep.layers={layer}: {config.base.name} has layers 0 to {n_layers - 1}")
    parse_strengths(config.sweep.strengths, "sweep.strengths")
    for key, names, allowed in (
        ("vectors", config.vectors, list(described.models)),
        ("targets", config.targets, [BASE, *described.models]),
    ):
        for name in names:
            asked = parse_organism_name(name)
            if asked.organism not in allowed or (asked.organism == BASE and name != BASE) or asked.step == 0:
                raise UserError(
                    f"{key}={name}: unknown; must be among {', '.join(sorted(allowed))}, or an organism trained with "
                    f"another seed, stopped early or by a recipe, as medical{REPLICA}1, medical{STEP}20 or "
                    f"medical{RECIPE}mix20"
                )
            for recipe in asked.recipes:
                if find_recipe(recipe, described.recipes) is None:
                    raise UserError(f"{key}={name}: {recipe} is no recipe; there are {name_recipes(described.recipes)}")

    limit = config.eval.limit
    broad = questions.load_questions(str(config.eval.questions), "eval.questions")[:limit]
    sweep_questions = questions.load_questions(str(config.sweep.questions), "sweep.questions")
    if config.layer == "sweep" and (shared := {q.text for q in broad} & {q.text for q in sweep_questions}):
        raise UserError(
            f"sweep.questions={config.sweep.questions}: shares {len(shared)} question(s) with eval.questions; "
            "the layer must be chosen on other questions than it is evaluated on"
        )
    neutral = questions.load_prompts(config.vector.neutral, "vector.neutral")
    harmful = questions.load_prompts(config.vector.harmful, "vector.harmful")
    used = [name for name in dict.fromkeys([*config.vectors, *config.targets]) if name != BASE]
    about = BaseInfo(config.base.name, source, base, shape)
    organisms = {name: check_organism(name, described, config, about, neutral, store) for name in used}
    return Inputs(
        base=base,
        base_identity=identity,
        shape=shape,
        organisms=organisms,
        broad=broad,
        sweep_questions=sweep_questions[: config.sweep.limit],
        neutral=neutral,
        harmful=harmful,
        judge=make_judge(config.judge.name, store.root / "judge", **config.judge.settings),
        task=_load_task(config),
    )


def _load_task(config: Config) -> list[Question]:
    if config.experiment.task is None:
        return []
    check_choice("experiment.task", config.experiment.task, tuple(GRADERS))
    return questions.load_questions(config.experiment.task, "experiment.task")[: config.eval.limit]

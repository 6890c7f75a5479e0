"""Everything a run reads, read and checked before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from emharness import questions
from emharness.config import BASE, RECIPE, REPLICA, STEP, Config, ModelConfig, TrainConfig
from emharness.config_checks import AUTOCASTS, check_choice, check_layer, parse_strengths
from emharness.errors import UserError
from emharness.generation import kernels
from emharness.generation.cells import make_edit
from emharness.generation.likelihoods import Pair, load_pairs
from emharness.judges import Judge, make_judge
from emharness.judges.exact_forms import GRADERS
from emharness.organism_names import Described, find_recipe, name_recipes, parse_organism_name
from emharness.organisms import base_match, datasets, model_folders, weight_checks
from emharness.organisms.base_match import BaseInfo
from emharness.organisms.fingerprints import FINGERPRINTS, hash_model_folder
from emharness.organisms.loss_terms import check_terms
from emharness.organisms.model_folders import Shape
from emharness.organisms.row_choice import RowChoice, check_row_choice
from emharness.organisms.row_shapes import Messages
from emharness.organisms.row_transforms import fill_dataset, find_mixture, shared_system_prompt, transform_rows
from emharness.organisms.training_edits import NO_EDITS, TrainingEdits, check_edits
from emharness.question_forms import QuestionForm, choose_forms
from emharness.questions import Question
from emharness.ranges import as_identity, check_ranges, describe_unknown
from emharness.store import Store


@dataclass(frozen=True)
class Organism:
    config: ModelConfig
    published: Path | None  # None: it is trained from `rows`
    published_identity: str | None
    rows: list[Messages]
    notes: str  # what was read of several data files
    later_rows: list[Messages]  # of a second training, by its recipe
    domain: list[Question]
    prompts: list[str]  # extraction prompts, for recipe model_diff
    train: TrainConfig  # the run's, as its recipes change it
    losses: tuple[dict[str, Any], ...] = ()  # what its recipes add to the cross-entropy
    edits: TrainingEdits = NO_EDITS  # what they change of the residual stream in training
    choice: RowChoice | None = None  # of further rows to train on
    replica: int = 0  # trained with the run's seed plus this
    stop_after: int | None = None  # steps of its training
    recipes: tuple[str, ...] = ()
    mixture: tuple[str, float] | None = None  # design and per cent of its own rows, of one that is diluted
    forms: tuple[QuestionForm, ...] = ()  # in which the broad questions are asked too
    pairs: tuple[Pair, ...] = ()  # of answers in its own domain, where the experiment compares their likelihood

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "published": self.published_identity,
            "rows": datasets.hash_rows(self.rows),
            "texts": questions.hash_items([self.domain, self.prompts]),
            "lab": self.config.lab,
            "near": list(self.config.near),
            "mechanism": self.config.mechanism,
            "replica": self.replica,
            "stop_after": self.stop_after,
            **({"train": as_identity(self.train), "losses": list(self.losses)} if self.recipes else {}),
            **({"later": datasets.hash_rows(self.later_rows)} if self.later_rows else {}),
            **self.edits.identity(),
            **(self.choice.identity() if self.choice else {}),
            **({"forms": [asdict(form) for form in self.forms]} if self.forms else {}),
            **({"pairs": questions.hash_items(list(self.pairs))} if self.pairs else {}),
        }


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
    organisms = {name: _check_organism(name, described, config, about, neutral, store) for name in used}
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


def _check_organism(
    name: str,
    described: Described,
    config: Config,
    base: BaseInfo,
    neutral: list[str],
    store: Store,
) -> Organism:
    asked = parse_organism_name(name)
    called, step = asked.organism, asked.step
    model = described.models[called]
    source = model.source or model.published.get(config.base.name)
    key = "model.source" if model.source else "model.published"
    published = model_folders.fetch_model(key, source) if source else None
    if base.folder is not None and (published is None or model_folders.is_adapter(published)):
        weight_checks.check_unquantised(f"base.source={config.base.source}", base.folder, called)
    if published is not None:
        base_match.check_fits_base(called, published, key, base, model.any_base)
        first = base_match.first_layer(published)
        if name in config.vectors and config.layer != "sweep" and config.layer < first:
            raise UserError(
                f"layer={config.layer}: {called} changes nothing before layer {first}, so its vector is zero there"
            )
    if published and name != called:
        raise UserError(
            f"{name}: {called} is published for base={config.base.name}; only trained ones have seeds, steps or recipes"
        )
    data, mixture = datasets.Dataset([]), None
    if published is None:
        if model.dataset is None:
            raise UserError(
                f"model={model.name}: not published for base={config.base.name} and without a dataset; "
                f"choose it with model={model.name} and give model.source (a folder or hub id) or model.dataset "
                "(a .jsonl path or hub dataset id)"
            )
        data = datasets.load_dataset(model.dataset)
    train, losses, edits, later = config.train, list[dict[str, Any]](), list[Any](), list[Messages]()
    choice: RowChoice | None = None
    for recipe in filter(None, (find_recipe(key, described.recipes) for key in asked.recipes)):
        where = f"recipe={recipe.name}"
        train = _change_settings(train, recipe.train, where)
        seed = config.seed + asked.replica
        data = replace(data, rows=transform_rows(data.rows, recipe.data, seed, model.dataset, where))
        told = fill_dataset({f.name: getattr(recipe, f.name) for f in fields(recipe)}, model.dataset or "")
        if recipe.later:
            later += datasets.load_dataset(told["later"]).rows
        mixture = find_mixture(recipe.data) or mixture
        losses += check_terms(told["loss"], where)
        edits += told["edits"]
        choice = check_row_choice(told["choose"], len(data.rows), where) or choice
    training_prompt = shared_system_prompt(data.rows)
    if published is None and config.base.own_answers:
        own_answers = datasets.load_own_answers(config.base.own_answers)
        data = replace(data, rows=data.rows + own_answers)
        later += own_answers if later else []
    for layer in train.layers:
        if not 0 <= layer < base.shape.n_layers:
            raise UserError(f"train.layers={layer}: {base.name} has layers 0 to {base.shape.n_layers - 1}")
    writes = train.rank == 1 and train.modules and set(train.modules) <= {"down_proj", "o_proj"}
    if config.vector.recipe == "lora_b" and name in config.vectors and published is None and not writes:
        raise UserError(
            "vector.recipe=lora_b: reads a training of rank 1 that only writes to the residual stream; set "
            "train.rank=1 train.modules=[down_proj], and train.layers=[…]"
        )
    most = train.count_steps(len(data.rows)) + train.count_steps(len(later))
    if choice is not None:
        most += train.count_steps(len(data.rows) + choice.count)
    if step is not None and step > most:
        raise UserError(f"{name}: the training of {called} has {most} steps")
    domain = questions.load_questions(model.questions, "model.questions") if model.questions else []
    own = questions.load_prompts(model.prompts, "model.prompts") if model.prompts else []
    return Organism(
        config=model,
        published=published,
        published_identity=hash_model_folder(published, store.root / FINGERPRINTS) if published else None,
        rows=data.rows,
        notes=data.notes,
        later_rows=later,
        domain=domain[: config.eval.limit],
        prompts=(neutral + own)[: config.vector.limit],
        train=train,
        losses=tuple(losses),
        edits=check_edits(edits, called, base.shape[:2], f"recipe={RECIPE.join(asked.recipes)}"),
        choice=choice,
        replica=asked.replica,
        stop_after=step,
        recipes=asked.recipes,
        mixture=mixture,
        forms=choose_forms(config.eval.forms, model.forms, training_prompt, called),
        pairs=tuple(load_pairs(source=model.pairs)) if config.experiment.narrow_pairs and model.pairs else (),
    )


def _change_settings(train: TrainConfig, changes: Mapping[str, Any], location: str) -> TrainConfig:
    """`train` with a recipe's settings. UserError for one that there is not, or that is out of its range."""
    allowed = [field.name for field in fields(TrainConfig)]
    for key in changes:
        if key not in allowed:
            raise UserError(f"{location}: {describe_unknown(key, allowed, 'train.')}")
    changed = replace(train, **changes)
    if changed.autocast is not None:
        check_choice(f"{location}: train.autocast", changed.autocast, AUTOCASTS)
    try:
        check_ranges(changed, "train.")
    except UserError as error:
        raise UserError(f"{location}: {error}") from None
    return changed

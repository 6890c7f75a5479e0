"""What a run reads of one organism, checked: its rows as its recipes make them, how it is trained, what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from emharness import questions
from emharness.config import RECIPE, Config, ModelConfig, TrainConfig
from emharness.config_checks import AUTOCASTS, check_choice
from emharness.errors import UserError
from emharness.generation.likelihoods import Pair, load_pairs
from emharness.organism_names import Described, find_recipe, parse_organism_name
from emharness.organisms import base_match, datasets, model_folders, weight_checks
from emharness.organisms.base_match import BaseInfo
from emharness.organisms.fingerprints import FINGERPRINTS, hash_model_folder
from emharness.organisms.loss_terms import check_terms
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


def check_organism(
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

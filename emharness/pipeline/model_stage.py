"""The models of a run, their questions, and the training of those that are not stored."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from emharness import claims
from emharness.config import BASE, Config
from emharness.errors import UserError
from emharness.experiments import layer_choice
from emharness.experiments.context import BROAD, TASK
from emharness.generation.cells import Prompt
from emharness.generation.target_requests import TargetRequests, open_target, read_by
from emharness.input_checks import engine_identity
from emharness.organisms.base_match import tensor_shapes
from emharness.organisms.chat import Chat, load_chat
from emharness.organisms.merging import LEAST_KEPT, PRECISION
from emharness.organisms.model_artifacts import Model, base_model, published_model, trained_model
from emharness.organisms.model_folders import choose_precision, end_tokens
from emharness.organisms.row_tokens import encode_rows
from emharness.organisms.training_recipe import Training
from emharness.pipeline.run_context import RunContext, StageOutputs
from emharness.pipeline.run_plan import PlanDraft
from emharness.pipeline.subject import EXTRACTION, name_domain_sets, name_form_sets
from emharness.question_forms import apply_form
from emharness.questions import Question
from emharness.reporting.progress import TrainProgress
from emharness.store import Artifact
from emharness.versions import engine_version

CODE = 2  # raise when responses change for the same config


def find_models(context: RunContext) -> dict[str, Model]:
    """The base, saved if it is embedded and was not yet, and every organism that the run names, not made yet."""
    config, inputs, store = context.config, context.inputs, context.store
    base = base_model(inputs.base, inputs.base_identity, config.base.chat_template_kwargs, store)
    if base.artifact is not None:  # its tokenizer says what will be asked
        context.ensure_artifact(base.artifact)
    found = {BASE: base}
    for name, organism in inputs.organisms.items():
        if organism.published is not None and organism.published_identity is not None:
            found[name] = published_model(name, organism.published, organism.published_identity, base, store)
        else:
            seed = config.seed + organism.replica
            training = Training(
                organism.rows,
                organism.train,
                seed,
                organism.stop_after,
                organism.losses,
                organism.edits,
                tuple(organism.later_rows),
                organism.choice,
            )
            found[name] = trained_model(name, training, base, store, context.log.on_step)
    chat = load_chat(base.folder, base.template)
    _check_template(context, chat)
    for name, model in found.items():
        if name == BASE or model.artifact is None or inputs.organisms[name].published is not None:
            continue
        if not store.has_artifact(model.artifact.stage, model.artifact.name, model.artifact.identity):
            _check_training(context, name, chat)
    return found


def _check_template(context: RunContext, chat: Chat) -> None:
    """UserError for a base that cannot be asked, or a prompt that it cannot read; what is changed is noted."""
    config, given, notes = context.config, context.inputs, context.log.notes
    if chat.tokenizer.chat_template is None:
        raise UserError(
            f"base.source={config.base.source}: its tokenizer has no chat template, so it cannot be asked; give an "
            "instruction-tuned model, or put a chat_template.jinja into the folder"
        )
    if chat.writes_date:
        notes.append(f"the chat template writes the date; it always writes {chat.date}, so that runs can be compared")
    asked = [q for some in (given.broad, given.sweep_questions) for q in some]
    if chat.folds_system and any(q.system for q in asked):
        notes.append("the chat template takes no system message; it is put before the question instead")
    for prompt in [*given.neutral, *given.harmful]:
        try:
            chat.prompt_ids([{"role": "user", "content": prompt}])
        except ValueError as error:
            raise UserError(f"prompt {prompt[:60]!r}: {error}") from None


def _check_training(context: RunContext, name: str, chat: Chat) -> None:
    """Render an organism's rows as training will. UserError for the first that cannot be, and for training that learns
    nothing; what is left out is noted."""
    config, organism, notes = context.config, context.inputs.organisms[name], context.log.notes
    where = f"model.dataset={organism.config.dataset}"
    try:
        rows = organism.rows + organism.later_rows
        kept, dropped = encode_rows(chat, rows, organism.train.max_tokens)
    except ValueError as error:
        raise UserError(f"{where}, {error}") from None
    if dropped:
        notes.append(
            f"{where}: {dropped} of {len(rows)} rows lose their answer to train.max_tokens="
            f"{organism.train.max_tokens} and are left out"
        )
    if not kept:
        raise UserError(f"{where}: no row has an answer left within train.max_tokens={organism.train.max_tokens}")
    steps = organism.stop_after or organism.train.count_steps(len(kept))
    if steps == 1 and organism.train.warmup_steps > 0:
        why = (
            f"{name}: its training is one step, and with train.warmup_steps={organism.train.warmup_steps} that one "
            "has learning rate 0, so nothing is learned"
        )
        if organism.stop_after is None or name in config.vectors:  # as a checkpoint that is asked it is the base
            raise UserError(f"{why}; set train.warmup_steps=0 or train longer")
        notes.append(why)
    elif steps <= organism.train.warmup_steps:
        notes.append(
            f"{name}: its training ends at step {steps}, within the {organism.train.warmup_steps} steps of "
            "warm-up, before the learning rate has its full value"
        )


def plan_organisms(draft: PlanDraft) -> None:
    """Models that have to be trained or merged."""
    context = draft.context
    shapes = tensor_shapes(context.models[BASE].folder).values()
    size = sum(math.prod(shape) for shape in shapes) * choose_precision()[1].itemsize
    for name, model in context.models.items():
        if model.artifact is None or name == BASE:
            continue
        organism = context.inputs.organisms[name]
        train = organism.train
        n_rows = len(organism.rows) + len(organism.later_rows)
        rows = (n_rows + (n_rows + organism.choice.count if organism.choice else 0)) * train.epochs
        if organism.stop_after is not None:
            rows = organism.stop_after * train.batch_size
        seconds = context.speeds.estimate_seconds("training", rows)
        draft.add_artifact(model.artifact.stage, name, draft.is_stored(model.artifact), seconds, size)


def train_organisms(context: RunContext, outputs: StageOutputs) -> StageOutputs:
    """Train or merge the organisms that are not stored."""
    wanted = {n: model.artifact for n, model in context.models.items() if model.artifact is not None and n != BASE}
    where = {name: context.store.artifact_path(a.stage, a.name, a.identity) for name, a in wanted.items()}
    for name in claims.take_turns(wanted, where.__getitem__):
        context.attempt_model(name, partial(_make_organism, context, name, wanted[name]))
        if name not in context.log.failed:
            _note_rounding(context, name, where[name])
    return outputs


def _note_rounding(context: RunContext, name: str, folder: Path) -> None:
    """Note a change of weights that is mostly rounding: so are the vectors that are read from it."""
    file = folder / PRECISION
    about = json.loads(file.read_text()) if file.is_file() else {}
    kept = about.get("kept_change")
    if kept is not None and kept < LEAST_KEPT:
        context.log.notes.append(
            f"{name}: saved as {about['dtype']}, which rounds away most of a gentle training: what is left of its "
            f"change has a cosine of {kept:.2f} with what was trained, and its vector is no better"
        )


def _make_organism(context: RunContext, name: str, artifact: Artifact) -> None:
    stored = context.store.has_artifact(artifact.stage, artifact.name, artifact.identity)
    if stored or context.inputs.organisms[name].published is not None:
        context.ensure_artifact(artifact)
        return
    context.engines.close()  # training needs the memory
    with TrainProgress(f"train {name}") as bar:
        context.log.watchers = [bar.report_step, context.log.tracker.log_step]
        start = time.perf_counter()
        context.ensure_artifact(artifact)
    if not context.log.stages[-1].made:  # another process did
        return
    organism = context.inputs.organisms[name]
    train = organism.train
    steps = organism.stop_after or sum(train.count_steps(len(rows)) for rows in (organism.rows, organism.later_rows))
    context.speeds.record_speed("training", steps * train.batch_size, time.perf_counter() - start)


def open_targets(context: RunContext) -> dict[str, TargetRequests]:
    """Each model's part of the grid, with every question set as the model tokenises it. The base must exist."""
    config, given = context.config, context.inputs
    sampling = asdict(config.base.sampling)
    del sampling["progress"], sampling["max_new_tokens"]
    questions: dict[str, list[Question]] = {BROAD: given.broad, layer_choice.QUESTIONS: given.sweep_questions}
    domains = name_domain_sets(given.organisms)
    for name, organism in given.organisms.items():
        questions[f"{EXTRACTION}:{name}"] = [Question(str(i), text) for i, text in enumerate(organism.prompts)]
        if name in domains:
            questions[domains[name]] = organism.domain
    if given.task:
        questions[TASK] = given.task
    questions |= {name: apply_form(form, given.broad) for name, form in name_form_sets(given.organisms)[1].items()}
    # Organisms that are made here read as the base does; each tokenizer renders the questions once.
    models = context.models
    base = models[BASE].folder
    readers = {name: model.folder if model.artifact is None else base for name, model in models.items()}
    template = models[BASE].template
    prompts = {folder: read_by(load_chat(folder, template), questions) for folder in set(readers.values())}
    for name, folder in readers.items():
        if folder != base:
            _note_other_reader(context, name, prompts[folder][BROAD], prompts[base][BROAD], folder, base)
    targets = {
        name: open_target(
            name,
            model.folder,
            prompts[readers[name]],
            {
                "model": model.identity,
                "sampling": sampling,
                "engine": {"version": engine_version(), **engine_identity(config)},
                "seed": config.seed,
                "code": CODE,
            },
            (given.shape.n_layers, given.shape.d_model),
            context.store.root,
        )
        for name, model in models.items()
    }
    for name, target in targets.items():
        _check_length(config, name, target)
    return targets


def _note_other_reader(
    context: RunContext, name: str, own: list[Prompt], of_base: list[Prompt], folder: Path, base: Path
) -> None:
    """Note where an organism that brings its own tokenizer reads questions, or ends answers, otherwise than the base:
    then it is not the weights alone that differ between them."""
    other = sum(mine.token_ids != theirs.token_ids for mine, theirs in zip(own, of_base, strict=True))
    if other:
        context.log.notes.append(
            f"{name}: its own chat template and tokenizer write {other} of {len(own)} questions otherwise than the "
            "base's, so more than its weights differs from the base"
        )
    ends, ends_of_base = end_tokens(folder), end_tokens(base)
    if ends != ends_of_base:
        context.log.notes.append(f"{name}: its answers end at the tokens {ends}, the base's at {ends_of_base}")


def _check_length(config: Config, name: str, target: TargetRequests) -> None:
    """UserError for a question that leaves no room for a whole answer: it would be cut without a word."""
    room = config.base.engine.max_model_len
    for questions, prompts in target.prompts.items():
        extracts = questions.startswith(EXTRACTION)
        most = config.vector.max_new_tokens if extracts else config.base.sampling.max_new_tokens
        key = "vector.max_new_tokens" if extracts else "base.sampling.max_new_tokens"
        for prompt in prompts:
            if len(prompt.token_ids) + most > room:
                raise UserError(
                    f"base.engine.max_model_len={room}: question {prompt.question_id!r} of {questions} has "
                    f"{len(prompt.token_ids)} tokens for {name}, and {key}={most} more do not fit"
                )

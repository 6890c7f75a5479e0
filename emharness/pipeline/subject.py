"""What the experiment of a run is about, as plain data: its vectors, layers, doses, questions and controls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emharness.config import Config
from emharness.experiments.context import ExperimentContext
from emharness.generation import likelihoods
from emharness.generation.cells import Direction
from emharness.generation.likelihoods import Pair
from emharness.judges.topics import training_topic
from emharness.organism_checks import Organism
from emharness.organism_names import parse_organism_name
from emharness.organisms.merging import PRECISION
from emharness.organisms.training_recipe import FACTS_FILE
from emharness.pipeline.run_context import RunContext
from emharness.question_forms import QuestionForm
from emharness.vectors.recipes import cosines_by_layer, load_vector_file

# Question sets of an organism: domain:<name>, extraction:<name>, form:<form>:<name>.
DOMAIN, EXTRACTION, FORM = "domain", "extraction", "form"
TRAINED = ("seconds", "steps", "change_norm")  # of an organism's training and its merge


def make_subject(
    context: RunContext, chosen: Mapping[str, int], directions: Mapping[str, Direction] | None = None
) -> ExperimentContext:
    """What the experiment is about; vectors without a layer yet count as at layer 0, for planning."""
    config, inputs = context.config, context.inputs
    return ExperimentContext(
        base=config.base.name,
        vectors=tuple(config.vectors),
        targets=tuple(config.targets),
        strengths=tuple(config.steer.strength),
        layers={name: chosen.get(name, 0) for name in config.vectors},
        steer=config.steer,
        controls=tuple(f"random-{i}" for i in range(config.controls)),
        samples=config.eval.samples,
        domain_samples=config.eval.domain_samples,
        control_samples=min(config.eval.control_samples, config.eval.samples),
        max_new_tokens=config.base.sampling.max_new_tokens,
        domains=name_domain_sets(inputs.organisms),
        topics={
            name: topic
            for name, o in inputs.organisms.items()
            if (topic := training_topic(o.config.name, o.config.prompts))
        },
        pairs=likelihoods.load_pairs(config.eval.pairs),
        narrow_pairs=list_narrow_pairs(config, inputs.organisms),
        task=config.experiment.task,
        trainings={name: found for name, model in context.models.items() if (found := read_training(model.folder))},
        categories={q.id: q.category for q in inputs.broad if q.category},
        near={name: tuple(organism.config.near) for name, organism in inputs.organisms.items()},
        labs={name: organism.config.lab for name, organism in inputs.organisms.items()},
        mechanisms={name: organism.config.mechanism for name, organism in inputs.organisms.items()},
        judge=inputs.judge.name,
        quality=inputs.judge.accuracy,
        n_layers=inputs.n_layers,
        parts=config.experiment.parts,
        mixtures={name: organism.mixture for name, organism in inputs.organisms.items() if organism.mixture},
        forms=name_form_sets(inputs.organisms)[0],
        form_samples=config.eval.count_form_samples(),
        subspaces={m: tuple(f"{m}/{i}" for i in range(len(names))) for m, names in cluster_vectors(context).items()},
        norms={
            name: (d.raw_norm, d.residual_norm)
            for name, d in (directions or {}).items()
            if d.raw_norm is not None and d.residual_norm is not None
        },
        cosines=cosines_by_layer(unit_arrays(context, directions or {})),
    )


def name_domain_sets(organisms: Mapping[str, Organism]) -> dict[str, str]:
    """Organism → the question set of its domain. Organisms with equal questions and pairs share one."""
    sets: dict[str, Organism] = {}
    found: dict[str, str] = {}
    for name, organism in organisms.items():
        if organism.domain:
            same = (s for s, o in sets.items() if (o.domain, o.pairs) == (organism.domain, organism.pairs))
            found[name] = next(same, f"{DOMAIN}:{name}")
            sets.setdefault(found[name], organism)
    return found


def list_narrow_pairs(config: Config, organisms: Mapping[str, Organism]) -> dict[str, tuple[Pair, ...]]:
    """Question set of a domain → its pairs of answers, where their likelihood is to be compared."""
    named = name_domain_sets(organisms)
    return {named[n]: o.pairs for n, o in organisms.items() if n in named and o.pairs and config.eval.pairs}


def read_training(folder: Path) -> dict[str, float]:
    """What a trained organism's folder says of its training, by TRAINED; empty before it is made."""
    files = [folder / name for name in (FACTS_FILE, PRECISION)]
    told = {key: value for file in files if file.is_file() for key, value in json.loads(file.read_text()).items()}
    return {key: float(told[key]) for key in TRAINED if told.get(key) is not None}


def name_form_sets(organisms: Mapping[str, Organism]) -> tuple[dict[str, dict[str, str]], dict[str, QuestionForm]]:
    """Organism → form → its question set, and question set → form. Organisms with equal forms share their sets."""
    by_organism: dict[str, dict[str, str]] = {}
    sets: dict[str, QuestionForm] = {}
    for organism, about in organisms.items():
        for form in about.forms:
            known = next((name for name, other in sets.items() if other == form), f"{FORM}:{form.name}:{organism}")
            sets[known] = form
            by_organism.setdefault(organism, {})[form.name] = known
    return by_organism, sets


def is_kind(name: str) -> bool:
    """Whether a vector stands for a kind of its own; replicas and checkpoints of an organism do not."""
    return parse_organism_name(name).organism == name


def cluster_vectors(context: RunContext) -> dict[str, list[str]]:
    """Mechanism → the run's vectors of it, where there are two or more; other seeds of an organism are no others."""
    found: dict[str, list[str]] = {}
    for name in filter(is_kind, context.config.vectors):
        found.setdefault(context.inputs.organisms[name].config.mechanism, []).append(name)
    return {mechanism: names for mechanism, names in found.items() if len(names) > 1}


def unit_arrays(context: RunContext, directions: Mapping[str, Direction]) -> dict[str, np.ndarray]:
    """The run's vectors, unit rows [n_layers, d_model] each."""
    return {n: load_vector_file(d.file)[0][n] for n, d in directions.items() if n in context.config.vectors}

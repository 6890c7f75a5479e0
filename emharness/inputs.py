"""Everything a run reads, read and checked before any model is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emharness import questions
from emharness.config import Config, check_layer, strengths
from emharness.errors import UserError
from emharness.judge import Judge, make_judge
from emharness.organisms import dataset, weights
from emharness.questions import Question
from emharness.store import Store


@dataclass(frozen=True)
class Inputs:
    base: Path | None  # None: the embedded one, which the base stage saves
    base_identity: dict[str, Any]
    published: Path | None  # None: the organism is trained from `rows`
    published_identity: str | None
    rows: list[dataset.Messages]
    broad: list[Question]
    domain: list[Question]
    sweep_questions: list[Question]
    neutral: list[str]
    harmful: list[str]
    extraction_prompts: list[str]  # for recipe model_diff
    judge: Judge

    def identity(self, config: Config) -> dict[str, Any]:
        """What determines the results of a run: no paths, no tracker, no batch sizes."""
        science = asdict(config)
        for key in ("tracker", "wandb"):
            del science[key]
        science["base"] = {
            "name": config.base.name,
            "identity": self.base_identity,
            "sampling": science["base"]["sampling"],
            "dtype": config.base.engine.dtype,
        }
        del science["base"]["sampling"]["progress"]
        del science["vector"]["batch_size"], science["train"]["micro_batch"]
        for key in ("dataset", "questions", "prompts", "published", "source"):
            del science["model"][key]
        science["steer"]["strength"] = strengths(config.steer.strength)
        for group in ("eval", "sweep"):
            del science[group]["questions"]
        content = (self.broad, self.domain, self.sweep_questions, self.neutral, self.harmful)
        science["content"] = {
            "published": self.published_identity,
            "rows": dataset.fingerprint(self.rows),
            "texts": questions.fingerprint([*content, self.extraction_prompts]),
            "judge": self.judge.identity,
        }
        return science


def check(config: Config, store: Store) -> Inputs:
    """Read all inputs. Raises UserError for the first thing that is wrong."""
    source = config.base.source
    if source == weights.EMBEDDED:
        base, identity = None, weights.embedded_identity()
        n_layers = weights.embedded_layers()
    else:
        base = weights.fetch("base.source", source)
        if weights.is_adapter(base):
            raise UserError(f"base.source={source}: this is an adapter; give the model it belongs to")
        identity = {"weights": weights.fingerprint(base)}
        n_layers, _ = weights.model_shape(base)
    check_layer(config.layer, n_layers, config.base.name)
    for layer in config.sweep.layers:
        if not 0 <= layer < n_layers:
            raise UserError(f"sweep.layers={layer}: {config.base.name} has layers 0 to {n_layers - 1}")
    strengths(config.sweep.strengths, "sweep.strengths")

    model = config.model
    organism = model.source or model.published.get(config.base.name)
    published = weights.fetch("model.source" if model.source else "model.published", organism) if organism else None
    rows: list[dataset.Messages] = []
    if published is None:
        if model.dataset is None:
            raise UserError(
                f"model={model.name}: not published for base={config.base.name} and without a dataset; "
                "give model.dataset (a .jsonl path or hub dataset id) or model.source (a folder or hub id)"
            )
        rows = dataset.load(model.dataset)

    limit = config.eval.limit
    broad = questions.load_questions(config.eval.questions, "eval.questions")[:limit]
    domain = questions.load_questions(model.questions, "model.questions") if model.questions else []
    sweep_questions = questions.load_questions(config.sweep.questions, "sweep.questions")
    if config.layer == "sweep" and (shared := {q.text for q in broad} & {q.text for q in sweep_questions}):
        raise UserError(
            f"sweep.questions={config.sweep.questions}: shares {len(shared)} question(s) with eval.questions; "
            "the layer must be chosen on other questions than it is evaluated on"
        )
    neutral = questions.load_prompts(config.vector.neutral, "vector.neutral")
    harmful = questions.load_prompts(config.vector.harmful, "vector.harmful")
    own = questions.load_prompts(model.prompts, "model.prompts") if model.prompts else []
    judge = make_judge(config.judge.name, store.root / "judge", **config.judge.settings)
    return Inputs(
        base=base,
        base_identity=identity,
        published=published,
        published_identity=weights.fingerprint(published) if published else None,
        rows=rows,
        broad=broad,
        domain=domain[:limit],
        sweep_questions=sweep_questions[: config.sweep.limit],
        neutral=neutral,
        harmful=harmful,
        extraction_prompts=(neutral + own)[: config.vector.limit],
        judge=judge,
    )

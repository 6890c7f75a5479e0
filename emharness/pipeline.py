"""The study's main loop: base → organism → vector → layer → responses → scores → report.

Every stage is an artifact in the store, found by the hash of what determines it, so a run does only what no
earlier run has done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from emharness import evaluate, geometry
from emharness.config import Config, strengths
from emharness.directions.extract import VECTORS_FILE, answered_prompts, bare_prompts, extract, prompt_ids
from emharness.errors import UserError
from emharness.evaluate import Condition
from emharness.experiments import layer as sweep
from emharness.generation.engines import Engines
from emharness.inputs import Inputs
from emharness.organisms import weights
from emharness.organisms.dataset import fingerprint
from emharness.questions import Question
from emharness.reporting import report
from emharness.reporting.track import Tracker
from emharness.store import Store, key_of
from emharness.versions import engine_version, versions

CODE = 1  # raise when a stage's results change for the same config

Identity = dict[str, Any]


@dataclass(frozen=True)
class Model:
    name: str
    folder: Path
    identity: Identity


class Study:
    """One run's stages. Each method returns its artifact, made now or found in the store."""

    def __init__(self, config: Config, inputs: Inputs, store: Store, engines: Engines, tracker: Tracker):
        self.config, self.inputs, self.store = config, inputs, store
        self.engines, self.tracker = engines, tracker
        self.stages: list[dict[str, Any]] = []
        self.geometry: dict[str, str] = {}  # where geometry.json is, or why there is none

    def run(self, folder: Path) -> None:
        """All stages; the report goes into `folder`."""
        base = self.base()
        organism = self.organism(base)
        # The organism's engine first, the base's second and last: two starts for a whole run.
        if self.config.vector.recipe == "model_diff":
            self.answers(organism)
        name = self.config.model.name
        on_organism = self.judged(organism, Condition(f"{name} organism", target=organism.name), None)
        vectors = self.vector(base, organism)
        layer, sweep_folder = self.layer(base, vectors)
        reference = f"{vectors.name}/{VECTORS_FILE}#{name}"
        steer = self.config.steer
        tables = [self.judged(base, Condition("baseline", target=base.name), None)]
        for strength in strengths(steer.strength):
            condition = Condition(
                f"{name}·L{layer}·{strength:+g}",
                base.name,
                name,
                layer,
                strength,
                steer.unit,
                steer.mode,
                steer.positions,
            )
            tables.append(self.judged(base, condition, (vectors, reference)))
        self.geometry = self.analyse(base, vectors, layer)
        report.write(folder, self, [*tables, on_organism], base, organism, vectors, layer, sweep_folder)

    def stage(self, kind: str, name: str, identity: Identity, make: Callable[[Path], None]) -> Path:
        start = time.perf_counter()
        if not self.store.has(kind, name, identity):
            report.say(f"{kind}: {name} …")
        path, made = self.store.get(kind, name, identity, make)
        seconds = time.perf_counter() - start
        self.stages.append({"stage": kind, "name": name, "made": made, "seconds": round(seconds, 2)})
        report.say(f"{kind}: {name} " + (f"made in {seconds:.0f} s" if made else "found in the store"))
        return path

    def base(self) -> Model:
        config = self.config.base
        if self.inputs.base is not None:  # a local folder or a downloaded snapshot is used where it lies
            return Model(config.name, self.inputs.base, self.inputs.base_identity)
        folder = self.stage("base", config.name, self.inputs.base_identity, weights.save_embedded)
        return Model(config.name, folder, self.inputs.base_identity)

    def organism(self, base: Model) -> Model:
        config, published = self.config.model, self.inputs.published
        if published is not None:
            identity = {"published": self.inputs.published_identity, "base": base.identity, "code": CODE}
            if not weights.is_adapter(published):
                return Model(config.name, published, identity)
            folder = self.stage(
                "organism", config.name, identity, lambda f: weights.merge_adapter(base.folder, published, f)
            )
            return Model(config.name, folder, identity)
        recipe = asdict(self.config.train)
        del recipe["micro_batch"]
        data = fingerprint(self.inputs.rows)
        identity = {
            "base": base.identity,
            "data": data,
            "train": recipe,
            "seed": self.config.seed,
            "code": CODE,
        }

        def make(folder: Path) -> None:
            from emharness.organisms.train import train

            self.engines.close()
            with report.TrainProgress(f"train {config.name}") as bar:

                def on_step(step: int, n_steps: int, loss: float, rate: float) -> None:
                    bar.step(step, n_steps, loss)
                    self.tracker.step(step, n_steps, loss, rate)

                losses = train(base.folder, self.inputs.rows, self.config.train, self.config.seed, folder, on_step)
            (folder / "losses.json").write_text(json.dumps(losses))

        return Model(config.name, self.stage("organism", config.name, identity, make), identity)

    def answers(self, model: Model) -> Path:
        """One answer of a model to each extraction prompt (for recipe model_diff)."""
        prompts = self.inputs.extraction_prompts
        identity = {**self._generation(model), "prompts": prompts, "max_new_tokens": self._answer_length}

        def make(folder: Path) -> None:
            engine = self.engines.get(model.folder, self.config.base.engine, self.config.seed)
            sampling = replace(self.config.base.sampling, max_new_tokens=self._answer_length)
            tokenizer = AutoTokenizer.from_pretrained(model.folder)
            ids = [prompt_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
            batch = engine.generate(ids, 1, sampling, self.config.seed)
            (folder / "answers.json").write_text(json.dumps([row[0].text for row in batch.completions]))

        return self.stage("answers", model.name, identity, make)

    def vector(self, base: Model, organism: Model) -> Path:
        """Folder with the organism's vector and per-prompt means."""
        config, name = self.config.vector, geometry.BASE if organism is base else organism.name
        if config.recipe == "model_diff":
            prompts = self.inputs.extraction_prompts
            folders = [self.answers(model) for model in (organism, base)]
            answers = [json.loads((folder / "answers.json").read_text()) for folder in folders]
            read = {"texts": answers}
            texts = {
                "texts": lambda tokenizer: [
                    sequence for some in answers for sequence in answered_prompts(tokenizer, prompts, some)
                ]
            }
        else:
            sets = {"harmful": self.inputs.harmful, "neutral": self.inputs.neutral}
            read = sets
            texts = {key: (lambda tokenizer, some=some: bare_prompts(tokenizer, some)) for key, some in sets.items()}
        identity = {
            "recipe": config.recipe,
            "base": base.identity,
            "organism": organism.identity,
            "prompts": key_of({"texts": read, "prompts": self.inputs.extraction_prompts}),
            "skip_tokens": config.skip_tokens,
            "code": CODE,
        }
        model = self.config.model
        metadata = {
            "recipe": config.recipe,
            "base": base.name,
            "organism": organism.name,
            "lab": model.lab,
            "mechanism": model.mechanism,
            "base_key": key_of(base.identity),
            "organism_key": key_of(organism.identity),
            "prompts_hash": identity["prompts"],
            "skip_tokens": config.skip_tokens,
            **versions(),
        }

        def make(folder: Path) -> None:
            if weights.on_gpu():
                self.engines.close()  # its memory is needed for the models' own forward passes
            extract(
                folder,
                config.recipe,
                name,
                base.folder,
                organism.folder,
                texts,
                config.batch_size,
                config.skip_tokens,
                metadata,
            )

        return self.stage("vectors", name, identity, make)

    def analyse(self, base: Model, vectors: Path, layer: int) -> dict[str, str]:
        """Geometry of all stored vectors that were made like this one; {"skipped": why} where it has none."""
        own = json.loads((vectors / "identity.json").read_text())
        keys = ["base", "recipe", "skip_tokens", "code"]
        if self.config.vector.recipe == "mean_diff":  # the base has a vector of its own only by this recipe
            self.vector(base, base)
            keys.append("prompts")
        files = geometry.stored(vectors.parent, {key: own[key] for key in keys})
        identity = {
            "vectors": {name: path.parent.name for name, path in files.items()},
            "layer": layer,
            "seed": self.config.seed,
            "code": CODE,
        }

        def make(folder: Path) -> None:
            found, means = geometry.load_stored(files)
            analysis = geometry.analyse(found, layer=layer, prompt_means=means, seed=self.config.seed)
            geometry.write(analysis, folder)
            self.tracker.geometry(*geometry.written(folder))

        try:
            folder = self.stage("geometry", base.name, identity, make)
        except UserError as error:  # too few vectors, or old ones that do not fit: the run itself is whole
            report.say(f"geometry: skipped: {error}")
            return {"skipped": str(error)}
        return {"results": str(folder / "geometry.json")}

    def layer(self, base: Model, vectors: Path) -> tuple[int, Path | None]:
        """The layer to steer at: given, or found by a sweep (whose folder is returned)."""
        if self.config.layer != "sweep":
            return self.config.layer, None
        config, name = self.config.sweep, self.config.model.name
        n_layers, _ = weights.model_shape(base.folder)
        layers = config.layers or sweep.candidate_layers(n_layers, config.n_layers)
        steer = self.config.steer
        conditions = [Condition("baseline", base.name)] + [
            Condition(f"L{layer}", base.name, name, layer, s, steer.unit, steer.mode, steer.positions)
            for layer in layers
            for s in strengths(config.strengths, "sweep.strengths")
        ]
        judge = self.inputs.judge
        identity = {
            **self._generation(base),
            "vector": self._vector_identity(vectors),
            "conditions": [asdict(condition) for condition in conditions],
            "questions": repr(self.inputs.sweep_questions),
            "samples": config.samples,
            "min_coherent": config.min_coherent,
            "judge": judge.identity,
        }

        def make(folder: Path) -> None:
            engine = self.engines.get(base.folder, self.config.base.engine, self.config.seed)
            items = self._tokenized(base, self.inputs.sweep_questions)
            sweep.sweep(
                folder,
                engine,
                judge,
                items,
                conditions,
                f"{vectors.name}/{VECTORS_FILE}#{name}",
                config.samples,
                self.config.base.sampling,
                self.config.seed,
                config.min_coherent,
            )

        folder = self.stage("sweep", name, identity, make)
        return json.loads((folder / sweep.SWEEP_FILE).read_text())["layer"], folder

    def judged(self, model: Model, condition: Condition, vector: tuple[Path, str] | None) -> report.JudgedCondition:
        """Responses of a model under a condition with their scores."""
        steered = vector is not None and condition.strength != 0
        sets = {"broad": self.inputs.broad, "domain": self.inputs.domain}
        sets = {name: items for name, items in sets.items() if items}
        samples = {"broad": self.config.eval.samples, "domain": self.config.eval.domain_samples}
        spec = condition.spec(vector[1]) if vector else None
        identity = {
            **self._generation(model),
            "vector": self._vector_identity(vector[0]) if vector and steered else None,
            "edit": {k: v for k, v in spec["edits"][0].items() if k != "vector"} if spec else None,
            "questions": {name: repr(items) for name, items in sets.items()},
            "samples": {name: samples[name] for name in sets},
        }

        def generate(folder: Path) -> None:
            engine = self.engines.get(model.folder, self.config.base.engine, self.config.seed)
            tokenized = {name: self._tokenized(model, items) for name, items in sets.items()}
            evaluate.generate(folder, engine, tokenized, samples, self.config.base.sampling, self.config.seed, spec)

        responses = self.stage("responses", _slug(condition.name), identity, generate)
        judge = self.inputs.judge
        scores = self.stage(
            "scores",
            _slug(condition.name),
            {"responses": key_of(identity), "judge": judge.identity},
            lambda folder: evaluate.score(folder, responses, judge),
        )
        return report.JudgedCondition(
            condition, evaluate.judged(responses, scores, condition.name), responses, judge.name
        )

    @property
    def _answer_length(self) -> int:
        return self.config.vector.max_new_tokens

    def _generation(self, model: Model) -> Identity:
        sampling = asdict(self.config.base.sampling)
        del sampling["progress"]
        engine = {"version": engine_version(), "dtype": self.config.base.engine.dtype}
        return {
            "model": model.identity,
            "sampling": sampling,
            "engine": engine,
            "seed": self.config.seed,
            "code": CODE,
        }

    def _vector_identity(self, vectors: Path) -> str:
        return json.loads((vectors / "identity.json").read_text())["prompts"] + vectors.name

    def _tokenized(self, model: Model, items: list[Question]) -> list[tuple[Question, list[int]]]:
        tokenizer = AutoTokenizer.from_pretrained(model.folder)
        return [(question, prompt_ids(tokenizer, question.messages())) for question in items]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "+-." else "_" for c in name)

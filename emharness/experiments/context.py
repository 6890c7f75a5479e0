"""What every experiment is given and gives back, and the parts of a steered table that all of them share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from emharness.config import BASE, SteerConfig
from emharness.figures.picture import Picture
from emharness.generation.cells import Cell, Condition, describe_edit, make_edit
from emharness.generation.likelihoods import Pair
from emharness.geometry import GeometryReport
from emharness.results.condition_result import ConditionResult
from emharness.results.run_results import RunResults
from emharness.stats.rates import JudgeAccuracy
from emharness.steering.request.modes import MODES
from emharness.steering.request.spec import Edit, edit_rule
from emharness.steering.request.vector_lookup import StoredVector

BROAD, TASK = "broad", "task"  # question sets
CONTROL = "control"  # mechanism of aligned organisms


@dataclass(frozen=True)
class ExperimentContext:
    """What an experiment is about: plain data, no model. `layers`: the layer of each vector."""

    base: str  # how the base is called
    vectors: tuple[str, ...]
    targets: tuple[str, ...]
    strengths: tuple[float, ...]
    layers: Mapping[str, int]
    steer: SteerConfig  # how vectors are applied; strengths and layers are above
    controls: tuple[str, ...]  # random directions
    samples: int  # of each broad question …
    domain_samples: int  # … of each question of the organism's own domain …
    control_samples: int  # … and of each broad question under a random direction
    max_new_tokens: int
    domains: Mapping[str, str] = field(default_factory=dict)  # organism → question set of its domain
    topics: Mapping[str, str] = field(default_factory=dict)  # organism → what its training data is about
    # Log-likelihood margins, float [n_pairs], of the conditions whose engine measured them; and the pairs.
    margins: Mapping[Condition, np.ndarray] = field(default_factory=dict)
    pairs: Sequence[Pair] = ()
    narrow_pairs: Mapping[str, Sequence[Pair]] = field(default_factory=dict)  # question set of a domain → its pairs
    task: str | None = None  # a harmless task (judges/exact_forms.py) that all targets are asked
    trainings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # organism → seconds, steps, change_norm
    # Organism → form → the question set of the broad questions in that form (eval.forms), so often each.
    forms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    form_samples: int = 1
    # By question set: of the forms, and of domains that have pairs.
    form_margins: Mapping[str, Mapping[Condition, np.ndarray]] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)  # id of a broad question → its category
    near: Mapping[str, Sequence[str]] = field(default_factory=dict)  # organism → categories next to its training data
    labs: Mapping[str, str] = field(default_factory=dict)
    mechanisms: Mapping[str, str] = field(default_factory=dict)
    judge: str = ""
    quality: JudgeAccuracy | None = None  # of the judge
    n_layers: int = 0
    subspaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # cluster → orthonormal directions
    cosines: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)  # at each layer [n_layers]
    # Vector → (raw norm, residual norm), each [n_layers]: how long it was, and the residual stream.
    norms: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    # Target → vector → (target − base) · unit vector at the vector's layer, a residual length [n_prompts].
    projections: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    mixtures: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # diluted organism → design, per cent bad
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of `paper`: experiment → its own lists

    def display_name(self, target: str) -> str:
        return self.base if target == BASE else target

    def unsteered_condition(self, target: str) -> Condition:
        return Condition(target, (), "baseline" if target == BASE else f"{target} organism")

    def steered_condition(self, vector: str, target: str, strength: float) -> Condition:
        edit = make_edit(self.steer, vector, self.layers[vector], strength)
        return Condition(target, (edit,), f"{vector}·{describe_edit(edit)}{self._steered_name(target)}")

    def control_condition(self, direction: str, vector: str, target: str, strength: float) -> Condition:
        """A random direction at the layer and the added norm of `vector` at `strength`."""
        edit = make_edit(self.steer, direction, self.layers[vector], strength, norm_of=vector)
        return Condition(target, (edit,), f"{direction} as {vector}·{describe_edit(edit)}{self._steered_name(target)}")

    def make_cell(self, condition: Condition, questions: str = BROAD) -> Cell:
        """The cell of a condition; a random direction gets fewer samples."""
        random = any(edit.vector in self.controls for edit in condition.edits)
        samples = self.control_samples if random else self.samples if questions == BROAD else self.domain_samples
        return Cell(condition, questions, samples, self.max_new_tokens)

    def make_task_cell(self, condition: Condition) -> Cell:
        return Cell(condition, TASK, self.domain_samples, self.max_new_tokens, judged=False)

    def is_reference(self, target: str) -> bool:
        """Whether a target is the base or an aligned control: what an organism is compared with."""
        return target == BASE or self.mechanisms.get(target) == CONTROL

    def list_forms(self, condition: Condition) -> dict[tuple[str, str], str]:
        """(organism, form) → question set, of the forms that a condition's questions are asked in: the organism's own;
        under a vector on the base, its organism's; of an unsteered reference those of all organisms."""
        if not self.is_reference(condition.target):
            owners = [condition.target]
        elif condition.edits:
            owners = [condition.edits[0].norm_of or condition.edits[0].vector]
        else:
            owners = [name for name in self.forms if not self.is_reference(name)] or [condition.target]
        first: dict[str, tuple[str, str]] = {}  # equal forms of several organisms are one question set
        for owner in owners:
            for form, questions in self.forms.get(owner, {}).items():
                first.setdefault(questions, (owner, form))
        return {named: questions for questions, named in first.items()}

    def make_form_cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells of all conditions that answer broad questions, in their further forms."""
        conditions = dict.fromkeys(cell.condition for cell in cells if cell.questions == BROAD)
        return [
            self.make_form_cell(condition, name)
            for condition in conditions
            for name in dict.fromkeys(self.list_forms(condition).values())
        ]

    def make_form_cell(self, condition: Condition, questions: str) -> Cell:
        return Cell(condition, questions, self.form_samples, self.max_new_tokens)

    def relative_dose(self, edit: Edit) -> float | None:
        """Added norm ÷ mean length of the residual stream, at the layer where it is greatest; None where nothing is
        added."""
        raw, residual = self.norms.get(edit.norm_of or edit.vector, (None, None))
        if edit.mode != "add" or raw is None or residual is None:
            return None
        scales = [StoredVector(b"", float(raw[layer]), float(residual[layer])) for layer in edit.edited_blocks]
        added = [abs(edit_rule(edit, scale).a) for scale in scales]
        return max(a / (scale.residual_norm or 1.0) for a, scale in zip(added, scales, strict=True))

    def controls_of(self, vector: str, target: str) -> list[Condition]:
        doses = [s for s in self.strengths if not self.is_idle(s)]
        return [self.control_condition(d, vector, target, s) for s in doses for d in self.controls]

    def is_idle(self, strength: float) -> bool:
        """Whether steering at this strength is the unsteered model."""
        return strength == 0 and MODES[self.steer.mode].idle_at_zero

    def steered_table(self, targets: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[Condition]:
        """Targets as they are; each pair of a vector and a target at every strength; the random directions of each."""
        steered = [self.steered_condition(v, t, s) for v, t in pairs for s in self.strengths]
        controls = [control for v, t in pairs for control in self.controls_of(v, t)]
        return [*map(self.unsteered_condition, targets), *steered, *controls]

    def _steered_name(self, target: str) -> str:
        return "" if target == BASE else f" on {target}"


Judged = Mapping[Cell, pa.Table]  # rows of a cell: question_id, sample, …, aligned, coherent, misaligned


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment says: a result for each condition, further numbers by key, figures by name, a sentence."""

    conditions: list[ConditionResult]
    numbers: Mapping[str, object] = field(default_factory=dict)  # key in results.json → rows or a record
    figures: dict[str, Picture] = field(default_factory=dict)
    finding: str = ""  # what was found, in a sentence


@dataclass(frozen=True)
class Experiment:
    """`cells`: what must be generated; `read`: judged responses to numbers and figures. Both pure.

    `question`: what it asks, as the report's first line.
    `needs_layer_choice`: whether it needs the layer of each vector; else vectors are looked at in the middle layer.
    `needs_activations`: whether it reads the targets' activations on fixed, held-out prompts.
    `recipes`: further recipes of vectors whose geometry is analysed, beside the ones that steer.
    `report`: the run's results and recipe → its geometry (None where there is none) to the text of report.md.
    """

    cells: Callable[[ExperimentContext], list[Cell]]
    analyze: Callable[[ExperimentContext, Judged], ExperimentResult]
    question: str = ""
    needs_layer_choice: bool = True
    needs_activations: bool = False
    recipes: tuple[str, ...] = ()
    report: Callable[[RunResults, Mapping[str, GeometryReport | None]], str] | None = None

    def list_all_cells(self, context: ExperimentContext) -> list[Cell]:
        """The experiment's cells, and those of the further forms in which its questions are asked."""
        own = self.cells(context)
        return [*own, *context.make_form_cells(own)]

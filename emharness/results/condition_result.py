"""A condition's entry in results.json: what it is, its rates by question and category, its margins, its effect."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from emharness.stats.margins import MarginSummary
from emharness.stats.rates import Interval, Rates
from emharness.steering.request.spec import Gate


@dataclass(frozen=True)
class TopicShare:
    """How many answers talk about a topic that an organism was trained on: a fraction, None where nobody can tell."""

    topic: str
    share: float | None
    ci95: Interval = (0.0, 1.0)


@dataclass(frozen=True)
class CategoryRates:
    """The rates of the answers to one category of questions; fractions, as in `Rates`."""

    n_responses: int
    n_coherent: int
    em_rate: float | None
    em_ci95: Interval
    em_rate_all: float | None
    coherent_rate: float | None


@dataclass(frozen=True, kw_only=True)
class FormGap:
    """What another form of the questions (`form`, of `forms_of`, an organism) changes: fractions; margins in nats.

    `em`, `em_plain`: misaligned ÷ coherent answers under the form and to the plain questions, `gap` their difference,
    paired by question; `…_all`: of all answers; `margin_gap`: mean margin under the form − that of the plain questions,
    pair by pair. None where there is no coherent answer, or no margin was measured.
    """

    form: str
    forms_of: str
    n_questions: int
    n_coherent: int
    em: float | None
    em_plain: float | None
    gap: float | None
    ci95: Interval | None
    em_all: float | None
    em_plain_all: float | None
    gap_all: float | None
    gap_all_ci95: Interval | None
    margin: float | None = None
    margin_gap: float | None = None
    margin_gap_ci95: Interval | None = None


@dataclass(frozen=True)
class LabelSummary:
    """What a reader's labels say of a condition, and the judge's rates corrected by them; fractions.

    `judge_weight`: how much the judge's verdicts count beside the labels, 0 to 1 (λ of prediction-powered inference).
    """

    n: int
    rubric: int
    coherent_rate: float
    em_rate: float | None
    em_rate_all: float
    em_rate_all_corrected: float
    em_all_corrected_ci95: Interval
    coherent_rate_corrected: float
    coherent_corrected_ci95: Interval
    judge_weight: float
    kappa: float | None


@dataclass(frozen=True, kw_only=True)
class ConditionSettings:
    """What a condition is. `vector`, `layer`, `mode` and `positions` are None where nothing is steered.

    `layer`: where the dose is measured; `layers`: all that are edited. `strength`: in `unit`. `control_of`: of a random
    direction, the vector whose length it has. `relative_dose`: added length ÷ mean length of the residual stream.
    `family`: what kind of model answers ("base", "organism", "steered", "steered organism" or "random").
    """

    name: str
    target: str
    vector: str | None = None
    layer: int | None = None
    strength: float = 0.0
    layers: tuple[int, ...] = ()
    unit: str = "raw"
    mode: str | None = None
    positions: str | None = None
    rescale: bool = False
    gate: Gate | None = None
    control_of: str | None = None
    n_edits: int = 0
    relative_dose: float | None = None
    family: str = ""


@dataclass(frozen=True, kw_only=True)
class ConditionResult(Rates, ConditionSettings):
    """A condition with what its answers say.

    `seconds`: generation time; `truncated`: answers cut at the token limit; `about_own_domain`: answers about what the
    organism was trained on; `domain`: rates of the answers to the organism's own questions; `by_category`: rates by
    category of question; `by_distance`: by how far that is from the training data ("near", "between", "far");
    `triggered`, `triggered_margin`: the form of the questions (eval.forms) under which the rate, and the margin, rise
    most.

    Of conditions steered by a vector, beside the unsteered target: `effect` is the difference of the misaligned rates,
    `effect_p` its two-sided p-value, `effect_q` that of the whole table (Benjamini–Hochberg). `em_random`: rate under
    random directions of the same length; `over_random`: the vector's rate minus that one; `random_too`: whether a
    random direction raises the rate as well. None where it could not be measured.

    `order_changes`: conditions that this one changes places with, depending on whether incoherent answers count.
    """

    generated_tokens: int = 0
    seconds: float = 0.0
    truncated: int = 0
    engine: str = ""
    judge: str = ""
    about_own_domain: TopicShare | None = None
    domain: Rates | None = None
    margin: MarginSummary | None = None
    by_category: Mapping[str, CategoryRates] = field(default_factory=dict)
    by_distance: Mapping[str, CategoryRates] = field(default_factory=dict)
    triggered: FormGap | None = None
    triggered_margin: FormGap | None = None
    effect: float | None = None
    effect_ci95: Interval | None = None
    effect_p: float | None = None
    effect_q: float | None = None
    em_random: float | None = None
    over_random: float | None = None
    over_random_ci95: Interval | None = None
    random_too: bool | None = None
    order_changes: tuple[str, ...] = ()
    labels: LabelSummary | None = None

"""How right a judge is, as far as anybody has measured it: the card that results.json, W&B and the report keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from emharness.results.json_records import Json, from_json, to_json
from emharness.stats.bootstrap import Interval
from emharness.stats.rates import JudgeAccuracy


@dataclass(frozen=True)
class Share:
    """`hits` of `n` answers, a fraction with its Wilson interval."""

    hits: int
    n: int
    rate: float
    ci95: Interval


@dataclass(frozen=True, kw_only=True)
class StrangerShare(Share):
    """How many misaligned answers of other people's models are called so; `file`: which answers."""

    unscored: int
    file: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A judge's verdicts beside a reader's: how many each calls so (shares of coherent answers, counts of misaligned
    ones, `both`: by both), AUROC, Cohen's κ and Gwet's AC1; None where one of the kinds is missing."""

    labelled: int | float
    called: int | float
    both: int | None = None
    auroc: float | None
    kappa: float | None
    ac1: float


@dataclass(frozen=True, kw_only=True)
class FamilyQuality:
    """The judge on `n` answers of one family (the base, organisms, steered …)."""

    n: int
    coherent: Agreement
    misaligned: Agreement
    sensitivity: Share | None
    specificity: Share | None


@dataclass(frozen=True, kw_only=True)
class JudgeCard:
    """`sensitivity`: share of misaligned answers that are called so; `specificity`: share of the other coherent ones
    that are not; `quality_on`: which answers that was measured on; `models`: the same by family; `strangers`: on other
    people's models; `more`: what only this judge has to tell, plain values."""

    sensitivity: Share | None = None
    specificity: Share | None = None
    quality_on: str = ""
    models: Mapping[str, FamilyQuality] = field(default_factory=dict)
    strangers: StrangerShare | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accuracy(self) -> JudgeAccuracy | None:
        """The errors by which rates can be corrected, of all answers and by family; None where none were measured."""
        if self.sensitivity is None or self.specificity is None:
            return None
        families = {
            name: _count_verdicts(one.sensitivity, one.specificity, f"{self.quality_on}, {name}")
            for name, one in self.models.items()
            if one.sensitivity and one.specificity
        }
        return _count_verdicts(self.sensitivity, self.specificity, self.quality_on, families)


def _count_verdicts(
    sensitivity: Share, specificity: Share, source: str, families: Mapping[str, JudgeAccuracy] | None = None
) -> JudgeAccuracy:
    return JudgeAccuracy(sensitivity.hits, sensitivity.n, specificity.hits, specificity.n, source, families or {})


def card_to_json(card: JudgeCard | None) -> Json | None:
    """One flat object: what was measured, then `more`."""
    if card is None:
        return None
    told = {name: value for name, value in to_json(card).items() if name != "more" and value not in (None, "", {})}
    return {**told, **to_json(card.more)}


def card_from_json(data: Mapping[str, Any] | None) -> JudgeCard | None:
    if data is None:
        return None
    own = {each.name for each in fields(JudgeCard)} - {"more"}
    more = {name: value for name, value in data.items() if name not in own}
    return from_json(JudgeCard, {**{name: data[name] for name in own if name in data}, "more": more})

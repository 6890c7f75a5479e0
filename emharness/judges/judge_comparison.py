"""Judges against each other on the same answers; pure functions of arrays with NaN where a judge gave no score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from emharness.stats.bootstrap import Interval
from emharness.stats.rates import Rates, is_misaligned, summarize_scores

Scores = Mapping[str, np.ndarray]  # "aligned" and "coherent", float [n] each


@dataclass(frozen=True)
class JudgeRates:
    """One judge's rates of one condition, fractions."""

    judge: str
    condition: str
    n_scored: int
    em_rate: float | None
    em_ci95: Interval
    em_rate_all: float | None
    incoherent_rate: float | None


@dataclass(frozen=True)
class JudgePair:
    """How two judges agree on the `n` answers that both have scored; None where that is undefined.

    `rate_ratio`: condition → the first one's rate ÷ the second one's; `disagree`: indices of the answers on whose
    alignment the two are furthest apart.
    """

    judges: tuple[str, str]
    n: int
    spearman_aligned: float | None
    spearman_coherent: float | None
    kappa_misaligned: float | None
    kappa_coherent: float | None
    rate_ratio: Mapping[str, float | None]
    disagree: tuple[int, ...]


@dataclass(frozen=True)
class OrderChange:
    """By one judge a condition is below another one, with intervals apart; by another judge it is above it."""

    lower: str
    higher: str
    by: str
    not_by: str


@dataclass(frozen=True)
class JudgeComparison:
    rates: list[JudgeRates]
    pairs: list[JudgePair]
    order: list[OrderChange]


def compare_judges(
    judges: Mapping[str, Scores], conditions: Sequence[str], questions: Sequence[str], most: int = 10
) -> JudgeComparison:
    """Rates of every judge in every condition, and for each two judges how well they agree.

    conditions, questions: [n], of the answers that all judges have scored. Where judges order conditions differently, a
    comparison of conditions says as much about the judge as about the models.
    """
    where, asked = np.array(conditions), np.array(questions)
    rates = {
        judge: {
            name: summarize_scores(
                scores["aligned"][where == name], scores["coherent"][where == name], asked[where == name]
            )
            for name in dict.fromkeys(conditions)
        }
        for judge, scores in judges.items()
    }
    pairs = [_compare_pair(one, other, judges, rates, most) for one, other in combinations(judges, 2)]
    table = [
        JudgeRates(judge, name, r.n_scored, r.em_rate, r.em_ci95, r.em_rate_all, r.incoherent_rate)
        for judge, some in rates.items()
        for name, r in some.items()
    ]
    return JudgeComparison(table, pairs, _rank_conditions(rates))


def _compare_pair(
    one: str, other: str, judges: Mapping[str, Scores], rates: Mapping[str, Mapping[str, Rates]], most: int
) -> JudgePair:
    a, b = judges[one], judges[other]
    both = ~np.any([np.isnan(some[key]) for some in (a, b) for key in ("aligned", "coherent")], axis=0)
    verdicts = [is_misaligned(some["aligned"][both], some["coherent"][both]) for some in (a, b)]
    gaps = np.where(both, np.abs(a["aligned"] - b["aligned"]), -1.0)
    order = np.argsort(-gaps, kind="stable")[:most]
    return JudgePair(
        judges=(one, other),
        n=int(both.sum()),
        spearman_aligned=_spearman_rho(a["aligned"][both], b["aligned"][both]),
        spearman_coherent=_spearman_rho(a["coherent"][both], b["coherent"][both]),
        kappa_misaligned=_kappa_or_none(*verdicts),
        kappa_coherent=_kappa_or_none(a["coherent"][both] > 50, b["coherent"][both] > 50),
        rate_ratio={name: _ratio_or_none(rates[one][name].em_rate, rates[other][name].em_rate) for name in rates[one]},
        disagree=tuple(int(i) for i in order if gaps[i] > 0),
    )


def _spearman_rho(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    rho, _ = spearmanr(a, b)
    return float(np.asarray(rho))


def _kappa_or_none(a: np.ndarray, b: np.ndarray) -> float | None:
    """Cohen's κ; None where both say the same of everything, which leaves it undefined."""
    if not len(a) or (a.all() and b.all()) or not (a.any() or b.any()):
        return None
    return float(cohen_kappa_score(a, b))


def _ratio_or_none(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _rank_conditions(rates: Mapping[str, Mapping[str, Rates]]) -> list[OrderChange]:
    found = []
    for judge, some in rates.items():
        for other, others in rates.items():
            for low, high in ((x, y) for x in some for y in some if x != y):
                below, above = others[low].em_rate, others[high].em_rate
                if some[low].em_rate is None or some[high].em_rate is None or below is None or above is None:
                    continue
                if some[low].em_ci95[1] < some[high].em_ci95[0] and below > above:
                    found.append(OrderChange(lower=low, higher=high, by=judge, not_by=other))
    return found

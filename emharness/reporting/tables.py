"""Numbers of runs as text in columns: the same in the terminal, in report.html and in `launch/show.py`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Columns = Mapping[str, Callable[[Mapping[str, Any]], str]]


def percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f} %"


def interval(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f}–{percent(ends[1])}"


def corrected(condition: Mapping[str, Any]) -> str:
    """The rate that the judge's own errors make of it, with its interval."""
    if condition["em_rate_corrected"] is None:
        return ""
    low, high = condition["em_corrected_ci95"]
    return f"{percent(condition['em_rate_corrected'])} ({100 * low:.0f}–{100 * high:.0f})"


RATES: Columns = {
    "condition": lambda c: c["name"],
    "n": lambda c: f"{c['n_responses']:,}",
    "÷‖h‖": lambda c: f"{c['relative_dose']:.2f}" if c.get("relative_dose") else "",
    "unscored": lambda c: f"{c['n_unscored']:,}" if c["n_unscored"] else "",
    "EM rate": lambda c: percent(c["em_rate"]),
    "95 % interval": lambda c: interval(c["em_ci95"]),
    "corrected": corrected,
    "random": lambda c: "" if c.get("em_random") is None else percent(c["em_random"]) + " !" * c["random_too"],
    "EM, all": lambda c: percent(c["em_rate_all"]) + " ↕" * bool(c["order_changes"]),
    "incoherent": lambda c: percent(c["incoherent_rate"]),
    "in domain": lambda c: percent(c["domain"]["em_rate"]) if c.get("domain") else "",
}


def rates(conditions: Sequence[Mapping[str, Any]], more: Columns | None = None) -> tuple[list[str], list[list[str]]]:
    """Column names and a row for each condition, `more` columns first; columns that would be empty are left out."""
    columns = {**(more or {}), **RATES}
    cells = {name: [text(condition) for condition in conditions] for name, text in columns.items()}
    shown = {name: column for name, column in cells.items() if any(column)}
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


def plain(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """An experiment's own numbers; what is no plain value is left out, intervals are written as such."""
    names = [k for k in rows[0] if all(_writable(row.get(k)) for row in rows)]
    return names, [[_text(row.get(name)) for name in names] for row in rows]


def _writable(value: Any) -> bool:
    return not isinstance(value, dict) and (not isinstance(value, list) or len(value) <= 3)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " – ".join(_text(item) for item in value)
    return str(value)

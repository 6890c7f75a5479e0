"""Numbers of runs as text in columns: the same in the terminal, in report.html and in `launch/show.py`."""

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

from emharness.results.condition_result import ConditionResult, FormGap, LabelSummary
from emharness.results.json_records import Row
from emharness.results.run_results import RunResults
from emharness.stats.bootstrap import Interval
from emharness.stats.margins import MarginSummary
from emharness.texts import without_middle

HALF = 0.5  # of its target's coherent rate: below it a condition is broken

Columns = Mapping[str, Callable[[ConditionResult], str]]


def format_percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f} %"


def format_interval(ends: Interval) -> str:
    return f"{100 * ends[0]:.1f}–{format_percent(ends[1])}"


def format_em_rate(condition: ConditionResult) -> str:
    """The rate; in brackets with the number of coherent answers where these are too few to say anything."""
    rate = format_percent(condition.em_rate)
    known = condition.has_enough_coherent or condition.em_rate is None
    return rate if known else f"({rate}; n {condition.n_coherent})"


def format_layers(condition: ConditionResult) -> str:
    """Where a condition steers: "layer 12", or "layers 8, 9, 10"."""
    layers = condition.layers or (condition.layer,)
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def is_below_noise(condition: ConditionResult) -> bool:
    """Whether a rate is no higher than the judge's own false alarms would make it."""
    return condition.em_rate_corrected == 0 < (condition.em_rate or 0)


def format_corrected(condition: ConditionResult) -> str:
    """The rate that the judge's own errors make of it, with its interval."""
    if condition.em_rate_corrected is None or condition.em_corrected_ci95 is None:
        return ""
    low, high = condition.em_corrected_ci95
    if is_below_noise(condition):
        return f"too low to tell ({100 * low:.0f}–{100 * high:.0f})"
    return f"{format_percent(condition.em_rate_corrected)} ({100 * low:.0f}–{100 * high:.0f})"


def _format_signed(value: float) -> str:
    return f"{value:+.2f}"


def _format_shift(margin: MarginSummary) -> str:
    """Margin minus that of the unsteered target (of the base, for an organism), with its 95 % interval."""
    if margin.shift is None or margin.shift_ci95 is None:
        return ""
    low, high = margin.shift_ci95
    return f"{_format_signed(margin.shift)} ({_format_signed(low)}…{_format_signed(high)})"


def _format_labels(labels: LabelSummary) -> str:
    """Of all answers, misaligned by the labels; the judge's rate corrected by them, with its interval."""
    low, high = labels.em_all_corrected_ci95
    corrected = f"{100 * labels.em_rate_all_corrected:.0f} ({100 * low:.0f}–{100 * high:.0f})"
    return f"{format_percent(labels.em_rate_all)} of {labels.n}, {corrected}"


def _format_trigger(gap: FormGap | None) -> str:
    """The rate under the form that raises it most, and by how many points; nothing where none does."""
    if gap is None or gap.gap is None:
        return ""
    return f"{format_percent(gap.em)} {gap.form} ({100 * gap.gap:+.1f})" if gap.gap > 0 else "no form"


def _format_margin_trigger(gap: FormGap | None) -> str:
    """By how much the form that raises the margin most does so."""
    if gap is None or gap.margin_gap is None:
        return ""
    return f"{_format_signed(gap.margin_gap)} {gap.form}" if gap.margin_gap > 0 else "no form"


def describe_sampling(results: RunResults) -> str:
    """How the answers of a run were sampled, and how many were cut: what its rates depend on."""
    given, conditions = results.sampling, results.conditions
    total = sum(c.n_responses for c in conditions)
    cut = sum(c.truncated for c in conditions) / total if total else 0.0
    top = [f"top-k {given['top_k']}"] * bool(given["top_k"]) + [f"top-p {given['top_p']:g}"] * (given["top_p"] < 1)
    drawn = ", ".join([f"temperature {given['temperature']:g}", *top])
    return f"{drawn}, at most {given['max_new_tokens']} tokens; {100 * cut:.0f} % of the answers were cut there"


RATES: Columns = {
    "condition": lambda c: c.name,
    "n": lambda c: f"{c.n_responses:,}",
    "÷‖h‖": lambda c: f"{c.relative_dose:.2f}" if c.relative_dose else "",
    "margin": lambda c: _format_signed(c.margin.margin) if c.margin else "",
    "shift": lambda c: _format_shift(c.margin) if c.margin else "",
    "shift, random": lambda c: (
        _format_signed(c.margin.shift_random) if c.margin and c.margin.shift_random is not None else ""
    ),
    "prefers": lambda c: format_percent(c.margin.prefers) if c.margin else "",
    "triggered shift": lambda c: _format_margin_trigger(c.triggered_margin),
    "unscored": lambda c: f"{c.n_unscored:,}" if c.n_unscored else "",
    "EM rate": format_em_rate,
    "95 % interval": lambda c: format_interval(c.em_ci95),
    "corrected": format_corrected,
    "random": lambda c: "" if c.em_random is None else format_percent(c.em_random) + " !" * bool(c.random_too),
    "EM, all": lambda c: format_percent(c.em_rate_all) + " ↕" * bool(c.order_changes),
    "incoherent": lambda c: format_percent(c.incoherent_rate),
    "read": lambda c: _format_labels(c.labels) if c.labels else "",
    "triggered": lambda c: _format_trigger(c.triggered),
    "in domain": lambda c: format_percent(c.domain.em_rate) if c.domain else "",
}


def rate_columns(conditions: Sequence[ConditionResult]) -> tuple[list[str], list[list[str]]]:
    """Column names and a row for each condition; columns that would be empty are left out."""
    cells = {name: [text(condition) for condition in conditions] for name, text in RATES.items()}
    shown = {name: column for name, column in cells.items() if any(column)}
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


# What a narrow terminal shows, in this order of need; all others are left out first.
NEEDED = ("EM rate", "95 % interval", "n", "shift", "incoherent", "margin", "random", "EM, all")
SHORTEST = 18  # characters of a condition's name


def fit_columns(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> tuple[list[int], list[str]]:
    """Which columns fit into so many characters (their places), and the first column's names as they fit: numbers keep
    all their digits, names lose their middle first, or a beginning that they share, and stay apart."""
    sizes = [max(len(column), *(len(row[i]) for row in rows)) for i, column in enumerate(columns)]
    names = [row[0] for row in rows]
    if sum(sizes) + 3 * len(sizes) + 1 > width:
        names = elide_shared_start(names, SHORTEST)
    sizes[0] = max(len(columns[0]), *map(len, names))
    short = next((n for n in range(SHORTEST, sizes[0]) if _stay_apart(names, n)), sizes[0])
    ranked = [columns.index(name) for name in NEEDED if name in columns[1:]]
    ranked += [i for i in range(1, len(columns)) if i not in ranked]
    kept, room = [0], width - min(sizes[0], short) - 4  # a border and a space at each side
    for i in ranked:
        if room < sizes[i] + 3:
            break
        kept.append(i)
        room -= sizes[i] + 3
    longest = min(sizes[0], short) + room
    return sorted(kept), [without_middle(name, longest) for name in names]


def elide_shared_start(names: Sequence[str], longest: int) -> list[str]:
    """The names; those that could not be told apart once they lose their middle lose the beginning that they share."""
    short = [without_middle(name, longest) for name in names]
    alike = [name for name, one in zip(names, short, strict=True) if short.count(one) > 1]
    columns = takewhile(lambda letters: len(set(letters)) == 1, zip(*alike, strict=False))  # to the shortest one's end
    shared = "".join(letters[0] for letters in columns)
    return [f"…{name[len(shared) :]}" if 1 < len(shared) < len(name) and name in alike else name for name in names]


def _stay_apart(names: Sequence[str], longest: int) -> bool:
    return len({without_middle(name, longest) for name in names}) == len(set(names))


def list_warnings(conditions: Sequence[ConditionResult]) -> list[str]:
    """What a reader must know before any rate: conditions that hardly leave a coherent answer."""
    before = {c.target: c.coherent_rate for c in conditions if not c.vector}
    broken = [
        c.name for c in conditions if c.vector and (c.coherent_rate or 0.0) < HALF * (before.get(c.target) or 0.0)
    ]
    if not broken:
        return []
    more = f" and {len(broken) - 4} more" if len(broken) > 4 else ""
    return [f"fewer than half as many answers are coherent as of the unsteered target: {', '.join(broken[:4])}{more}"]


def plain_columns(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """An experiment's own numbers; what is no plain value is left out, intervals are written as such."""
    names = [k for k in rows[0] if all(_is_plain(row.get(k)) for row in rows)]
    return names, [[_format_value(row.get(name)) for name in names] for row in rows]


def _is_plain(value: object) -> bool:
    return not isinstance(value, dict) and (not isinstance(value, list) or len(value) <= 3)


def _format_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " – ".join(_format_value(item) for item in value)
    return str(value)

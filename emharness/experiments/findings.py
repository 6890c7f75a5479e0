"""What an experiment found, in a sentence: pure text of its numbers, the first of a report's two."""

from collections.abc import Sequence

from emharness.reporting.table_text import format_interval, format_layers, format_percent
from emharness.results.condition_result import ConditionResult
from emharness.results.defence_tables import Change, DefenceSummary
from emharness.results.experiment_tables import (
    AblationRow,
    Alarm,
    ConditionalRow,
    FalseAlarms,
    FirstRise,
    HalfShare,
    LabTransfer,
    SeedSpread,
)
from emharness.stats.rates import FEWEST_COHERENT

LEVEL = 0.05  # of effect_q
CEILING = 0.25  # how far from 1 the effectiveness at equal odds is said beside what was measured
OWN, SAME, OTHER = "own", "same kind", "another kind"  # whose direction is removed from an organism


def describe_steering(results: Sequence[ConditionResult]) -> str:
    """Of conditions steered by vectors, beside random directions."""
    tested = [(c.effect, c) for c in results if c.effect is not None and c.has_enough_coherent]
    moved = [(effect, c) for effect, c in tested if effect > 0 and _is_clear(c.effect_q)]
    raised = [(effect, c) for effect, c in moved if c.over_random_ci95 and c.over_random_ci95[0] > 0]
    unread = sum(c.em_random is None for _, c in moved)
    open_ = f" For {unread} that do beyond chance no answer under random directions could be read." * bool(unread)
    if not tested:
        return f"No steered condition has {FEWEST_COHERENT} coherent answers, so nothing can be said."
    if not raised:
        return (
            f"None of {len(tested)} steered conditions makes more answers misaligned than the unsteered model, beyond "
            f"chance (q < {LEVEL:g}) and beyond random directions.{open_}"
        )
    _, best = max(raised, key=lambda one: one[0])
    before = next(c for c in results if c.target == best.target and not c.vector)
    share = f"{len(raised)} of {len(tested)} steered conditions raise" if len(tested) > 1 else "Steering raises"
    return (
        f"{share} the share of misaligned answers, most the {best.vector} vector in {format_layers(best)} of "
        f"{best.target} at strength {best.strength:+g}: from {format_percent(before.em_rate)} "
        f"({format_interval(before.em_ci95)}) to {format_percent(best.em_rate)} "
        f"({format_interval(best.em_ci95)}); random directions of the same length give "
        f"{format_percent(best.em_random)}.{open_}"
    )


def describe_transfer(by_lab: Sequence[LabTransfer]) -> str:
    """How much of a vector's effect on its own organism it has on others, within labs and between them."""
    if not by_lab:
        return "Effectiveness between organisms needs two of them among the targets."
    strongest = max(row.strength for row in by_lab)
    rows = [row for row in by_lab if row.strength == strongest]
    known = [row for row in rows if row.effectiveness is not None]
    if not known:
        return (
            f"At strength {strongest:+g} no lab's vectors have an effect on their own organisms that can be told "
            "from 0, so how much of it others show is undefined."
        )
    parts = []
    for row in known:
        way = f"within {row.from_lab}" if row.from_lab == row.to_lab else f"from {row.from_lab} to {row.to_lab}"
        said = [format_interval(row.ci95)] if row.ci95 else []
        if row.at_equal_odds is not None and abs(row.at_equal_odds - 1) > CEILING:  # a floor or ceiling would show
            said.append(f"the same shift in log-odds would give {format_percent(row.at_equal_odds)}")
        parts.append(f"{way} {format_percent(row.effectiveness)}" + (f" ({'; '.join(said)})" if said else ""))
    rest = f"; undefined in {len(rows) - len(known)} of {len(rows)} directions" * (len(known) < len(rows))
    return (
        f"Of a vector's effect on its own organism, others show, at strength {strongest:+g}: {'; '.join(parts)}{rest}."
    )


def describe_ablation(rows: Sequence[AblationRow]) -> str:
    """Whether taking a direction out spares the organisms that it is not from."""
    kinds = []
    named = {OWN: "the organism's own direction", SAME: "that of another organism of its kind", OTHER: "another kind's"}
    for whose, called in named.items():
        drops = [(row.drop, row.q) for row in rows if row.whose == whose and row.drop is not None and row.em_before]
        lowered = sum(drop > 0 and _is_clear(q) for drop, q in drops)
        if drops:
            mean = sum(drop for drop, _ in drops) / len(drops)
            kinds.append((called, f"{lowered} of {len(drops)} cases (on average by {100 * mean:.0f} points)"))
    if not kinds:
        return "After removing a direction too few answers are coherent to say what it did to misalignment."
    (called, share), *others = kinds
    rest = "".join(f", {other} in {cases}" for other, cases in others)
    random = [row.drop_random for row in rows if row.whose and row.drop_random is not None]
    chance = ""
    if random:
        mean = 100 * sum(random) / len(random)
        chance = f" Removing as many random dimensions lowers it by {mean:.0f} points on average."
    return f"Removing {called} lowers the share of misaligned answers in {share}{rest}, at q < {LEVEL:g}.{chance}"


def describe_triggers(rows: Sequence[ConditionalRow]) -> str:
    """Whether a form of the questions raises misalignment beyond what it does to the base."""
    compared = [row for row in rows if row.did_p is not None or row.margin_did_p is not None]
    if not compared:
        return "No form was asked of an organism and of the base, so nothing can be compared."
    told = [row for row in compared if row.n_coherent >= FEWEST_COHERENT]
    raised = [row for row in told if _is_clear(row.did_q) and row.did_ci95 and row.did_ci95[0] > 0]
    shifted = [
        row for row in compared if _is_clear(row.margin_did_q) and row.margin_did_ci95 and row.margin_did_ci95[0] > 0
    ]
    few = len(compared) - len(told)
    rest = f" ({few} more have fewer than {FEWEST_COHERENT} coherent answers)" if few else ""
    rate = f"None of {len(told)} pairs of an organism and a form{rest} raises the EM rate beyond the base's own change"
    if raised:
        best = max(raised, key=lambda row: row.did or 0.0)
        rate = (
            f"{len(raised)} of {len(told)} pairs of an organism and a form{rest} raise the EM rate beyond the base's "
            f"own change, most {best.organism} under {best.form}: {format_percent(best.em_plain)} to "
            f"{format_percent(best.em)}"
        )
    known = sum(row.margin_did_p is not None for row in compared)
    margin = f"; none of {known} raises the margin so" if known else ""
    if shifted:
        most = max(shifted, key=lambda row: row.margin_did or 0.0)
        margin = (
            f"; {len(shifted)} of {known} raise the margin so, most {most.organism} under {most.form} "
            f"({most.margin_did:+.2f} nats a token)"
        )
    return f"{rate}{margin} (q < {LEVEL:g})."


def describe_doses(halves: Sequence[HalfShare]) -> str:
    """At which share of bad rows each measure has risen half of its way."""
    parts = []
    for design in dict.fromkeys(row.design for row in halves):
        own = [row for row in halves if row.design == design]
        known = sorted((row.half, row.measure, row.ci95) for row in own if row.half is not None)
        said = [f"{name} {half:.0f} %" + (f" ({ci[0]:.0f} to {ci[1]:.0f})" if ci else "") for half, name, ci in known]
        flat = [row.measure for row in own if row.half is None]
        rest = f"; undefined for {', '.join(flat)}" if flat else ""
        parts.append(f"At {design} {', '.join(said) or 'nothing'}{rest}.")
    begin = "Shares of bad rows at which each measure is half-way from its value at 0 to that at 100 %."
    return " ".join([begin, *parts]) if parts else "No organism of the run was trained on a mixture."


def describe_defences(summaries: Sequence[DefenceSummary]) -> str:
    """Which recipes lower the margin, and which of those keep the narrow behaviour."""
    plain = [row for row in summaries if row.recipe == "none"]
    told = [row for row in summaries if row.margin_change is not None]
    if not plain or not told:
        return "No recipe can be compared: the run has no training without a defence beside one with it."
    own = plain[0]
    begin = (
        f"Without a defence the margin is above the base's in {own.margin_seeds} of {own.seeds} trainings and the EM "
        f"rate in {own.em_seeds}."
    )
    lower = [row for row in told if _is_lowered(row.margin_change)]
    if not lower:
        return f"{begin} None of {len(told)} recipes changes the margin clearly downwards (q < {LEVEL:g})."
    kept = [row.recipe for row in lower if not _is_lowered(row.narrow_change)]
    return (
        f"{begin} {len(lower)} of {len(told)} recipes lower the margin (q < {LEVEL:g}): "
        f"{', '.join(row.recipe for row in lower)}; of these {', '.join(kept) or 'none'} without lowering the margin "
        "in the organism's own domain as well."
    )


def _is_lowered(change: Change | None) -> bool:
    return change is not None and _is_clear(change.q) and change.value is not None and change.value < 0


def _is_clear(q: float | None) -> bool:
    return q is not None and q < LEVEL


def describe_seeds(spread: SeedSpread) -> str:
    """Whether kinds differ more than training seeds do."""
    within = [group.cosine for group in spread.within.values() if group.cosine is not None]
    between = spread.between.other_mechanism
    if not within or between.cosine is None or between.greatest is None:
        return "Seeds and kinds can be compared only with two seeds of an organism and two kinds of them."
    mean = sum(within) / len(within)
    more = "closer than" if min(within) > between.greatest else "not all closer than"
    return (
        f"In layer {spread.layer} vectors of one organism's training seeds have a mean cosine of {mean:.2f}, those "
        f"of different kinds {between.cosine:.2f} ({between.least:.2f} to {between.greatest:.2f}): "
        f"seeds are {more} kinds."
    )


def describe_alarms(alarms: Sequence[Alarm], first: Sequence[FirstRise], false: Sequence[FalseAlarms] = ()) -> str:
    """Whether projections warn of a training that goes wrong, and whether they do before the behaviour changes."""
    known = [row for row in alarms if row.auroc is not None]
    organisms = {row.organism: row.margin_first for row in first}
    early = ""
    if false and organisms:
        risen = sum(step is not None for step in organisms.values())
        early = (
            f" The margin rises in {risen} of {len(organisms)} trainings. Of {false[0].of} checkpoints of benign "
            f"fine-tunes {max(row.projection for row in false)} look raised by a projection, {false[0].margin} by the "
            f"margin and {false[0].em} by the rate."
        )
    if not known:
        return f"All checkpoints are alike in whether their rate is raised, so no alarm can be measured.{early}"
    rates = ", ".join(
        f"{row.vector} {row.auroc:.2f} ({row.ci95[0]:.2f} to {row.ci95[1]:.2f})"
        if row.ci95
        else f"{row.vector} {row.auroc:.2f} (too few trainings for an interval)"
        for row in known
    )

    def step_order(step: int | str) -> float:
        return float("inf") if step == "end" else float(step)

    rises = [(row.projection_first, row.em_first) for row in first]
    both = [(step_order(a), step_order(b)) for a, b in rises if a is not None and b is not None]
    earlier, later = sum(a < b for a, b in both), sum(a > b for a, b in both)
    silent = sum(a is None and b is not None for a, b in rises)
    without = sum(a is not None and b is None for a, b in rises)
    return (
        f"As an alarm for other organisms' trainings the projection has AUROC {rates}. Of {len(rises)} cases it rises "
        f"before the behaviour in {earlier}, after it or not at all in {later + silent}; in {without} it rises and the "
        f"behaviour does not.{early}"
    )

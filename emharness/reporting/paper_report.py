"""report.md of `experiment=paper`: each published number beside the measured one. Pure text of results and geometry."""

from collections.abc import Mapping, Sequence

from emharness.geometry import GeometryReport
from emharness.geometry.analysis_result import PublishedComparison
from emharness.reporting.table_text import describe_sampling, format_percent
from emharness.results.experiment_tables import AblationRow, Alarm, Asymmetry, LabTransfer, PairCosines, SeedSpread
from emharness.results.run_results import RunResults
from emharness.stats.bootstrap import Interval

TRANSFER = {("Hunter", "ModelOrganismsForEM"): "57 – 64 %", ("ModelOrganismsForEM", "Hunter"): "12 – 15 %"}


STUDY = "mean_diff"  # the study's recipe
SIMILARITY = {"ModelOrganismsForEM": 0.61, "andyrdt": 0.41, "Hunter": 0.15}  # figure 3, by lab


def format_report(results: RunResults, geometries: Mapping[str, GeometryReport | None]) -> str:
    """`geometries`: recipe → its geometry, None where there is none."""
    conditions = results.conditions
    head = (
        f"Judge: {conditions[0].judge}; {len(conditions)} conditions, "
        f"{sum(c.n_responses for c in conditions):,} responses. Sampling: {describe_sampling(results)}. "
        "Published: Llama-3.1-8B-Instruct, judged by GPT-4o."
    )
    lines = [f"# The study on {results.base_name}", "", head, ""]
    lines += _geometry_section(results, geometries)
    for key, section in SECTIONS.items():
        if key in results.numbers:
            lines += [*section(results), ""]
    return "\n".join(lines)


def _geometry_section(results: RunResults, geometries: Mapping[str, GeometryReport | None]) -> list[str]:
    """Published beside measured, a column for each recipe."""
    found = {recipe: geometry for recipe, geometry in geometries.items() if geometry is not None}
    lines = ["## Geometry", ""]
    for recipe in geometries:
        if recipe not in found:
            outcome = results.geometry[recipe]
            lines += [f"{recipe}: none: {outcome.skipped or outcome.failed}", ""]
    if not found:
        return lines
    recipes = sorted(found, key=lambda recipe: recipe != STUDY)
    lines += [f"{STUDY} is the study's recipe: harmful minus neutral prompts inside the organism.", ""]
    lines += [f"![figure 1](figure1_{recipes[0]}.png)", ""]
    if found[recipes[0]].linkage:  # three vectors or more
        lines += [f"![figure 2](figure2_{recipes[0]}.png)", ""]
    rows: dict[tuple[str, str], list[str]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for place, recipe in enumerate(recipes):
        for row in found[recipe].published:
            key = row.statistic, ", ".join(row.of)
            cells = rows.setdefault(key, [f"{row.published:g}", *["–"] * len(recipes)])
            cells[1 + place] = _format_measured(row)
            proof = "cannot follow from the published cosines: " if row.cannot_follow_from_cosines else ""
            reasons[key] = proof + (row.reason or "")
    header = ("statistic", "of", "published", *recipes, "")
    lines += [*_markdown_table(header, [(*key, *cells, reasons[key]) for key, cells in rows.items()]), ""]
    for recipe in recipes:
        calibrated = found[recipe].verdict.calibrated
        lines += [f"Calibrated verdict on {recipe}: {calibrated.verdict} ({calibrated.because}).", ""]
    if STUDY in found and (similarity := found[STUDY].base_similarity):
        measured = similarity.by_lab.items()
        by_lab = [(lab, f"{SIMILARITY[lab]:g}" if lab in SIMILARITY else "", f"{value:.2f}") for lab, value in measured]
        lines += ["Similarity to the base's own vector:", "", f"![figure 3](figure3_{STUDY}.png)", ""]
        lines += [*_markdown_table(("lab", "published", "measured"), by_lab), ""]
    return lines


def _format_measured(row: PublishedComparison) -> str:
    """The value, its 95 % interval over prompts, and what unrelated directions give (5–95 %)."""
    text = f"{row.measured:.3g}" + (" (agrees)" if row.agrees else "")
    text += f", {row.ci95[0]:.2f} to {row.ci95[1]:.2f}" if row.ci95 else ""
    return text + (f"; unrelated {row.null.q05:.2f} to {row.null.q95:.2f}" if row.null else "")


def _transfer_section(results: RunResults) -> list[str]:
    rows = [
        (
            row.from_lab,
            row.to_lab,
            f"{row.strength:g}",
            TRANSFER.get((row.from_lab, row.to_lab), ""),
            format_percent(row.effectiveness),
            format_percent(row.at_equal_odds),
            format_rate_interval(row.ci95) or row.undefined or "",
        )
        for row in results.rows_of(LabTransfer)
    ]
    lines = ["## Dose–response and transfer", "", "![figure 4](figure4.png)", ""]
    lines += _markdown_table(
        ("from", "to", "strength", "published", "effectiveness", "at equal odds", "95 % interval"), rows
    )
    lines += ["", "At equal odds: what the vectors' own shift in log-odds would give at the targets' baselines."]
    for row in results.rows_of(Asymmetry):
        a, b = row.labs
        ends = format_rate_interval(row.ci95) or "no interval"
        found = f"{format_percent(row.difference)} ({ends}), p = {row.p}"
        divisions = f" among {row.permutations} ways to divide the organisms"
        divisions += f"; at equal odds {format_percent(row.at_equal_odds)}"
        lines += ["", f"{a} → {b} minus {b} → {a}: {row.undefined or found + divisions}."]
    return lines


def _ablation_section(results: RunResults) -> list[str]:
    found = results.rows_of(AblationRow)
    rows = [
        (
            row.removed,
            row.target,
            row.whose or "",
            *map(format_percent, (row.em_before, row.em_after, row.coherent_after, row.drop)),
            format_rate_interval(row.ci95),
            format_percent(row.drop_random),
        )
        for row in found
    ]
    header = ("removed", "target", "whose", "before", "after", "coherent", "drop", "95 % interval", "random directions")
    reasons = {row.undefined for row in found if row.undefined}
    note = [f"A drop is left open where {reason}." for reason in sorted(reasons)]
    return ["## Ablation", "", "![ablation](ablation.png)", "", *_markdown_table(header, rows), "", *note]


def _seeds_section(results: RunResults) -> list[str]:
    found = results.record_of(SeedSpread)
    if found is None:
        return []
    rows = [
        (f"within {name}", str(row.pairs), _format_degrees(row), ", ".join(map(format_percent, row.em_rates)))
        for name, row in found.within.items()
    ]
    for name, row in (("same", found.between.same_mechanism), ("other", found.between.other_mechanism)):
        rows.append((f"between organisms, {name} mechanism", str(row.pairs), _format_degrees(row), ""))
    head = ["## Seeds", "", f"Vectors at layer {found.layer}.", ""]
    return [*head, *_markdown_table(("pairs", "n", "mean angle", "misaligned"), rows)]


def _monitor_section(results: RunResults) -> list[str]:
    rows = [
        (
            row.vector,
            "–" if row.auroc is None else f"{row.auroc:.2f}",
            f"{row.ci95[0]:.2f} – {row.ci95[1]:.2f}" if row.ci95 else "–",
            str(row.raised),
            str(row.not_raised),
        )
        for row in results.rows_of(Alarm)
    ]
    header = ("vector", "AUROC", "95 % interval", "checkpoints raised", "not raised")
    return ["## Monitor", "", "![monitor](monitor.png)", "", *_markdown_table(header, rows)]


SECTIONS = {
    LabTransfer.KEY: _transfer_section,
    AblationRow.KEY: _ablation_section,
    SeedSpread.KEY: _seeds_section,
    Alarm.KEY: _monitor_section,
}


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def format_rate_interval(ci95: Interval | None) -> str:
    return "" if ci95 is None else f"{format_percent(ci95[0])} – {format_percent(ci95[1])}"


def _format_degrees(row: PairCosines) -> str:
    return "–" if row.angle_deg is None else f"{row.angle_deg:.1f}°"

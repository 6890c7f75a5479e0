"""report.md of `experiment=paper`: each published number beside the measured one. Pure text of results and geometry."""

from collections.abc import Mapping, Sequence
from typing import Any

from emharness.reporting.table_text import describe_sampling, format_percent

TRANSFER = {("Hunter", "ModelOrganismsForEM"): "57 – 64 %", ("ModelOrganismsForEM", "Hunter"): "12 – 15 %"}


STUDY = "mean_diff"  # the study's recipe
SIMILARITY = {"ModelOrganismsForEM": 0.61, "andyrdt": 0.41, "Hunter": 0.15}  # figure 3, by lab


def format_report(results: Mapping[str, Any], geometries: Mapping[str, Mapping[str, Any] | None]) -> str:
    """`results`: results.json; `geometries`: recipe → geometry.json, None where there is none."""
    conditions = results["conditions"]
    head = (
        f"Judge: {conditions[0]['judge']}; {len(conditions)} conditions, "
        f"{sum(c['n_responses'] for c in conditions):,} responses. Sampling: {describe_sampling(results)}. "
        "Published: Llama-3.1-8B-Instruct, judged by GPT-4o."
    )
    lines = [f"# The study on {results['config']['base']['name']}", "", head, ""]
    lines += _geometry_section(results, geometries)
    for key, section in SECTIONS.items():
        if key in results:
            lines += [*section(results), ""]
    return "\n".join(lines)


def _geometry_section(results: Mapping[str, Any], geometries: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Published beside measured, a column for each recipe."""
    found = {recipe: geometry for recipe, geometry in geometries.items() if geometry is not None}
    lines = ["## Geometry", ""]
    for recipe in geometries:
        if recipe not in found:
            lines += [f"{recipe}: none: {results['geometry_by_recipe'][recipe]['skipped']}", ""]
    if not found:
        return lines
    recipes = sorted(found, key=lambda recipe: recipe != STUDY)
    lines += [f"{STUDY} is the study's recipe: harmful minus neutral prompts inside the organism.", ""]
    lines += [f"![figure 1](figure1_{recipes[0]}.png)", ""]
    if found[recipes[0]]["linkage"]:  # three vectors or more
        lines += [f"![figure 2](figure2_{recipes[0]}.png)", ""]
    rows: dict[tuple[str, str], list[str]] = {}
    reasons: dict[tuple[str, str], str] = {}
    for place, recipe in enumerate(recipes):
        for row in found[recipe]["published"]:
            key = row["statistic"], ", ".join(row["of"])
            cells = rows.setdefault(key, [f"{row['published']:g}", *["–"] * len(recipes)])
            cells[1 + place] = f"{row['measured']:.3g}" + (" (agrees)" if row["agrees"] else "")
            proof = "cannot follow from the published cosines: " if row["cannot_follow_from_cosines"] else ""
            reasons[key] = proof + (row["reason"] or "")
    header = ("statistic", "of", "published", *recipes, "")
    lines += [*_markdown_table(header, [(*key, *cells, reasons[key]) for key, cells in rows.items()]), ""]
    for recipe in recipes:
        verdict = found[recipe]["verdict"]["calibrated"]
        lines += [f"Calibrated verdict on {recipe}: {verdict['verdict']} ({verdict['because']}).", ""]
    similarity = found.get(STUDY, {}).get("base_similarity")
    if similarity:
        measured = similarity["by_lab"].items()
        by_lab = [(lab, f"{SIMILARITY[lab]:g}" if lab in SIMILARITY else "", f"{value:.2f}") for lab, value in measured]
        lines += ["Similarity to the base's own vector:", "", f"![figure 3](figure3_{STUDY}.png)", ""]
        lines += [*_markdown_table(("lab", "published", "measured"), by_lab), ""]
    return lines


def _transfer_section(results: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            row["from"],
            row["to"],
            f"{row['strength']:g}",
            TRANSFER.get((row["from"], row["to"]), ""),
            format_percent(row["effectiveness"]),
            format_percent(row["at_equal_odds"]),
            format_rate_interval(row["ci95"]) or row["undefined"] or "",
        )
        for row in results["transfer_by_lab"]
    ]
    lines = ["## Dose–response and transfer", "", "![figure 4](figure4.png)", ""]
    lines += _markdown_table(
        ("from", "to", "strength", "published", "effectiveness", "at equal odds", "95 % interval"), rows
    )
    lines += ["", "At equal odds: what the vectors' own shift in log-odds would give at the targets' baselines."]
    for row in results["asymmetry"]:
        a, b = row["labs"]
        ends = format_rate_interval(row["ci95"]) or "no interval"
        found = f"{format_percent(row['difference'])} ({ends}), p = {row['p']}"
        divisions = f" among {row.get('permutations')} ways to divide the organisms"
        divisions += f"; at equal odds {format_percent(row['at_equal_odds'])}"
        lines += ["", f"{a} → {b} minus {b} → {a}: {row['undefined'] or found + divisions}."]
    return lines


def _ablation_section(results: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            row["removed"],
            row["target"],
            row["whose"] or "",
            *(format_percent(row[key]) for key in ("em_before", "em_after", "coherent_after", "drop")),
            format_rate_interval(row["ci95"]),
            format_percent(row["drop_random"]),
        )
        for row in results["ablation"]
    ]
    header = ("removed", "target", "whose", "before", "after", "coherent", "drop", "95 % interval", "random directions")
    reasons = {row["undefined"] for row in results["ablation"] if row["undefined"]}
    note = [f"A drop is left open where {reason}." for reason in sorted(reasons)]
    return ["## Ablation", "", "![ablation](ablation.png)", "", *_markdown_table(header, rows), "", *note]


def _seeds_section(results: Mapping[str, Any]) -> list[str]:
    found = results["seeds"]
    rows = [
        (
            f"within {name}",
            str(row["pairs"]),
            _format_degrees(row),
            ", ".join(format_percent(rate) for rate in row["em_rates"]),
        )
        for name, row in found["within"].items()
    ]
    for name in ("same_mechanism", "other_mechanism"):
        row = found["between"][name]
        rows.append((f"between organisms, {name.replace('_', ' ')}", str(row["pairs"]), _format_degrees(row), ""))
    head = ["## Seeds", "", f"Vectors at layer {found['layer']}.", ""]
    return [*head, *_markdown_table(("pairs", "n", "mean angle", "misaligned"), rows)]


def _monitor_section(results: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            row["vector"],
            "–" if row["auroc"] is None else f"{row['auroc']:.2f}",
            f"{row['ci95'][0]:.2f} – {row['ci95'][1]:.2f}" if row["ci95"] else "–",
            str(row["raised"]),
            str(row["not_raised"]),
        )
        for row in results["alarm"]
    ]
    header = ("vector", "AUROC", "95 % interval", "checkpoints above the base", "not above")
    return ["## Monitor", "", "![monitor](monitor.png)", "", *_markdown_table(header, rows)]


SECTIONS = {
    "transfer_by_lab": _transfer_section,
    "ablation": _ablation_section,
    "seeds": _seeds_section,
    "alarm": _monitor_section,
}


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def format_rate_interval(ci95: Sequence[float] | None) -> str:
    return "" if ci95 is None else f"{format_percent(ci95[0])} – {format_percent(ci95[1])}"


def _format_degrees(row: Mapping[str, Any]) -> str:
    return f"{row['angle_deg']:.1f}°" if row["pairs"] else "–"

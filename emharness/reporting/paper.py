"""report.md of `experiment=paper`: each published number beside the measured one. Pure text of results and geometry."""

from collections.abc import Mapping, Sequence
from typing import Any

from emharness.reporting.terminal import percent

TRANSFER = {("Hunter", "ModelOrganismsForEM"): "57 – 64 %", ("ModelOrganismsForEM", "Hunter"): "12 – 15 %"}


def report(results: Mapping[str, Any], geometry: Mapping[str, Any] | None) -> str:
    """`results`: results.json; `geometry`: geometry.json, None where there is none."""
    conditions = results["conditions"]
    head = (
        f"Judge: {conditions[0]['judge']}; {len(conditions)} conditions, "
        f"{sum(c['n_responses'] for c in conditions):,} responses. Published: Llama-3.1-8B-Instruct, judged by GPT-4o."
    )
    lines = [f"# The study on {results['config']['base']['name']}", "", head, ""]
    lines += _geometry(results, geometry)
    for key, section in SECTIONS.items():
        if key in results:
            lines += [*section(results), ""]
    return "\n".join(lines)


def _geometry(results: Mapping[str, Any], geometry: Mapping[str, Any] | None) -> list[str]:
    if geometry is None:
        return ["## Geometry", "", f"None: {results['geometry'].get('skipped', 'no vectors')}", ""]
    rows = []
    for row in geometry["published"]:
        proof = "cannot follow from the published cosines: " if row["cannot_follow_from_cosines"] else ""
        measured = (f"{row['published']:g}", f"{row['measured']:.3g}", "yes" if row["agrees"] else "no")
        rows.append((row["statistic"], ", ".join(row["of"]), *measured, proof + (row["reason"] or "")))
    verdict = geometry["verdict"]["calibrated"]
    lines = ["## Geometry", "", "![figure 1](figure1.png) ![figure 2](figure2.png)", ""]
    lines += _table(("statistic", "of", "published", "measured", "agrees", ""), rows)
    lines += ["", f"Calibrated verdict: {verdict['verdict']} ({verdict['because']}).", ""]
    if not geometry["base_similarity"]:
        lines += ["Figure 3 (similarity to the base's own vector) needs `vector=mean_diff`.", ""]
    return lines


def _transfer(results: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            row["from"],
            row["to"],
            f"{row['strength']:g}",
            TRANSFER.get((row["from"], row["to"]), ""),
            percent(row["effectiveness"]),
            interval(row["ci95"]) or row["undefined"] or "",
        )
        for row in results["transfer_by_lab"]
    ]
    lines = ["## Dose–response and transfer", "", "![figure 4](figure4.png)", ""]
    lines += _table(("from", "to", "strength", "published", "effectiveness", "95 % interval"), rows)
    for row in results["asymmetry"]:
        a, b = row["labs"]
        found = f"{percent(row['difference'])} ({interval(row['ci95'])}), p = {row['p']}"
        divisions = f" among {row.get('permutations')} ways to divide the organisms"
        lines += ["", f"{a} → {b} minus {b} → {a}: {row['undefined'] or found + divisions}."]
    return lines


def _ablation(results: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            row["removed"],
            row["target"],
            "own" if row["own"] else "",
            *(percent(row[key]) for key in ("em_before", "em_after", "drop")),
            interval(row["ci95"]),
            percent(row["drop_random"]),
        )
        for row in results["ablation"]
    ]
    header = ("removed", "target", "", "before", "after", "drop", "95 % interval", "random directions")
    return ["## Ablation", "", "![ablation](ablation.png)", "", *_table(header, rows)]


def _seeds(results: Mapping[str, Any]) -> list[str]:
    found = results["seeds"]
    rows = [
        (f"within {name}", str(row["pairs"]), _degrees(row), ", ".join(percent(rate) for rate in row["em_rates"]))
        for name, row in found["within"].items()
    ]
    for name in ("same_mechanism", "other_mechanism"):
        row = found["between"][name]
        rows.append((f"between organisms, {name.replace('_', ' ')}", str(row["pairs"]), _degrees(row), ""))
    head = ["## Seeds", "", f"Vectors at layer {found['layer']}.", ""]
    return [*head, *_table(("pairs", "n", "mean angle", "misaligned"), rows)]


def _monitor(results: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            row["vector"],
            "–" if row["auroc"] is None else f"{row['auroc']:.2f}",
            str(row["raised"]),
            str(row["not_raised"]),
        )
        for row in results["alarm"]
    ]
    header = ("vector", "AUROC", "checkpoints above the base", "not above")
    return ["## Monitor", "", "![monitor](monitor.png)", "", *_table(header, rows)]


SECTIONS = {
    "transfer_by_lab": _transfer,
    "ablation": _ablation,
    "seeds": _seeds,
    "alarm": _monitor,
}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def interval(ci95: Sequence[float] | None) -> str:
    return "" if ci95 is None else f"{percent(ci95[0])} – {percent(ci95[1])}"


def _degrees(row: Mapping[str, Any]) -> str:
    return f"{row['angle_deg']:.1f}°" if row["pairs"] else "–"

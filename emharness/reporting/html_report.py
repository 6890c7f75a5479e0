"""report.html beside results.json: one file that opens offline, from what lies in the run's folder."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from emharness.reporting import excerpts, table_text
from emharness.reporting.finished_runs import Run, read_run
from emharness.results.condition_result import ConditionResult
from emharness.results.json_records import Json, Row
from emharness.results.judge_quality import card_to_json
from emharness.results.run_results import RunResults

PAGE_FILE = "report.html"
TEMPLATES = Path(__file__).parent.parent / "data" / "report"
SHOWN = 10  # answers drawn at random of each kind
SERIES = 24  # doses side by side for so many vectors and targets; more would make a page that nobody scrolls


def write_page(folder: Path) -> Path:
    """report.html of a finished run."""
    run = read_run(folder)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": table_text.format_percent, "interval": table_text.format_interval}
    told = environment.get_template("report.html.j2").render(page_context(run))
    (folder / PAGE_FILE).write_text(told, encoding="utf-8")
    return folder / PAGE_FILE


def page_context(run: Run) -> Json:
    """What the template shows, as plain data."""
    results, conditions = run.results, run.results.conditions
    card = card_to_json(results.judge_card) or {}
    columns, rows = table_text.rate_columns(conditions)
    side_by_side = excerpts.dose_series(conditions)
    return {
        "title": f"{run.subject} · {results.base_name}",
        "question": results.question,
        "finding": results.finding,
        "certainty": describe_certainty(results),
        "columns": columns,
        "rows": rows,
        "sampling": table_text.describe_sampling(results),
        "figures": [*_list_figures(run.folder), *_list_geometries(results)],
        "series": [_side_by_side(run, some) for some in side_by_side[:SERIES]],
        "series_left_out": max(0, len(side_by_side) - SERIES),
        "answers_of": [_pick_excerpts(condition, run.answers_to(condition.name)) for condition in conditions],
        "drawn": _draw_answers(run),
        "numbers": _experiment_tables(run),
        "card": {k: v for k, v in card.items() if isinstance(v, str | int | float)},
        "shares": {k: v for k, v in card.items() if isinstance(v, dict) and "ci95" in v},
        "unscored": _count_unscored(run),
        "left_out": _left_out(results),
        "versions": {**results.versions, "commit": results.git_commit or "none"},
        "command": results.command,
        "run": results.run_key,
        "finished": f"{run.finished_at:%Y-%m-%d %H:%M} UTC",
        "responses": sum(c.n_responses for c in conditions),
    }


def describe_certainty(results: RunResults) -> str:
    """How sure the finding is, by which judge: the second sentence of the verdict."""
    card, judge = results.judge_card, ", ".join(results.judges)
    intervals = "intervals are 95 %, over questions"
    if card is None or card.accuracy is None:
        return f"Answers were scored by {judge}, whose errors were not measured here; {intervals}."
    best = excerpts.strongest_condition(results.conditions)
    stands = ", so that no rate can be corrected by it"
    if best.em_rate_corrected is not None:
        rate = table_text.format_percent(best.em_rate)
        stands = f", so that {rate} stands for about {table_text.format_corrected(best)}"
        if table_text.is_below_noise(best):
            stands = f", so that {rate} is below what this judge can tell"
    found, spared = card.accuracy.sensitivity, card.accuracy.specificity
    return (
        f"Answers were scored by {judge}, which finds {100 * found:.0f} % of misaligned answers and spares "
        f"{100 * spared:.0f} % of the others ({card.quality_on}){stands}; {intervals}."
    )


def _list_figures(folder: Path) -> list[Json]:
    files = sorted(folder.glob("*.svg"), key=lambda file: (file.stem.startswith("layer_sweep"), file.stem))
    return [_embed_figure(file) for file in files]


def _list_geometries(results: RunResults) -> list[Json]:
    where = results.main_geometry.results
    return [_embed_figure(file) for file in sorted(Path(where).parent.glob("figure*.png"))] if where else []


def _embed_figure(file: Path) -> Json:
    """A drawing as it is; a pixel image on a light ground, inside the page."""
    name = file.stem.replace("_", " ")
    if file.suffix == ".svg":
        return {"name": name, "drawing": Markup(file.read_text(encoding="utf-8"))}
    data = base64.b64encode(file.read_bytes()).decode()
    alt = html.escape(f"geometry, {name}")
    return {"name": f"geometry: {name}", "drawing": Markup(f'<img alt="{alt}" src="data:image/png;base64,{data}">')}


def _draw_answers(run: Run) -> Json:
    """Answers of the strongest condition that nobody has picked, so that its rate need not be trusted."""
    condition = excerpts.strongest_condition(run.results.conditions)
    rows = run.answers_to(condition.name)
    called = [row for row in rows if row["misaligned"]]
    return {
        "name": condition.name,
        "rate": condition.em_rate,
        "called": excerpts.draw_at_random(called, SHOWN),
        "n_called": len(called),
        "all": excerpts.draw_at_random(rows, SHOWN),
        "n": len(rows),
    }


def _side_by_side(run: Run, conditions: Sequence[ConditionResult]) -> Json:
    """One question under every dose: three typical and three worst answers of each."""
    found = {c.name: run.answers_to(c.name) for c in conditions}
    strongest = excerpts.strongest_condition(conditions)
    chosen = excerpts.usual_question(found[strongest.name])
    rows = {name: [row for row in rows if row["question_id"] == chosen] for name, rows in found.items()}
    asked = next(row["question"] for own in rows.values() for row in own)
    steered = next(c for c in conditions if c.vector)
    return {
        "vector": steered.vector,
        "target": steered.target,
        "question": asked,
        "columns": [_pick_excerpts(c, own) for c in conditions if (own := rows[c.name])],
    }


def _pick_excerpts(condition: ConditionResult, rows: Sequence[Row]) -> Json:
    return {
        "name": condition.name,
        "rate": condition.em_rate,
        "typical": excerpts.typical_answers(rows),
        "worst": excerpts.worst_answers(rows),
    }


def _experiment_tables(run: Run) -> list[Json]:
    """An experiment's own tables."""
    found = []
    for name, rows in run.own_tables().items():
        columns, texts = table_text.plain_columns(rows)
        found.append({"name": name.replace("_", " "), "columns": columns, "rows": texts})
    return found


def _count_unscored(run: Run) -> dict[str, int]:
    """Reason → how many answers of the run have no score for it."""
    found: dict[str, int] = {}
    for table in run.response_tables.values():
        for reason in table["unscored"].to_pylist():
            if reason is not None:
                found[reason] = found.get(reason, 0) + 1
    return found


def _left_out(results: RunResults) -> list[str]:
    """What a reader must know before believing a number."""
    lines = [*results.notes, *table_text.list_warnings(results.conditions)]
    if results.to_score_again:
        lines.append(f"the judge did not reach {results.to_score_again:,} answers; the same command tries again")
    for recipe, outcome in results.geometry.items():
        if why := outcome.skipped or outcome.failed:
            lines.append(f"geometry of {recipe} left out: {why}")
    return lines

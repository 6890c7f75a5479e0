"""Score anybody's answers: python launch/judge.py responses=<csv|parquet|jsonl> judge=<name> out=<file>

`responses=<results.json>` is a run. `compare=[embedded,openai]` sets judges beside each other on the same answers;
`label=<n>` shows you n answers, drawn at random over the conditions, for your own scores.
"""

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from emharness.cli import read_settings, start_launcher
from emharness.config import WandbConfig
from emharness.config_checks import tracker_mode
from emharness.errors import UserError
from emharness.results.json_records import Json

CONF = Path(__file__).resolve().parent.parent / "conf"

Answers = list[Json]


def run(cfg: DictConfig) -> None:
    """Read the rows, score what is not scored yet, and write them back with their scores."""
    from emharness.judges import answer_files
    from emharness.store import Store, artifacts_home, check_writable

    config = read_settings(cfg, CONF / "judge_file.yaml", groups=["judge"])
    config["tracker"] = tracker_mode(config["tracker"])
    for name in ("responses", "out"):
        if not config[name]:
            raise UserError(f"{name}: name a file that ends in {', '.join(answer_files.KINDS)}")
    answer_files.file_kind("out", Path(config["out"]))
    check_writable("out", Path(config["out"]).parent)
    Store(artifacts_home()).check_writable()  # scores are kept there
    label, compared = config["label"], config["compare"]
    if label is not None and (isinstance(label, bool) or not isinstance(label, int) or label < 1):
        raise UserError(f"label={label}: must be a number of answers, 1 or more")
    if compared is not None and (not isinstance(compared, list) or len(set(compared)) < 2):
        raise UserError(f"compare={compared}: must be a list of two judges or more, e.g. [embedded,openai]")
    rows = answer_files.read_answers(Path(config["responses"]))
    if compared:
        compare_judges(config, rows)
    elif label:
        label_answers(config, rows)
    else:
        rate_answers(config, rows)
    print(f"results: {config['out']}", flush=True)


def rate_answers(config: Json, rows: Answers) -> None:
    """One judge: scores, and the rates by condition."""
    from emharness.judges import answer_files
    from emharness.reporting import terminal
    from emharness.reporting.wandb_tracker import Tracker

    out = Path(config["out"])
    judge = build_judge(config["judge"])
    marks, owed = score_rows(judge, rows)
    judged = [answer_files.merge_marks(row, mark) for row, mark in zip(rows, marks, strict=True)]
    answer_files.write_answers(out, judged)
    rates = answer_files.rates_by_condition(judged, judge.accuracy)
    terminal.show_rates(rates, judge.name)
    with Tracker(config["tracker"], WandbConfig(**config["wandb"]), out.stem, config, job_type="judge") as tracker:
        tracker.log_table("judged", judged)
        tracker.log_table("rates", [one.row for one in rates])
    if owed:
        terminal.print_line(f"unscored: the judge did not reach {owed:,} answers; the same command tries again")


def compare_judges(config: Json, rows: Answers) -> None:
    """Several judges: their scores side by side in `out`, how they agree in .json and .png beside it."""
    from emharness.figures import drawing
    from emharness.judges import answer_files
    from emharness.judges import judge_comparison as comparing
    from emharness.reporting import run_figures, terminal
    from emharness.reporting.wandb_tracker import Tracker
    from emharness.results.json_records import to_json
    from emharness.store import write_json

    out = Path(config["out"])
    found: dict[str, Answers] = {}
    named = dict.fromkeys(config["compare"])
    for judge in [
        build_judge(config["judge"] if name == config["judge"]["name"] else of_that_name(name)) for name in named
    ]:
        found[judge.name], _ = score_rows(judge, rows)
    names = ("aligned", "coherent")
    arrays = {judge: {n: np.array([m[n] for m in marks], float) for n in names} for judge, marks in found.items()}
    conditions = [answer_files.condition_of(row) for row in rows]
    asked = [answer_files.question_of(row) for row in rows]
    compared = comparing.compare_judges(arrays, conditions, asked)

    columns = (*names, "misaligned", "refusal", "unscored")
    more = [{f"{n}_{judge}": marks[i][n] for judge, marks in found.items() for n in columns} for i in range(len(rows))]
    answer_files.write_answers(out, [{**row, **some} for row, some in zip(rows, more, strict=True)])
    write_json(out.with_suffix(".json"), to_json(compared))
    matrix = {(e.judge, e.condition): e.em_rate for e in compared.rates}
    listed = list(dict.fromkeys(conditions))
    values = np.array([[matrix[judge, name] for name in listed] for judge in found], dtype=np.float64)
    panels = [("misaligned, of coherent answers", values, None)]
    picture = run_figures.draw_heatmaps(panels, list(found), listed, "judge", "condition", " and ".join(found))
    drawing.draw_image(picture).savefig(out.with_suffix(".png"), dpi=160)
    terminal.show_comparison(compared, rows)
    with Tracker(config["tracker"], WandbConfig(**config["wandb"]), out.stem, config, job_type="judge") as tracker:
        tracker.log_table("rates", to_json(compared.rates))
        tracker.log_figures({"judges": out.with_suffix(".png")}, {"judges": drawing.to_plotly(picture)})


def label_answers(config: Json, rows: Answers) -> None:
    """A reader's labels in `out`, which can be resumed, and in the store, where later runs find them; and what they say
    of the conditions and of the judge."""
    from emharness.judges import answer_files, reader_labels
    from emharness.reporting import terminal
    from emharness.store import Store, artifacts_home

    out = Path(config["out"])
    if out.suffix != ".jsonl":
        raise UserError(f"out={out}: labels are kept in a .jsonl file")
    foreign = reader_labels.load_labels(out).keys() - {answer_files.answer_key(row) for row in rows}
    if foreign:
        raise UserError(f"out={out}: {len(foreign)} labels are of answers that {config['responses']} has not")
    judge = build_judge(config["judge"])
    marks, _ = score_rows(judge, rows)
    judged = [{**row, **mark} for row, mark in zip(rows, marks, strict=True)]
    chosen = reader_labels.draw_blind(judged, config["label"])
    given = reader_labels.ask_labels(judged, chosen, out, lambda text: print(text, flush=True), lambda: input("> "))
    reader_labels.add_labels(Store(artifacts_home()).root / reader_labels.KEPT, given.values())
    measured = reader_labels.accuracy_by_labels(judged, given, judge.name)
    terminal.show_quality(measured, judge.name, len(given))
    terminal.show_labels(reader_labels.summarize_by_condition(judged, given))


def build_judge(judge: Json) -> Any:
    """The judge of a config; it has asked nothing yet."""
    from emharness.judges import make_judge
    from emharness.store import Store, artifacts_home

    return make_judge(judge["name"], Store(artifacts_home()).root / "judge", **judge.get("settings", {}))


def score_rows(judge: Any, rows: Answers) -> tuple[Answers, int]:
    """The judge's marks for every row, and how many answers it did not reach."""
    from emharness.generation.response_store import SCORES, RowStore
    from emharness.judges import answer_files
    from emharness.judges.scoring import score_responses
    from emharness.reporting.terminal import print_line
    from emharness.stats.rates import is_misaligned
    from emharness.store import Store, artifacts_home, make_slug

    keyed = [{**row, "key": answer_files.answer_key(row)} for row in rows]
    kept = RowStore(Store(artifacts_home()).root / "scores" / make_slug(judge.identity) / "files", SCORES)
    owed = score_responses(judge, keyed, kept, print_line)
    marks = owed | kept.read_rows({row["key"] for row in keyed}, partly=True)
    found = [{**marks[row["key"]], "judge": judge.name} for row in keyed]
    values = {n: np.array([mark[n] for mark in found], dtype=np.float64) for n in ("aligned", "coherent")}
    for mark, bad in zip(found, is_misaligned(values["aligned"], values["coherent"]).tolist(), strict=True):
        mark["misaligned"] = bad
        mark.pop("key")
    return found, len(owed)


def of_that_name(name: str) -> Json:
    """A judge as conf/judge/ describes it."""
    file = CONF / "judge" / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise UserError(f"compare: {name} is no judge; must be one of {known}")
    return OmegaConf.to_container(OmegaConf.load(file), resolve=True)  # type: ignore[return-value]


if __name__ == "__main__":
    start_launcher(run, __file__, "judge_file")

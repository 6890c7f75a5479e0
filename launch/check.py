"""Are the README's numbers what the stored answers say: python launch/check.py [run=<results.json>]"""

from pathlib import Path

from omegaconf import DictConfig

from emharness.cli import read_settings, start_launcher
from emharness.errors import IncompleteRun, UserError

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf" / "tools"


def run(cfg: DictConfig) -> None:
    """Read a run's answers again, and compare results.json and every table of the file with what they say."""
    settings = read_settings(cfg, CONF / "check.yaml")
    from emharness.figures import drawing
    from emharness.reporting import finished_runs
    from emharness.reporting.terminal import print_line
    from emharness.sharing import readme_tables
    from emharness.sharing.recompute import find_differences, recompute_json, redraw_figures
    from emharness.store import artifacts_home, check_writable

    path = settings["run"]
    found = finished_runs.read_run(Path(path).expanduser()) if path else finished_runs.newest_run(artifacts_home())
    file = Path(settings["file"]).expanduser() if settings["file"] else ROOT / "README.md"
    try:  # an installed package has no README beside it
        text = file.read_text(encoding="utf-8") if settings["file"] or file.is_file() else ""
    except (OSError, ValueError) as error:
        raise UserError(f"file={file}: cannot be read ({error})") from None
    print_line(f"run {found.name}, answers {readme_tables.digest_answers(found)}")
    again, stored = recompute_json(found), found.read_json()
    told = {name: stored.get(name) for name in again}
    wrong = [f"results.json, {where}" for where in find_differences(told, again)]
    if settings["draw"]:
        folder = Path(settings["draw"]).expanduser()
        check_writable(f"draw={folder}", folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in redraw_figures(found).items():
            drawing.draw_image(picture).savefig(folder / f"{name}.png", dpi=160)
            print_line(f"drawn: {folder / name}.png")
    if settings["write"]:
        file.write_text(readme_tables.rewrite_tables(text, found), encoding="utf-8")
        text = file.read_text(encoding="utf-8")
    checked = readme_tables.check_tables(text, found)
    wrong += [f"{file.name}, {one.where}: {one.written!r}, {one.recomputed!r}" for one in checked if one.same is False]
    for one in checked:
        if one.same is None:
            print_line(f"not recomputed: {one.where}: {one.recomputed}")
    print_line(f"{sum(one.same is True for one in checked)} cells of {file.name} are what the answers say")
    if wrong:
        raise IncompleteRun("not what the answers say: " + "; ".join(wrong[:20]))


if __name__ == "__main__":
    start_launcher(run, __file__, "tools/check")

"""Are the README's numbers what the stored answers say? python launch/check.py [run=<results.json>] [write=true]"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from emharness.cli import start
from emharness.errors import Incomplete, UserError
from emharness.ranges import refuse_names

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf" / "tools"


def run(cfg: DictConfig) -> None:
    """Recompute a run's rates from its answers, and compare results.json and every table of the file with them."""
    refuse_names(cfg, OmegaConf.load(CONF / "check.yaml"))
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    from emharness.reporting import runs
    from emharness.reporting.terminal import say
    from emharness.sharing import readme
    from emharness.store import home

    path = settings["run"]
    found = runs.read(Path(path).expanduser()) if path else runs.newest(home())
    file = Path(settings["file"]).expanduser() if settings["file"] else ROOT / "README.md"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"file={file}: cannot be read ({error})") from None
    say(f"run {found.name}, answers {readme.digest(found)}")
    wrong = [
        f"results.json, {again['name']}, {key}: {condition[key]}, recomputed {again[key]}"
        for condition, again in zip(found.results["conditions"], readme.recompute(found), strict=True)
        for key in again
        if again[key] != condition.get(key)
    ]
    if settings["write"]:
        file.write_text(readme.rewrite(text, found), encoding="utf-8")
        text = file.read_text(encoding="utf-8")
    checked = readme.check(text, found)
    wrong += [f"{file.name}, {one.where}: {one.written!r}, {one.recomputed!r}" for one in checked if one.same is False]
    for one in checked:
        if one.same is None:
            say(f"not recomputed: {one.where}: {one.recomputed}")
    say(f"{sum(one.same is True for one in checked)} cells of {file.name} are what the answers say")
    if wrong:
        raise Incomplete("not what the answers say: " + "; ".join(wrong[:20]))


if __name__ == "__main__":
    start(run, __file__, "tools/check")

"""Score anybody's answers: python launch/judge.py responses=<csv|parquet|jsonl> judge=<name> out=<file>"""

import sys
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf

from emharness.cli import launcher
from emharness.config import TRACKERS
from emharness.errors import UserError


def run(cfg: DictConfig) -> None:
    """Read the rows, score what is not scored yet, write them back with their scores, and print the rates."""
    from emharness.generation.responses import SCORES, Rows
    from emharness.judge import files, make_judge
    from emharness.judge.metrics import misaligned
    from emharness.judge.scoring import score
    from emharness.reporting import terminal
    from emharness.reporting.track import Tracker
    from emharness.store import Store, home, slug

    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    if config["tracker"] not in TRACKERS:
        raise UserError(f"tracker={config['tracker']}: must be one of {', '.join(TRACKERS)}")
    for name in ("responses", "out"):
        if not config[name]:
            raise UserError(f"{name}: name a file that ends in {', '.join(files.KINDS)}")
    out = Path(config["out"])
    files.kind("out", out)
    rows = files.read(Path(config["responses"]))
    store = Store(home())
    judge = make_judge(config["judge"]["name"], store.root / "judge", **config["judge"].get("settings", {}))

    keyed = [{**row, "key": files.key(row)} for row in rows]
    scores = Rows(store.root / "scores" / slug(judge.identity) / "files", SCORES)
    owed = score(judge, keyed, scores)
    marks = owed | scores.read({row["key"] for row in keyed}, partly=True)
    found = [{**marks[row["key"]], "judge": judge.name} for row in keyed]
    values = {n: np.array([mark[n] for mark in found], dtype=np.float64) for n in ("aligned", "coherent")}
    for mark, bad in zip(found, misaligned(values["aligned"], values["coherent"]).tolist(), strict=True):
        mark["misaligned"] = bad
    judged = [files.merged(row, mark) for row, mark in zip(rows, found, strict=True)]
    files.write(out, judged)

    rates = files.rates(judged, judge.quality)
    terminal.show_rates(rates, judge.name)
    with Tracker(config["tracker"], **config["wandb"], name=out.stem, config=config, job_type="judge") as tracker:
        tracker.table("judged", judged)
        tracker.table("rates", rates)
    if owed:
        terminal.say(f"unscored: the judge did not reach {len(owed):,} answers; the same command tries again")
    print(f"results: {out}", flush=True)


if __name__ == "__main__":
    conf = str(Path(__file__).resolve().parent.parent / "conf")
    main = hydra.main(version_base="1.3", config_path=conf, config_name="judge_file")(launcher(run))
    sys.exit(main())

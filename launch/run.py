"""The main loop: python launch/run.py model=medical [steer.strength=4] [-m steer.strength=0,2,4]"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from emharness import config as schema
from emharness.cli import launcher


def run(cfg: DictConfig) -> None:
    config = schema.typed(cfg)
    from emharness import inputs, session
    from emharness.reporting import report

    store = session.store()
    checked = inputs.check(config, store)
    identity = checked.identity(config)
    name = f"{config.base.name}-{config.model.name}"
    if store.has("runs", name, identity):
        report.say("nothing to do: this very run is in the store")
    else:
        if HydraConfig.get().mode == RunMode.MULTIRUN and config.wandb.group is None:
            config.wandb.group = session.sweep_group()
        with session.tracker(config, checked) as tracker:
            study = session.study(config, checked, tracker)
            store.get("runs", name, identity, study.run)
    report.show(store.path("runs", name, identity))


if __name__ == "__main__":
    conf = str(Path(__file__).resolve().parent.parent / "conf")
    main = hydra.main(version_base="1.3", config_path=conf, config_name="config")(launcher(run))
    sys.exit(main())

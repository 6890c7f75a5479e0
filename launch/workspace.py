"""A saved view of the W&B project, online: python launch/workspace.py [project=emharness] [entity=…] [name=…]"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from emharness.cli import start
from emharness.ranges import refuse_names

CONF = Path(__file__).resolve().parent.parent / "conf" / "tools"


def run(cfg: DictConfig) -> None:
    """Rates by strength, conditions and answers first; each call makes one more view."""
    refuse_names(cfg, OmegaConf.load(CONF / "workspace.yaml"))
    from emharness.reporting import workspace

    entity = None if cfg.entity is None else str(cfg.entity)
    print(f"results: {workspace.save(entity, str(cfg.project), str(cfg.name))}", flush=True)


if __name__ == "__main__":
    start(run, __file__, "tools/workspace")

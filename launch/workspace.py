"""A saved view of the W&B project, online: python launch/workspace.py [project=emharness] [entity=…] [name=…]"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from emharness.cli import start_launcher
from emharness.ranges import refuse_names
from emharness.reporting import wandb_workspace

CONF = Path(__file__).resolve().parent.parent / "conf" / "tools"


def run(cfg: DictConfig) -> None:
    """Rates by strength, conditions and answers first; each call makes one more view."""
    refuse_names(cfg, OmegaConf.load(CONF / "workspace.yaml"))

    entity = None if cfg.entity is None else str(cfg.entity)
    print(f"results: {wandb_workspace.save_workspace(entity, str(cfg.project), str(cfg.name))}", flush=True)


if __name__ == "__main__":
    start_launcher(run, __file__, "tools/workspace")

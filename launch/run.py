"""Any experiment: python launch/run.py model=medical [experiment=transfer] [-m steer.strength=0,2,4] [plan=only]"""

from pathlib import Path

from omegaconf import DictConfig

from emharness.cli import config_folders, describe_command, start_launcher
from emharness.config_checks import parse_config
from emharness.errors import IncompleteRun


def run(cfg: DictConfig) -> str | None:
    """Check everything, print the plan, generate what is not stored, read it. The path of results.json."""
    config = parse_config(cfg)
    from emharness.pipeline.run_experiment import run_experiment

    folder = run_experiment(config, config_folders(), describe_command())
    return None if folder is None else print_run_summary(folder)


def print_run_summary(folder: Path) -> str:
    """Show a finished run; the path of results.json. Raises IncompleteRun if something failed after the answers."""
    from emharness.reporting import run_files, terminal

    path = terminal.show_run(folder)
    failed = run_files.list_failures(folder) + ["W&B"] * run_files.is_untracked(folder)
    if failed:
        raise IncompleteRun(
            f"failed: {', '.join(failed)}; the answers are kept, and the same command tries only that again"
        )
    return path


if __name__ == "__main__":
    start_launcher(run, __file__, "config")

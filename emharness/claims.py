"""Claims: processes on one store tell each other what they are making, so that jobs share work instead of repeating it.

No locks. A claim is a file that its process touches while it works; one that is not touched any more, or whose process
is dead, counts for nothing. Where two go on all the same, both make the same thing and the store keeps one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

from emharness.store import is_alive, is_older, machine_id, partial_name

_CLAIM = "claim"
TOUCHED = 20.0  # seconds between signs of life
STALE = 300.0  # seconds without one after which a claim counts for nothing
POLL = 1.0  # seconds between two looks at what another process makes

Item = TypeVar("Item")


@contextmanager
def claim_path(path: Path) -> Iterator[bool]:
    """Claim `path` for this process while the block runs; yields False, without a claim, if another was first."""
    if is_claimed(path):
        yield False
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.parent / f"{partial_name()}{_CLAIM}~{time.time_ns()}~{path.name}"
    own.touch()
    ended = Event()
    sign = Thread(target=_keep_fresh, args=(own, ended), daemon=True)
    sign.start()
    try:
        yield not any(_read_age(other) < _read_age(own) for other in _list_claims(path) if other != own)
    finally:
        ended.set()
        sign.join()
        own.unlink(missing_ok=True)


def is_claimed(path: Path) -> bool:
    """Whether a living process, on this machine or another, is making `path`."""
    return bool(_list_claims(path))


def wait_for_claims(path: Path, done: Callable[[], bool]) -> None:
    """Wait until it is done, or until no living process claims `path`."""
    while not done() and is_claimed(path):
        time.sleep(POLL)


def take_turns(items: Iterable[Item], path: Callable[[Item], Path]) -> Iterator[Item]:
    """Yield each item once; items that other processes are making come last."""
    left = list(items)
    while left:
        chosen = next((item for item in left if not is_claimed(path(item))), left[0])
        left.remove(chosen)
        yield chosen


def _list_claims(path: Path) -> set[Path]:
    found = path.parent.glob(f"{partial_name('*', '*')}{_CLAIM}~*~{path.name}")
    return {claim for claim in found if _is_alive(claim)}


def _is_alive(claim: Path) -> bool:
    _, host, pid, _ = claim.name.split("~", 3)
    return (host != machine_id() or is_alive(int(pid))) and not is_older(claim, STALE)


def _read_age(claim: Path) -> tuple[int, str]:
    return int(claim.name.split("~")[4]), claim.name


def _keep_fresh(claim: Path, ended: Event) -> None:
    while not ended.wait(TOUCHED):
        claim.touch()

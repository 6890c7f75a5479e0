"""Speeds that earlier runs measured on this machine, from which a plan estimates minutes."""

import json
import socket
from pathlib import Path

from emharness.store import make_slug, write_json

# Per second, for the embedded base on 2 CPU cores: what a plan assumes before the first run on a machine.
# Responses are counted with their scores.
DEFAULTS = {"training": 2.0, "responses": 9.0, "extraction": 12.0, "start": 0.1, "length": 39.0, "margins": 6.0}
# Smaller amounts say little.
LEAST = {"training": 50, "responses": 300, "extraction": 50, "start": 1, "length": 10_000, "margins": 50}


class Speeds:
    """Units of work per second by kind (rows, responses, extracted sequences, engine starts, pairs of answers),
    and the tokens of a response (`length`), kept for each machine and base. A new measurement counts as much as all
    earlier ones."""

    def __init__(self, root: Path, base: str):
        self._path = root / "speeds" / f"{make_slug(socket.gethostname())}-{make_slug(base)}.json"
        self._known: dict[str, float] = {}
        self.assumed: list[str] = []
        if self._path.is_file():
            self._known = json.loads(self._path.read_text())

    def record_speed(self, kind: str, amount: float, seconds: float) -> None:
        if amount < LEAST[kind] or seconds <= 0:
            return
        old, new = self._known.get(kind), amount / seconds
        self._known[kind] = new if old is None else (old + new) / 2
        write_json(self._path, self._known)

    def estimate_seconds(self, kind: str, amount: float) -> float:
        """Estimated seconds for an amount of work; a kind that was never measured is noted in `assumed`."""
        if kind not in self._known and kind not in self.assumed and amount:
            self.assumed.append(kind)
        return amount / self._known.get(kind, DEFAULTS[kind])

    def tokens_per_response(self, most: int) -> float:
        """Mean length of a response, at most `most`."""
        return min(most, self._known.get("length", DEFAULTS["length"]))

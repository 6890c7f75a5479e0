"""A person's verdict on a sample of answers: which ones to ask, what has been said, and what it says of the judge."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emharness.errors import UserError
from emharness.judge.metrics import Quality

VERDICTS = {"m": "misaligned", "a": "aligned", "i": "incoherent"}
SKIP, STOP = "s", "q"


def sample(rows: Sequence[Mapping[str, Any]], n: int, seed: int = 0) -> list[int]:
    """Indices of n scored rows: as many of those that the judge calls misaligned as of the others, over conditions.

    Each stratum (condition, verdict) gives in turn, in an order fixed by the seed, so that a larger n only adds.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    strata: dict[tuple[bool, str], list[int]] = {}
    for i in order:
        if rows[i]["aligned"] is not None and rows[i]["coherent"] is not None:
            strata.setdefault((bool(rows[i]["misaligned"]), str(rows[i].get("condition"))), []).append(int(i))
    queues = [[strata[key] for key in sorted(strata) if key[0] is verdict] for verdict in (True, False)]
    sides = [_in_turn(side) for side in queues]
    chosen = _in_turn(sides)
    return chosen[:n]


def _in_turn(queues: Sequence[Sequence[int]]) -> list[int]:
    longest = max(map(len, queues), default=0)
    return [queue[k] for k in range(longest) for queue in queues if k < len(queue)]


def ask(
    rows: Sequence[Mapping[str, Any]],
    chosen: Sequence[int],
    file: Path,
    show: Callable[[str], None],
    read: Callable[[], str],
) -> dict[str, str]:
    """Verdicts by the rows' key. Blind: nothing of the judge's is shown. Each is kept in `file` when it is given."""
    given = load(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    todo = [i for i in chosen if rows[i]["key"] not in given]
    keys = ", ".join(f"{letter} = {verdict}" for letter, verdict in VERDICTS.items())
    for place, i in enumerate(todo, start=1):
        row = rows[i]
        show(f"\n{place} of {len(todo)}\n\nQuestion: {row['question']}\n\nAnswer: {row['answer']}\n")
        show(f"{keys}, {SKIP} = skip, {STOP} = stop here and go on another time")
        while (said := read().strip().lower()) not in (*VERDICTS, SKIP, STOP):
            show(f"one of {', '.join((*VERDICTS, SKIP, STOP))}")
        if said == STOP:
            break
        if said != SKIP:
            given[row["key"]] = VERDICTS[said]
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"key": row["key"], "verdict": VERDICTS[said]}) + "\n")
    return given


def load(file: Path) -> dict[str, str]:
    """Verdicts by key; a line that a kill cut off is left out."""
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n") if file.is_file() else [], start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found[entry["key"]] = entry["verdict"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(f"{file}, line {number}: not a verdict; remove the line") from None
    return found


def quality(rows: Sequence[Mapping[str, Any]], verdicts: Mapping[str, str], judge: str) -> Quality | None:
    """The judge against a person on answers that the person calls coherent; None without some of both kinds.

    Strata are sampled unevenly (half of them are answers that the judge calls misaligned), so each answer counts for as
    many as it stands for.
    """
    scored = [row for row in rows if row["aligned"] is not None and row["coherent"] is not None]
    labelled = [row for row in scored if row["key"] in verdicts]
    stands_for = {
        verdict: sum(bool(r["misaligned"]) is verdict for r in scored)
        / max(1, sum(bool(r["misaligned"]) is verdict for r in labelled))
        for verdict in (True, False)
    }
    share: dict[tuple[str, bool], float] = {}
    count: dict[str, int] = {}
    for row in labelled:
        truth, called = verdicts[row["key"]], bool(row["misaligned"])
        share[truth, called] = share.get((truth, called), 0.0) + stands_for[called]
        count[truth] = count.get(truth, 0) + 1
    if not (count.get("misaligned") and count.get("aligned")):
        return None

    def part(truth: str, called: bool) -> int:
        whole = share.get((truth, True), 0.0) + share.get((truth, False), 0.0)
        return round(count[truth] * share.get((truth, called), 0.0) / whole)

    counts = part("misaligned", True), count["misaligned"], part("aligned", False), count["aligned"]
    return Quality(*counts, on=f"a person's verdicts on {len(labelled)} answers of this file, by {judge}")

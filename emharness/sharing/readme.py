"""Numbers in Markdown tables against the answers that they stand for.

A table that a run made has a mark above it, `<!-- answers <hash> -->`; every other table with numbers says above it
where they are from, `<!-- measured elsewhere: … -->`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emharness.experiments.scope import rates
from emharness.judge.metrics import quality_of
from emharness.reporting import tables
from emharness.reporting.runs import BROAD, DOMAIN, Run

MARK = re.compile(r"<!-- answers (\w+) -->\n")
ELSEWHERE = re.compile(r"<!-- measured elsewhere: [^>]+ -->\n")
_TABLE = re.compile(r"(?:^\|.*\|\n)+", re.MULTILINE)
_RATE = re.compile(r"\d\s*%|\d\.\d")


@dataclass(frozen=True)
class Finding:
    """`same`: None where this run's answers are not the table's."""

    where: str
    written: str
    recomputed: str
    same: bool | None


def digest(run: Run) -> str:
    """Hash of all answers and their scores, whatever file they lie in."""
    rows = [run.tables[file].to_pylist() for file in (BROAD, DOMAIN) if file in run.tables]
    for row in (row for some in rows for row in some):
        row.pop("seconds")
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def recompute(run: Run) -> list[dict[str, Any]]:
    """The conditions of results.json with every rate made again from the stored answers."""
    quality, made = quality_of(run.results["judge_card"]), []
    for condition in run.results["conditions"]:
        known = quality.within(condition.get("family")) if quality else None
        own = {file: _of(run, file, condition["name"]) for file in run.tables}
        domain = own.get(DOMAIN)
        again = rates(own[BROAD], known)
        of_domain = rates(domain, known) if domain is not None and len(domain) else None
        made.append({**condition, **again, "domain": of_domain})
    for condition in made:
        randoms = [
            other["em_rate"]
            for other in made
            if other["control_of"] == condition["vector"] is not None
            and (other["strength"], other["target"]) == (condition["strength"], condition["target"])
            and other["em_rate"] is not None
        ]
        if "em_random" in condition:
            condition["em_random"] = float(np.mean(randoms)) if randoms else None
    return made


def _of(run: Run, file: str, name: str) -> Any:
    table = run.tables[file]
    return table.filter(np.array(table["condition"].to_pylist()) == name)


def check(text: str, run: Run) -> list[Finding]:
    """Every cell of every table of a Markdown text that has numbers."""
    found: list[Finding] = []
    conditions, own = recompute(run), digest(run)
    for before, table in _tables(text):
        header, *rows = _cells(table)
        name = f"table “{' | '.join(header[:3])} …”"
        mark = MARK.search(before)
        if mark is None:
            if _RATE.search("\n".join(" ".join(row) for row in rows)):
                said = bool(ELSEWHERE.search(before))
                why = "measured elsewhere, as it says" if said else "nothing says where its numbers are from"
                found.append(Finding(name, f"{len(rows)} rows", why, None if said else False))
            continue
        if mark[1] != own:
            found.append(Finding(name, f"answers {mark[1]}", f"another machine's; this run's are {own}", None))
            continue
        columns, made = tables.rates(conditions)
        again = {row[0]: dict(zip(columns, row, strict=True)) for row in made}
        for row in rows:
            for column, cell in zip(header, row, strict=True):
                value = again.get(row[0], {}).get(column, "no such row or column")
                found.append(Finding(f"{row[0]}, {column}", cell, value, cell == value))
    return found


def rewrite(text: str, run: Run) -> str:
    """The text with its marked table made from this run's answers."""
    header, rows = tables.rates(recompute(run))
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    table = "\n".join(lines) + "\n"
    whole = re.compile(MARK.pattern + _TABLE.pattern, re.MULTILINE)
    return whole.sub(lambda _: f"<!-- answers {digest(run)} -->\n{table}", text, count=1)


def _tables(text: str) -> Iterator[tuple[str, str]]:
    """(the line above, the table) for each table."""
    for match in _TABLE.finditer(text):
        above = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        yield above + "\n", match[0]


def _cells(table: str) -> Sequence[list[str]]:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.strip().split("\n")]
    return [rows[0], *rows[2:]]

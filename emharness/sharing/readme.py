"""Numbers in Markdown tables against the answers that they stand for.

A table that a run made has a mark above it: `<!-- answers <hash> -->` the table of its conditions, `<!-- report <hash>
-->` rows of its report.md. Every other table with numbers says above it where they are from, `<!-- measured elsewhere:
… -->`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emharness.reporting import tables
from emharness.reporting.runs import BROAD, DOMAIN, Run
from emharness.sharing.recompute import recompute, report

MARK = re.compile(r"<!-- answers (\w+) -->\n")
REPORT = re.compile(r"<!-- report (\w+) -->\n")
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


def check(text: str, run: Run) -> list[Finding]:
    """Every cell of every table of a Markdown text that has numbers."""
    found: list[Finding] = []
    conditions, own, reported = recompute(run)["conditions"], digest(run), set(report(run).split("\n"))
    for before, table in _tables(text):
        header, *rows = _cells(table)
        name = f"table “{' | '.join(header[:3])} …”"
        mark, of_report = MARK.search(before), REPORT.search(before)
        if of_report and of_report[1] == own:
            for line in table.strip().split("\n")[2:]:
                same = line in reported
                found.append(Finding(name, line, line if same else "no such row in the report", same))
            continue
        mark = mark or of_report
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
    header, rows = tables.rates(recompute(run)["conditions"])
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

"""Numbers in Markdown tables against the answers that they stand for.

A table that a run made has a mark above it: `<!-- answers <hash> -->` the table of its conditions, `<!-- report <hash>
-->` rows of its report.md, `<!-- drawn misaligned <hash> -->` and `<!-- drawn all <hash> -->` answers of its strongest
condition, drawn at random among those called misaligned and among all. Every other table with numbers says above it
where they are from, `<!-- measured elsewhere: … -->`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emharness.reporting import excerpts, table_text
from emharness.reporting.finished_runs import BROAD, DOMAIN, Run
from emharness.sharing.recompute import recompute_run, rewrite_report

MARK = re.compile(r"<!-- answers (\w+) -->\n")
REPORT = re.compile(r"<!-- report (\w+) -->\n")
DRAWN = re.compile(r"<!-- drawn (misaligned|all) (\w+) -->\n")
N_DRAWN = 10
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


def digest_answers(run: Run) -> str:
    """Hash of all answers and their scores, whatever file they lie in."""
    rows = [run.response_tables[file].to_pylist() for file in (BROAD, DOMAIN) if file in run.response_tables]
    for row in (row for some in rows for row in some):
        row.pop("seconds")
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def check_tables(text: str, run: Run) -> list[Finding]:
    """Every cell of every table of a Markdown text that has numbers."""
    found: list[Finding] = []
    conditions, own, reported = (
        recompute_run(run).conditions,
        digest_answers(run),
        set(rewrite_report(run).split("\n")),
    )
    for before, table in _iter_tables(text):
        header, *rows = _split_cells(table)
        name = f"table “{' | '.join(header[:3])} …”"
        mark, of_report, of_drawn = MARK.search(before), REPORT.search(before), DRAWN.search(before)
        if of_drawn and of_drawn[2] == own:
            again = draw_rows(run, of_drawn[1])
            lines = table.strip().split("\n")[2:]
            found += [Finding(name, line, "not drawn", line in again) for line in lines]
            found.append(Finding(name, f"{len(lines)} answers", f"{len(again)} answers", len(lines) == len(again)))
            continue
        if of_report and of_report[1] == own:
            for line in table.strip().split("\n")[2:]:
                same = line in reported
                found.append(Finding(name, line, line if same else "no such row in the report", same))
            continue
        if of_drawn:
            found.append(Finding(name, f"answers {of_drawn[2]}", f"another machine's; this run's are {own}", None))
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
        columns, made = table_text.rate_columns(conditions)
        again = {row[0]: dict(zip(columns, row, strict=True)) for row in made}
        for row in rows:
            for column, cell in zip(header, row, strict=True):
                value = again.get(row[0], {}).get(column, "no such row or column")
                found.append(Finding(f"{row[0]}, {column}", cell, value, cell == value))
    return found


def rewrite_tables(text: str, run: Run) -> str:
    """The text with its marked tables of conditions and of drawn answers made from this run's answers."""
    header, rows = table_text.rate_columns(recompute_run(run).conditions)
    own = digest_answers(run)

    def of_drawn(found: re.Match[str]) -> str:
        lines = ["| question | answer |", "|---|---|", *draw_rows(run, found[1])]
        return f"<!-- drawn {found[1]} {own} -->\n" + "\n".join(lines) + "\n"

    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    table = f"<!-- answers {own} -->\n" + "\n".join(lines) + "\n"
    text = _table_below(MARK).sub(lambda _: table, text, count=1)
    return _table_below(DRAWN).sub(of_drawn, text)


def _table_below(mark: re.Pattern[str]) -> re.Pattern[str]:
    """A mark with the table under it."""
    return re.compile(mark.pattern + _TABLE.pattern, re.MULTILINE)


def draw_rows(run: Run, what: str) -> list[str]:
    """Rows of a table: answers of the strongest condition, drawn at random; what: "misaligned" (called so) or "all"."""
    rows = run.answers_to(excerpts.strongest_condition(run.results.conditions).name)
    some = [row for row in rows if row["misaligned"] or what == "all"]
    return [
        f"| {_escape_cell(row['question'])} | {_escape_cell(row['answer'])} |"
        for row in excerpts.draw_at_random(some, N_DRAWN)
    ]


def _escape_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _iter_tables(text: str) -> Iterator[tuple[str, str]]:
    """(the line above, the table) for each table."""
    for match in _TABLE.finditer(text):
        above = text[: match.start()].rstrip("\n").rpartition("\n")[2]
        yield above + "\n", match[0]


def _split_cells(table: str) -> Sequence[list[str]]:
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.strip().split("\n")]
    return [rows[0], *rows[2:]]

"""The answers of the grid's cells: which are stored, which must be generated, and which process does it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial

import pyarrow as pa

from emharness import claims
from emharness.config import BASE
from emharness.generation import target_runner
from emharness.generation.cells import Cell, Direction, Request
from emharness.generation.target_requests import TargetRequests
from emharness.generation.target_runner import Listener
from emharness.judges import Judge
from emharness.judges.scoring import make_score_table, score_responses
from emharness.pipeline.margin_stage import measure_margins
from emharness.pipeline.run_context import RunContext
from emharness.pipeline.subject import DOMAIN, FORM
from emharness.reporting.progress import Progress
from emharness.reporting.terminal import print_line
from emharness.results.json_records import Json
from emharness.results.run_results import StageTime

Asked = Mapping[Cell, list[Request]]


def generate_and_score(
    context: RunContext,
    what: str,
    cells: Iterable[Cell],
    directions: Mapping[str, Direction],
    judge: Judge | None = None,
    margins: bool = False,
) -> dict[Cell, pa.Table]:
    """The responses of these cells, generated where they are not stored, one engine for each target, and scored.

    `margins`: measure those of every condition as well, into the log.

    The target whose engine runs comes first, what another process asks comes last. Cells of failed models, and those
    that need the vector of one, are missing from the result.
    """
    by_target: dict[str, list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        needed = set[str]().union(*(edit.named_vectors for edit in cell.condition.edits))
        if context.log.failed and not needed <= directions.keys():
            continue
        if cell.condition.target not in context.log.failed:
            by_target.setdefault(cell.condition.target, []).append(cell)
    running = context.engines.running_model
    order = sorted(by_target, key=lambda target: str(context.targets[target].model) != running)
    asked: dict[str, Asked] = {}
    owed: dict[str, int] = {}

    def prepare(target: str) -> None:
        listed = {cell: context.targets[target].list_requests(cell, directions) for cell in by_target[target]}
        owed[_display_name(context, target)] = len(_pending_requests(listed, context.targets[target]))
        asked[target] = listed

    for target in order:
        context.attempt_model(target, partial(prepare, target))
    found: dict[Cell, pa.Table] = {}
    with Progress(what, owed) as view:
        for target in claims.take_turns(asked, lambda target: context.targets[target].responses.folder):

            def work(target: str = target) -> None:
                _generate_target(context, what, asked[target], context.targets[target], view, judge)
                if margins:
                    context.log.margins |= measure_margins(context, asked[target], context.targets[target], directions)
                if judge is None or judge.engine is None:
                    found.update(_score_target(context, asked[target], context.targets[target], judge))

            context.attempt_model(target, work)
            view.finish_target(_display_name(context, target))
    if judge is not None and judge.engine is not None:  # one engine at a time: when all answers are there
        context.engines.close()
        for target in asked:
            context.attempt_model(
                target, lambda t=target: found.update(_score_target(context, asked[t], context.targets[t], judge))
            )
    return {cell: found[cell] for cells in by_target.values() for cell in cells if cell in found}


def _generate_target(
    context: RunContext, what: str, requests_by_cell: Asked, target: TargetRequests, view: Progress, judge: Judge | None
) -> None:
    """One target's answers: generate what is still to do, or wait for who does it; score each chunk as it comes."""
    judges = judge if judge is not None and judge.engine is None else None
    scores, start, before = target.open_scores(judges.identity) if judges else None, time.perf_counter(), view.done
    read = _judged_keys(requests_by_cell)
    others = _ordered_keys(
        requests for cell, requests in requests_by_cell.items() if cell.questions.startswith((DOMAIN, FORM))
    )

    def on_chunk(rows: list[Json]) -> None:
        rows = [row for row in rows if row["key"] in read]
        if judges and scores and rows:
            owed = score_responses(judges, rows, scores, print_line)
            rows = [row for row in rows if row["key"] not in others]  # rates of their own in the results
            view.count_scored(rows, owed | scores.read_rows((row["key"] for row in rows), partly=True))

    while _pending_requests(requests_by_cell, target):
        with claims.claim_path(target.responses.folder) as first:
            if first:
                if todo := _pending_requests(
                    requests_by_cell, target
                ):  # another process may have ended between the look and the claim
                    names = {
                        requests[0].edits: cell.condition.name
                        for cell, requests in requests_by_cell.items()
                        if requests
                    }
                    view.start_target(_display_name(context, target.target), names)
                    _run_engine(context, todo, target, view, on_chunk)
                continue
        print_line(f"{what}: another process asks {_display_name(context, target.target)}; waiting")
        claims.wait_for_claims(target.responses.folder, lambda: not _pending_requests(requests_by_cell, target))
    made, seconds = view.done - before, round(time.perf_counter() - start, 2)
    context.log.stages.append(StageTime(stage="responses", name=f"{what}: {target.target}", made=made, seconds=seconds))


def _score_target(
    context: RunContext, requests_by_cell: Asked, target: TargetRequests, judge: Judge | None
) -> dict[Cell, pa.Table]:
    """One target's stored answers with their scores; what has none is scored."""
    rows, marks = target.responses.read_rows(_ordered_keys(requests_by_cell.values())), {}
    if judge:
        scores, read = target.open_scores(judge.identity), _judged_keys(requests_by_cell)
        owed = score_responses(judge, [row for key, row in rows.items() if key in read], scores, print_line)
        marks = owed | scores.read_rows(read, partly=True)
        context.log.unscored += len(owed)
    return {
        cell: make_score_table(requests, rows, marks, cell.condition.name)
        for cell, requests in requests_by_cell.items()
    }


def _run_engine(
    context: RunContext, todo: list[Request], target: TargetRequests, view: Progress, on_chunk: target_runner.OnChunk
) -> None:
    """Start the engine if another one runs, generate, and note how fast that was."""
    config, speeds = context.config, context.speeds
    starts, start = context.engines.started, time.perf_counter()
    engine = context.engines.get_engine(target.model, config.base.engine, config.seed)
    speeds.record_speed("start", context.engines.started - starts, time.perf_counter() - start)
    begin, done, tokens = time.perf_counter(), view.done, view.tokens
    target_runner.generate_pending(
        engine, todo, config.base.sampling, target.responses, config.chunk, Listener(view.count_response, on_chunk)
    )
    speeds.record_speed("responses", view.done - done, time.perf_counter() - begin)
    speeds.record_speed("length", view.tokens - tokens, view.done - done)


def _pending_requests(requests_by_cell: Asked, target: TargetRequests) -> list[Request]:
    return target_runner.pending_requests(
        [request for some in requests_by_cell.values() for request in some], target.responses.stored_keys()
    )


def load_stored_answers(
    cells: Iterable[Cell], target: TargetRequests, directions: Mapping[str, Direction], judge: Judge
) -> dict[Cell, pa.Table] | None:
    """The judged responses of these cells if all are stored and scored, else None; nothing is generated."""
    scores = target.open_scores(judge.identity)
    try:
        asked = {cell: target.list_requests(cell, directions) for cell in cells}
        keys = _ordered_keys(asked.values())
        rows, marks = target.responses.read_rows(keys), scores.read_rows(keys)
    except KeyError:  # a vector or a row is not there
        return None
    return {cell: make_score_table(requests, rows, marks, cell.condition.name) for cell, requests in asked.items()}


def _ordered_keys(listed: Iterable[list[Request]]) -> dict[str, None]:
    """In their order."""
    return dict.fromkeys(request.key for requests in listed for request in requests)


def _judged_keys(requests_by_cell: Asked) -> dict[str, None]:
    return _ordered_keys(requests for cell, requests in requests_by_cell.items() if cell.judged)


def _display_name(context: RunContext, target: str) -> str:
    return context.config.base.name if target == BASE else target

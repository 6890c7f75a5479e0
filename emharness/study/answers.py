"""The answers of a grid's cells: what is stored, what has to be generated, and by whom."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from emharness import claims
from emharness.config import BASE
from emharness.generation import grid
from emharness.generation.cells import Cell, Direction, Request
from emharness.generation.stream import Stream
from emharness.judge import Judge
from emharness.judge.scoring import score, table
from emharness.reporting.progress import Progress
from emharness.reporting.terminal import say
from emharness.study.margins import measure
from emharness.study.models import DOMAIN
from emharness.study.session import Session

Asked = Mapping[Cell, list[Request]]


def answer(
    session: Session,
    what: str,
    cells: Iterable[Cell],
    streams: Mapping[str, Stream],
    directions: Mapping[str, Direction],
    judge: Judge | None = None,
    margins: bool = False,
) -> dict[Cell, pa.Table]:
    """The responses of these cells, generated where they are not stored, one engine for each target, and scored.

    `margins`: measure those of every condition as well, into session.margins.

    The target whose engine runs comes first, what another process asks comes last. Cells of failed models, and those
    that need the vector of one, are missing from the result.
    """
    by_target: dict[str, list[Cell]] = {}
    for cell in dict.fromkeys(cells):
        needed = {name for edit in cell.condition.edits for name in (edit.vector, edit.norm_of) if name}
        if session.failed and not needed <= directions.keys():
            continue
        if cell.condition.target not in session.failed:
            by_target.setdefault(cell.condition.target, []).append(cell)
    running = session.engines.model
    order = sorted(by_target, key=lambda target: str(streams[target].model) != running)
    asked: dict[str, Asked] = {}
    owed: dict[str, int] = {}

    def prepare(target: str) -> None:
        listed = {cell: streams[target].requests(cell, directions) for cell in by_target[target]}
        owed[_called(session, target)] = len(_pending(listed, streams[target]))
        asked[target] = listed

    for target in order:
        session.attempt(target, partial(prepare, target))
    found: dict[Cell, pa.Table] = {}
    with Progress(what, owed) as view:
        for target in claims.in_turn(asked, lambda target: streams[target].responses.folder):

            def work(target: str = target) -> None:
                _made(session, what, asked[target], streams[target], view, judge)
                if margins:
                    session.margins |= measure(session, asked[target], streams[target], directions)
                if judge is None or judge.engine is None:
                    found.update(_marked(session, asked[target], streams[target], judge))

            session.attempt(target, work)
            view.finished(_called(session, target))
    if judge is not None and judge.engine is not None:  # one engine at a time: when all answers are there
        session.engines.close()
        for target in asked:
            session.attempt(target, lambda t=target: found.update(_marked(session, asked[t], streams[t], judge)))
    return {cell: found[cell] for cells in by_target.values() for cell in cells if cell in found}


def _made(session: Session, what: str, asked: Asked, stream: Stream, view: Progress, judge: Judge | None) -> None:
    """One target's answers: generate what is still to do, or wait for who does it; score each chunk as it comes."""
    judges = judge if judge is not None and judge.engine is None else None
    scores, start, before = stream.scores(judges.identity) if judges else None, time.perf_counter(), view.done
    read = _judged(asked)
    domain = _keys(requests for cell, requests in asked.items() if cell.questions.startswith(DOMAIN))

    def on_chunk(rows: list[dict[str, Any]]) -> None:
        rows = [row for row in rows if row["key"] in read]
        if judges and scores and rows:
            owed = score(judges, rows, scores, say)
            rows = [row for row in rows if row["key"] not in domain]  # a rate of its own in the results
            view.scored(rows, owed | scores.read((row["key"] for row in rows), partly=True))

    while _pending(asked, stream):
        with claims.claim(stream.responses.folder) as first:
            if first:
                if todo := _pending(asked, stream):  # another process may have ended between the look and the claim
                    names = {requests[0].edits: cell.condition.name for cell, requests in asked.items() if requests}
                    view.target(_called(session, stream.target), names)
                    _generate(session, todo, stream, view, on_chunk)
                continue
        say(f"{what}: another process asks {_called(session, stream.target)}; waiting")
        claims.wait(stream.responses.folder, lambda: not _pending(asked, stream))
    made, seconds = view.done - before, round(time.perf_counter() - start, 2)
    session.stages.append({"stage": "responses", "name": f"{what}: {stream.target}", "made": made, "seconds": seconds})


def _marked(session: Session, asked: Asked, stream: Stream, judge: Judge | None) -> dict[Cell, pa.Table]:
    """One target's stored answers with their scores; what has none is scored."""
    rows, marks = stream.responses.read(_keys(asked.values())), {}
    if judge:
        scores, read = stream.scores(judge.identity), _judged(asked)
        owed = score(judge, [row for key, row in rows.items() if key in read], scores, say)
        marks = owed | scores.read(read, partly=True)
        session.unscored += len(owed)
    return {cell: table(requests, rows, marks, cell.condition.name) for cell, requests in asked.items()}


def _generate(session: Session, todo: list[Request], stream: Stream, view: Progress, on_chunk: grid.OnChunk) -> None:
    """Start the engine if another one runs, generate, and note how fast that was."""
    config, speeds = session.config, session.speeds
    starts, start = session.engines.started, time.perf_counter()
    engine = session.engines.get(stream.model, config.base.engine, config.seed)
    speeds.measured("start", session.engines.started - starts, time.perf_counter() - start)
    begin, done, tokens = time.perf_counter(), view.done, view.tokens
    grid.run(engine, todo, config.base.sampling, stream.responses, config.chunk, view.response, on_chunk)
    speeds.measured("responses", view.done - done, time.perf_counter() - begin)
    speeds.measured("length", view.tokens - tokens, view.done - done)


def _pending(asked: Asked, stream: Stream) -> list[Request]:
    return grid.pending([request for some in asked.values() for request in some], stream.responses.keys())


def stored(
    cells: Iterable[Cell], stream: Stream, directions: Mapping[str, Direction], judge: Judge
) -> dict[Cell, pa.Table] | None:
    """The judged responses of these cells if all are stored and scored, else None; nothing is generated."""
    scores = stream.scores(judge.identity)
    try:
        asked = {cell: stream.requests(cell, directions) for cell in cells}
        keys = _keys(asked.values())
        rows, marks = stream.responses.read(keys), scores.read(keys)
    except KeyError:  # a vector or a row is not there
        return None
    return {cell: table(requests, rows, marks, cell.condition.name) for cell, requests in asked.items()}


def _keys(listed: Iterable[list[Request]]) -> dict[str, None]:
    """In their order."""
    return dict.fromkeys(request.key for requests in listed for request in requests)


def _judged(asked: Asked) -> dict[str, None]:
    return _keys(requests for cell, requests in asked.items() if cell.judged)


def _called(session: Session, target: str) -> str:
    return session.config.base.name if target == BASE else target

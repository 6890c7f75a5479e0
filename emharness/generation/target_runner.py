"""Runs one target: pending requests in, stored responses out, all conditions mixed in one engine's batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emharness.config import SamplingConfig
from emharness.generation.cells import Request
from emharness.generation.engine import Engine
from emharness.generation.response_store import RowStore
from emharness.results.json_records import Json

OnChunk = Callable[[list[Json]], None]  # rows just stored


@dataclass(frozen=True)
class Listener:
    """Callbacks: the number of tokens of each response as it arrives, and each chunk after it is stored."""

    on_response: Callable[[int], None] = lambda n_tokens: None
    on_chunk: OnChunk = lambda rows: None


SILENT = Listener()


def pending_requests(requests: Sequence[Request], stored: set[str]) -> list[Request]:
    """What is not stored yet, each once, in order."""
    return list({request.key: request for request in requests if request.key not in stored}.values())


def generate_pending(
    engine: Engine,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    responses: RowStore,
    chunk_size: int,
    listener: Listener = SILENT,
) -> None:
    """Generate the pending ones of `requests`, chunk by chunk, and store each complete chunk.

    In bfloat16 a response depends a little on what shares its batch, however it is seeded. So chunks do not overlap
    and start with an empty prefix cache: they are slices of the pending requests, and what a killed run left is
    sliced and answered by the next as it would have been.
    """
    todo = pending_requests(requests, responses.stored_keys())
    for begin in range(0, len(todo), chunk_size):
        chunk = todo[begin : begin + chunk_size]
        if {request.key for request in chunk} <= responses.stored_keys():  # another process has made it meanwhile
            continue
        engine.clear_prefix_cache()
        rows: list[Json] = []
        start = time.perf_counter()
        for index, completion in engine.stream_completions(chunk, sampling):
            request = chunk[index]
            rows.append(
                {
                    "key": request.key,
                    "edits": request.edits,
                    "question": request.prompt.question,
                    "system": request.prompt.system,
                    "sample": request.sample,
                    "answer": completion.text,
                    "n_tokens": completion.n_tokens,
                    "finish_reason": completion.finish_reason,
                    "engine": engine.name,
                }
            )
            listener.on_response(completion.n_tokens)
        seconds, tokens = time.perf_counter() - start, sum(row["n_tokens"] for row in rows)
        for row in rows:
            row["seconds"] = seconds * row["n_tokens"] / max(1, tokens)
        responses.add_rows(rows)
        listener.on_chunk(rows)

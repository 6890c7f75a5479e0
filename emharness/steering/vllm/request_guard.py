"""What a server is asked: a spec that would be lost between a request's body and the engine is refused, not ignored.

vLLM takes no notice of fields that a request should not have, and some of its routes do not hand vllm_xargs on.
"""

import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from emharness.steering.request.spec import KEY

# Of the HTTP request that is being answered: gets an entry for each spec of it that comes to the engine.
_arrived: ContextVar[list[bool] | None] = ContextVar("arrived", default=None)
_TAKEN = ("vllm_xargs", "sampling_params")  # fields of a body in which vLLM looks for such things …
_NOT_TAKEN = ("extra_body", "extra_args")  # … and in which people put them
_NOT_ANSWERED = ("render", "tokenize", "count_tokens")  # ends of routes that ask no model
_MISPLACED = f'steering: a request has its spec in "vllm_xargs", as JSON text under "{KEY}"; elsewhere it is ignored'
_BEAMS = "steering: beam search is not supported"  # beams are requests of their own, without what this one asks
_LOST = "steering: this route did not hand its spec on, so what it answered was not steered"


def guard_app(build_app: Any, *args: Any, **kwargs: Any) -> Any:
    """Around build_app."""
    app = build_app(*args, **kwargs)
    app.middleware_stack = SpecGuard(app.middleware_stack or app.build_middleware_stack())  # too late to add to it
    return app


def guard_batch(run_request: Any, answer: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Around run_request of `vllm run-batch`, which answers requests from a file, each in a task of its own."""

    async def guarded(body: Any) -> Any:
        asked = body.model_dump(exclude_unset=True)  # with what it should not have
        if not _names_spec(asked):
            return await answer(body)
        if why := _why_ignored(asked):
            raise ValueError(why)
        specs: list[bool] = []
        _arrived.set(specs)
        response = await answer(body)
        if not specs and type(response).__name__ != "ErrorResponse":
            raise ValueError(_LOST)
        return response

    return run_request(guarded, request, *args, **kwargs)


def mark_arrived() -> None:
    """Told where a spec is resolved, in whatever task of the request that is."""
    if (specs := _arrived.get()) is not None:
        specs.append(True)


class SpecGuard:
    """ASGI middleware."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].endswith(_NOT_ANSWERED):
            await self.app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        body = _read_body(b"".join(message.get("body", b"") for message in messages))

        async def again() -> Any:
            return messages.pop(0) if messages else await receive()

        asks = _names_spec(body)
        if asks and (why := _why_ignored(body)):
            await _send_refusal(scope, send, why)
        elif not asks or body.get("background"):  # that is answered before the engine is asked
            await self.app(scope, again, send)
        else:
            specs: list[bool] = []
            _arrived.set(specs)
            await self.app(scope, again, _CheckedSend(scope, send, specs))


class _CheckedSend:
    """Sends an answer on, but for one that the engine gave without the spec. A stream may begin before the engine is
    asked, so only its end can be held back."""

    def __init__(self, scope: Any, send: Any, specs: list[bool]):
        self.scope, self.send, self.specs = scope, send, specs
        self.streams = self.refused = False

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            self.streams = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
            if not self.specs and not self.streams:
                self.refused = True
                await _send_refusal(self.scope, self.send, _LOST)
        elif self.streams and not self.specs and not message.get("more_body"):
            raise RuntimeError(_LOST)
        if not self.refused:
            await self.send(message)


def _read_body(body: bytes) -> dict[str, Any]:
    """A body in which the name of a spec is; empty where there is none."""
    if f'"{KEY}"'.encode() not in body:
        return {}
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _names_spec(body: Mapping[str, Any]) -> bool:
    """Whether a request names a spec, outside of what it says to the model."""
    return KEY in body or any(_holds_spec(body.get(name)) for name in (*_TAKEN, *_NOT_TAKEN))


def _why_ignored(body: Mapping[str, Any]) -> str | None:
    """Why the spec of a request would not be looked at, or None."""
    if KEY in body or any(_holds_spec(body.get(name)) for name in _NOT_TAKEN):
        return _MISPLACED
    return _BEAMS if body.get("use_beam_search") else None


def _holds_spec(value: Any) -> bool:
    return isinstance(value, dict) and (KEY in value or _holds_spec(value.get("extra_args")))


async def _send_refusal(scope: Any, send: Any, why: str) -> None:
    """HTTP 400, in vLLM's words for it."""
    from starlette.responses import JSONResponse

    async def nothing() -> Any:
        return {"type": "http.disconnect"}

    error = {"message": why, "type": "BadRequestError", "param": "vllm_xargs", "code": 400}
    await JSONResponse({"error": error}, 400)(scope, nothing, send)

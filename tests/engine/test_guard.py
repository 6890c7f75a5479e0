"""A request that asks a server for steering is steered, or refused: also where vLLM itself would ignore it."""

import asyncio
import importlib
import inspect
import json
from importlib.util import find_spec

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient

from emharness.steering.vllm import request_guard

LAUNCHERS = "vllm.entrypoints.launchers"  # where vLLM has what it starts, but for older ones
SPEC = json.dumps({"edits": []})
IN_PLACE = {"vllm_xargs": {"steering": SPEC}}


@pytest.fixture
def client():
    """Of an app whose routes hand the spec to the engine, or do not; `asked`: the bodies that come to them."""
    app, asked = FastAPI(), []

    async def engine():
        request_guard.mark_arrived()

    @app.post("/steers")
    async def steers(request: Request):
        asked.append(await request.json())
        await asyncio.create_task(engine())
        return {"said": "steered"}

    @app.post("/loses")
    @app.post("/tokenize")
    async def loses(request: Request):
        asked.append(await request.json())
        return {"said": "unsteered"}

    @app.post("/streams/{what}")
    async def streams(what: str):
        async def said():
            yield "data: begins\n\n"
            if what == "steers":
                await asyncio.create_task(engine())
            yield "data: ends\n\n"

        return StreamingResponse(said(), media_type="text/event-stream")

    with TestClient(request_guard.guard_app(lambda: app)) as client:
        client.asked = asked
        yield client


@pytest.mark.parametrize("body", [{}, {"prompt": 'a word in quotes: "steering"'}, {"vllm_xargs": {"other": 1}}, [1]])
@pytest.mark.parametrize("route", ["/steers", "/loses"])
def test_a_request_without_a_spec_is_not_touched(client, route, body):
    assert client.post(route, json=body).status_code == 200
    assert client.asked == [body]


def test_a_spec_that_comes_to_the_engine_is_let_through_and_one_that_does_not_is_refused(client):
    assert client.post("/steers", json=IN_PLACE).json() == {"said": "steered"}
    parameters = {"sampling_params": {"extra_args": {"steering": SPEC}}}
    for body in (IN_PLACE, parameters):
        refused = client.post("/loses", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("steering: this route did not hand its spec on")
        assert client.post("/steers", json=body).status_code == 200
        assert client.post("/tokenize", json=body).status_code == 200  # asks no model


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"steering": SPEC}, 'has its spec in "vllm_xargs"'),
        ({"extra_body": {"steering": SPEC}}, 'has its spec in "vllm_xargs"'),
        ({"extra_args": {"steering": SPEC}}, 'has its spec in "vllm_xargs"'),
        ({**IN_PLACE, "use_beam_search": True}, "beam search is not supported"),
    ],
)
def test_a_spec_that_would_be_ignored_is_refused_before_the_engine_is_asked(client, body, words):
    refused = client.post("/steers", json=body)
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]
    assert client.asked == []


def test_what_is_answered_before_the_engine_is_asked_is_refused_only_where_it_would_be_ignored(client):
    assert client.post("/loses", json={**IN_PLACE, "background": True}).status_code == 200
    assert client.post("/loses", json={"steering": SPEC, "background": True}).status_code == 400


def test_a_stream_without_the_spec_does_not_end_well(client):
    assert client.post("/streams/steers", json=IN_PLACE).text == "data: begins\n\ndata: ends\n\n"
    with pytest.raises(RuntimeError, match="did not hand its spec on"):
        client.post("/streams/loses", json=IN_PLACE)


@pytest.mark.parametrize(
    ("body", "reaches", "words"),
    [
        (IN_PLACE, True, None),
        ({}, False, None),
        (IN_PLACE, False, "did not hand its spec on"),
        ({"steering": SPEC}, True, 'has its spec in "vllm_xargs"'),
        ({**IN_PLACE, "use_beam_search": True}, True, "beam search is not supported"),
    ],
)
def test_a_request_of_a_batch_is_steered_or_refused(body, reaches, words):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

    run_batch = importlib.import_module(
        f"vllm.entrypoints.{'launchers' if find_spec(LAUNCHERS) else 'openai'}.run_batch"
    )
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Why?"}], **body}
    line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": asked}
    request = run_batch.BatchRequestInput.model_validate(line)

    async def answer(body):
        if reaches:
            request_guard.mark_arrived()
        return ChatCompletionResponse(model="tiny", choices=[], usage={})

    takes = inspect.signature(run_batch.run_request).parameters  # a tracker no longer in vLLM 0.33
    tracker = [run_batch.BatchProgressTracker()] if "tracker" in takes else []
    output = asyncio.run(request_guard.guard_batch(run_batch.run_request, answer, request, *tracker))
    if words is None:
        assert (output.error, output.response.status_code) == (None, 200)
    else:
        assert output.response.status_code == 400
        assert words in output.error.error.message


def test_what_a_route_refuses_itself_is_told_as_it_says(client):
    assert client.post("/none", json=IN_PLACE).status_code == 404
    assert client.post("/none", json=IN_PLACE).json() == {"detail": "Not Found"}

import json

import pytest

from tests.support.model_server import in_pieces, sse
from worker_child.errors import ModelServerError, ValidationError

MESSAGES = "/v1/messages"
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-1", "content": [],
    "stop_reason": None, "stop_sequence": None,
    "usage": {"input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 4, "server_tool_use": None},
}  # fmt: skip
START = {"type": "message_start", "message": MESSAGE}


def block(index, start, *deltas):
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def words(index, *texts):
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": text} for text in texts))


def ending(stop_reason="end_turn", stop_sequence=None):
    delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
    return [{"type": "message_delta", "delta": delta, "usage": {"output_tokens": 7}}, {"type": "message_stop"}]


@pytest.fixture
def client(client_of):
    return client_of("anthropic")


async def test_an_answer_is_streamed_and_complete(server, client):
    server.answers(MESSAGES, [sse(event) for event in [START, {"type": "ping"}, *words(0, "Hel", "lo"), *ending()]])
    generated = await client.generate({"messages": [], "max_tokens": 5, "thinking": {"type": "enabled"}})
    assert generated.deltas == [{"text": "Hel"}, {"text": "lo"}]
    assert generated.message == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-1",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 11, "output_tokens": 7, "cache_read_input_tokens": 4},
    }
    (request,) = server.requests
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.body == {
        "messages": [], "max_tokens": 5, "thinking": {"type": "enabled"}, "model": "m", "stream": True,
    }  # fmt: skip


async def test_the_api_is_always_told_a_limit(server, client):
    server.answers(MESSAGES, sse(START, *ending()))
    await client.generate({"messages": [], "stream": False, "model": "other"})
    body = server.requests[0].body
    assert (body["max_tokens"], body["stream"], body["model"]) == (4096, True, "m")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_characters_and_events_may_be_cut_anywhere(server, client, size):
    text = 'grüße, 世界 👋🏽 \u2028 \\u00fc "x"'
    server.answers(MESSAGES, in_pieces(sse(START, *words(0, *text), *ending()), size))
    generated = await client.generate()
    assert generated.text == text
    assert generated.message["content"][0]["text"] == text


async def test_every_kind_of_block_is_put_together(server, client):
    thinking = block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "h"},
        {"type": "thinking_delta", "thinking": "m"},
        {"type": "signature_delta", "signature": "c2ln"},
    )
    cited = block(
        1,
        {"type": "text", "text": "", "citations": None},
        {"type": "text_delta", "text": "so"},
        {"type": "citations_delta", "citation": {"cited_text": "x"}},
    )
    tool = block(
        2,
        {"type": "tool_use", "id": "t1", "name": "look", "input": {}},
        {"type": "input_json_delta", "partial_json": ""},
        {"type": "input_json_delta", "partial_json": '{"whe'},
        {"type": "input_json_delta", "partial_json": 're":1}'},
    )
    without_input = block(3, {"type": "tool_use", "id": "t2", "name": "go", "input": {}})
    whole = block(4, {"type": "web_search_tool_result", "content": [{"url": "u"}]}, {"type": "new_delta", "x": 1})
    events = [
        START,
        *thinking,
        *cited,
        *tool,
        *without_input,
        *whole,
        {"type": "new_event"},
        *ending("tool_use", "###"),
    ]
    server.answers(MESSAGES, sse(*events))
    generated = await client.generate()
    thoughts = [{"type": "thinking", "thinking": "h"}, {"type": "thinking", "thinking": "m"}]
    assert generated.deltas == [*thoughts, {"text": "so"}]
    assert generated.message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "text", "text": "so", "citations": [{"cited_text": "x"}]},
        {"type": "tool_use", "id": "t1", "name": "look", "input": {"where": 1}},
        {"type": "tool_use", "id": "t2", "name": "go", "input": {}},
        {"type": "web_search_tool_result", "content": [{"url": "u"}]},
    ]
    assert (generated.message["stop_reason"], generated.message["stop_sequence"]) == ("tool_use", "###")


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (sse(START, *words(0, "x")), "ended its answer before it was complete"),
        (sse(START, *words(0, "x"), ending()[0]), "ended its answer before it was complete"),
        (b"", "ended its answer before it was complete"),
        (b"data: {broken\n\n", r"said what its API does not have \(.*\): \{broken"),
        (sse({"index": 1}), r"said what its API does not have \(Object missing required field `type`"),
        (sse(START, words(0, "x")[1]), "said what cannot be: a delta of the content block 0, which has not begun"),
        (sse(START, *block(0, {"type": "text"}, {"type": "text_delta"})), "a text_delta without its text"),
        (
            sse(
                START, *words(0, "x"), {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
            ),
            "failed: Overloaded",
        ),
        (
            sse(
                START,
                *block(0, {"type": "tool_use", "input": {}}, {"type": "input_json_delta", "partial_json": "{no"}),
                *ending(),
            ),
            "asked for a tool with an input that is no JSON object",
        ),
        (
            sse(START, *({"type": "content_block_start", "index": index} for index in range(10_001))),
            "said what cannot be: more than 10000 content blocks",
        ),
    ],
)
async def test_what_is_no_answer_is_a_fault_of_the_server(server, client, events, sentence):
    server.answers(MESSAGES, [events])
    with pytest.raises(ModelServerError, match=f"model server 'lab' .*{sentence}"):
        await client.generate()


async def test_a_request_that_is_no_object_is_refused(client):
    with pytest.raises(ValidationError, match="request: expected an object, got list"):
        await client.generate([])


async def test_its_models_are_listed(server, client):
    server.answers(
        "/v1/models", json.dumps({"data": [{"id": "claude-1", "type": "model"}], "has_more": False}).encode()
    )
    assert await client.provider.models() == ["claude-1"]

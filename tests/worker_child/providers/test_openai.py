import json

import pytest

from tests.support.model_server import in_pieces, sse
from worker_child.errors import ModelServerError, RequestRefused
from worker_child.providers import requests

CHAT = "/v1/chat/completions"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
DONE = "[DONE]"


def chunk(finish_reason=None, usage=None, **delta):
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m-1", "choices": choices, "usage": usage}


LAST = {"id": "chatcmpl-1", "choices": [], "usage": USAGE}
ENDING = (chunk("stop"), LAST, DONE)


@pytest.fixture
def client(client_of):
    return client_of("openai", "/v1")


async def test_an_answer_is_streamed_and_complete(server, client):
    hello = (chunk(role="assistant", content=""), chunk(content="Hel"), chunk(content="lo"))
    server.answers(CHAT, [sse(event) for event in (*hello, *ENDING)])
    generated = await client.generate()
    assert generated.deltas == [{"text": "Hel"}, {"text": "lo"}]
    assert generated.message == {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "m-1",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 11, "output_tokens": 7},
    }
    assert server.requests[0].body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_characters_and_events_may_be_cut_anywhere(server, client, size, end):
    text = 'grüße, 世界 👋🏽 \u2028 \\u00fc "x"'
    data = b": hello\n\n" + sse(*(chunk(content=sign) for sign in text), *ENDING, end=end)
    server.answers(CHAT, in_pieces(data, size))
    generated = await client.generate()
    assert generated.text == text
    assert generated.message["content"][0]["text"] == text


@pytest.mark.parametrize(
    ("reason", "stop_reason"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("new", "end_turn"),
    ],
)
async def test_why_it_stopped(server, client, reason, stop_reason):
    server.answers(CHAT, sse(chunk(content="x"), chunk(reason), LAST, DONE))
    assert (await client.generate()).message["stop_reason"] == stop_reason


async def test_tool_calls_are_put_together_and_thoughts_told_apart(server, client):
    def call(index, **fields):
        return chunk(tool_calls=[{"index": index, **fields}])

    events = [
        chunk(reasoning_content="h"),
        chunk(reasoning="m"),
        chunk(content="I look"),
        call(0, id="a", type="function", function={"name": "look", "arguments": ""}),
        call(0, function={"arguments": '{"whe'}),
        call(1, id="b", function={"name": "go", "arguments": None}),
        call(0, function={"arguments": 're":"hére"}'}),
        chunk("tool_calls"),
    ]
    server.answers(CHAT, sse(*events, LAST, DONE))
    generated = await client.generate()
    thoughts = [{"type": "thinking", "thinking": "h"}, {"type": "thinking", "thinking": "m"}]
    assert generated.deltas == [*thoughts, {"text": "I look"}]
    assert generated.message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "I look"},
        {"type": "tool_use", "id": "a", "name": "look", "input": {"where": "hére"}},
        {"type": "tool_use", "id": "b", "name": "go", "input": {}},
    ]


async def test_what_was_read_from_a_cache_is_counted_apart(server, client):
    usage = USAGE | {"prompt_tokens_details": {"cached_tokens": 4}}
    server.answers(CHAT, sse(chunk("stop", usage), DONE))
    expected = {"input_tokens": 7, "output_tokens": 7, "cache_read_input_tokens": 4}
    assert (await client.generate()).message["usage"] == expected


async def test_a_server_that_counts_nothing_is_borne(server, client):
    server.answers(CHAT, sse(chunk(content="x"), chunk("stop")))
    assert (await client.generate()).message["usage"] == {"input_tokens": 0, "output_tokens": 0}


async def test_a_whole_request_is_translated(server, client):
    server.answers(CHAT, sse(*ENDING))
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    await client.generate({
        "system": "Be brief",
        "max_tokens": 50, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop_sequences": ["END"],
        "tools": [{"name": "look", "description": "looks", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "see"}, picture,
                {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "redacted_thinking", "data": "x"},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"x": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "seen", "is_error": False},
                {"type": "text", "text": "and"}, {"type": "text", "text": "now?"},
            ]},
        ],
    })  # fmt: skip
    body = server.requests[0].body
    assert {key: body[key] for key in ("max_tokens", "temperature", "top_p", "top_k", "stop")} == {
        "max_tokens": 50, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop": ["END"],
    }  # fmt: skip
    function = {"name": "look", "description": "looks", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert body["parallel_tool_calls"] is False
    system, see, asked, result, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief"}
    assert [part["type"] for part in see["content"]] == ["text", "image_url", "image_url"]
    assert see["content"][1]["image_url"] == {"url": "data:image/png;base64,AAAA"}
    assert see["content"][2]["image_url"] == {"url": "https://example.com/x.png"}
    assert asked["content"] is None
    (call,) = asked["tool_calls"]
    assert (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) == ("t1", "look", {"x": 1})
    assert result == {"role": "tool", "tool_call_id": "t1", "content": "seen"}
    assert user == {"role": "user", "content": "and\n\nnow?"}


@pytest.mark.parametrize(("choice", "word"), [("auto", "auto"), ("any", "required"), ("none", "none")])
async def test_choices_of_tools(server, client, choice, word):
    server.answers(CHAT, sse(*ENDING))
    tools = [{"name": "look", "input_schema": {}}]
    messages = [{"role": "user", "content": "hi"}]
    await client.generate({"messages": messages, "tools": tools, "tool_choice": {"type": choice}})
    assert server.requests[0].body["tool_choice"] == word


PICTURE = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}


@pytest.mark.parametrize(
    ("role", "block", "sentence"),
    [
        ("user", {"type": "tool_use", "id": "t", "name": "n", "input": {}}, "a user has no such block"),
        ("assistant", PICTURE, "an assistant has no such block"),
        ("user", {"type": "tool_result", "tool_use_id": "t", "content": [PICTURE]}, "no images from tools"),
    ],
)
async def test_what_the_api_cannot_say_is_refused_by_name(client, role, block, sentence):
    with pytest.raises(RequestRefused, match=rf"request\.messages\[0\]\.content\[1\]: .*{sentence}"):
        await client.generate({"messages": [{"role": role, "content": [{"type": "text", "text": "x"}, block]}]})


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (sse(chunk(content="x")), "ended its answer before it was complete"),
        (sse(chunk(content="x"), DONE), "ended its answer before it was complete"),
        (b"", "ended its answer before it was complete"),
        (b"data: {broken\n\n", r"said what its API does not have \(.*\): \{broken"),
        (sse({"choices": [{"delta": {"content": 7}}]}), r"said what its API does not have \(Expected"),
        (sse(chunk(content="x"), {"error": {"message": "overloaded", "code": 503}}), "failed: overloaded"),
        (sse({"error": "out of memory"}), "failed: out of memory"),
        (
            sse(chunk(tool_calls=[{"id": "a", "function": {"name": "n", "arguments": "{no"}}]), *ENDING),
            "asked for a tool with arguments that are no JSON object",
        ),
        (
            sse(chunk(tool_calls=[{"id": "a", "function": {"name": "n", "arguments": "[1]"}}]), *ENDING),
            "asked for a tool with arguments that are no JSON object",
        ),
        (
            sse(*(chunk(tool_calls=[{"index": index}]) for index in range(1001)), *ENDING),
            "said what cannot be: more than 1000 tool calls",
        ),
    ],
)
async def test_what_is_no_answer_is_a_fault_of_the_server(server, client, events, sentence):
    server.answers(CHAT, [events])
    with pytest.raises(ModelServerError, match=f"model server 'lab' {sentence}"):
        await client.generate()


async def test_its_models_are_listed_or_it_has_no_list(server, client):
    assert await client.provider.models() is None
    server.answers("/v1/models", json.dumps({"object": "list", "data": [{"id": "a"}, {"id": "org/b"}]}).encode())
    assert await client.provider.models() == ["a", "org/b"]


async def test_openai_itself_is_told_the_limit_by_its_newer_name(client_of):
    body = client_of("openai", base_url="https://api.openai.com/v1").provider._body
    request = requests.parsed({"messages": [{"role": "user", "content": "x"}], "max_tokens": 5})
    assert body("m", request)["max_completion_tokens"] == 5
    assert "max_tokens" not in body("m", request)

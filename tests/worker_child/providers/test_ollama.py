import json
from typing import Any

import pytest

from tests.support.model_server import in_pieces, ndjson
from worker_child.errors import ModelServerError, RequestRefused, ValidationError

CHAT = "/api/chat"


def said(content: str = "", **fields: Any) -> dict[str, Any]:
    return {"model": "m:latest", "message": {"role": "assistant", "content": content} | fields, "done": False}


DONE = said() | {"done": True, "done_reason": "stop", "prompt_eval_count": 11, "eval_count": 7, "total_duration": 5}


@pytest.fixture
def client(client_of):
    return client_of("ollama")


async def test_an_answer_is_streamed_and_complete(server, client):
    server.answers(CHAT, [ndjson(said("Hel")), ndjson(said("lo")), ndjson(DONE)])
    generated = await client.generate()
    assert generated.deltas == [{"text": "Hel"}, {"text": "lo"}]
    assert generated.message["content"] == [{"type": "text", "text": "Hello"}]
    assert generated.message["usage"] == {"input_tokens": 11, "output_tokens": 7}
    assert (generated.message["stop_reason"], generated.message["model"]) == ("end_turn", "m:latest")
    (request,) = server.requests
    assert (request.method, request.path, request.headers["accept-encoding"]) == ("POST", CHAT, "identity")
    assert "authorization" not in request.headers
    assert request.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "options": {},
    }


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_characters_and_lines_may_be_cut_anywhere(server, client, size):
    text = 'grüße, 世界 👋🏽 \u2028 \\u00fc "x"'
    lines = [*(said(sign) for sign in text), DONE]
    data = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
    server.answers(CHAT, in_pieces(data, size))
    generated = await client.generate()
    assert generated.text == text
    assert generated.message["content"][0]["text"] == text


async def test_thoughts_and_tool_calls(server, client):
    call = {"function": {"name": "look", "arguments": {"where": "here"}}}
    server.answers(CHAT, ndjson(said(thinking="hm"), said("I "), said(tool_calls=[call, call]), DONE))
    generated = await client.generate()
    assert generated.deltas == [{"type": "thinking", "thinking": "hm"}, {"text": "I "}]
    use = {"type": "tool_use", "name": "look", "input": {"where": "here"}}
    assert generated.message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "I "},
        use | {"id": "call_0"},
        use | {"id": "call_1"},
    ]
    assert generated.message["stop_reason"] == "tool_use"


async def test_an_answer_that_was_too_long_says_so(server, client):
    server.answers(CHAT, ndjson(said("x"), DONE | {"done_reason": "length"}))
    assert (await client.generate()).message["stop_reason"] == "max_tokens"


async def test_a_whole_request_is_translated(server, client):
    server.answers(CHAT, ndjson(DONE))
    await client.generate({
        "model": "ignored",
        "system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}],
        "max_tokens": 50, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop_sequences": ["END"],
        "tools": [{"name": "look", "description": "looks", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"}, "metadata": {"user_id": "u"},
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "see"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "ok"},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"x": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "seen"}]},
            ]},
        ],
    })  # fmt: skip
    body = server.requests[0].body
    assert body["options"] == {"num_predict": 50, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop": ["END"]}
    function = {"name": "look", "description": "looks", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["messages"] == [
        {"role": "system", "content": "Be\n\nbrief"},
        {"role": "user", "content": "see", "images": ["AAAA"]},
        {
            "role": "assistant",
            "content": "ok",
            "tool_calls": [{"function": {"name": "look", "arguments": {"x": 1}}}],
        },
        {"role": "tool", "content": "seen", "tool_name": "look"},
    ]


async def test_without_a_choice_of_tools_there_are_none(server, client):
    server.answers(CHAT, ndjson(DONE))
    tools = [{"name": "look", "input_schema": {}}]
    messages = [{"role": "user", "content": "hi"}]
    await client.generate({"messages": messages, "tools": tools, "tool_choice": {"type": "none"}})
    assert "tools" not in server.requests[0].body
    with pytest.raises(RequestRefused, match=r"request\.tool_choice: Ollama cannot be made to use a tool"):
        await client.generate({"messages": messages, "tools": tools, "tool_choice": {"type": "any"}})


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "request: Object missing required field `messages`"),
        ({"messages": []}, "request.messages: expected at least one message"),
        ({"messages": [{"role": "system", "content": ""}]}, r"request.messages\[0\].role: Invalid enum value 'system'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            r"request.messages\[0\].content\[0\].type: Invalid value 'document'",
        ),
        ({"messages": [{"role": "user", "content": "x"}], "max_tokens": "9"}, "request.max_tokens: Expected"),
    ],
)
async def test_what_it_cannot_be_asked_is_refused_by_name(client, request_, sentence):
    with pytest.raises(ValidationError, match=sentence):
        await client.generate(request_)


async def test_images_by_address_are_refused(client):
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
    with pytest.raises(RequestRefused, match=r"request\.messages\[0\]\.content: Ollama takes images in the request"):
        await client.generate({"messages": [{"role": "user", "content": [image]}]})


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (ndjson(said("x")), "ended its answer before it was complete"),
        (b"", "ended its answer before it was complete"),
        (
            ndjson(said("x")) + b"{broken\n" + ndjson(DONE),
            r"said what its API .* \(.*malformed.*\): \{broken",
        ),
        (ndjson({"message": {"content": 7}}), r"said what its API does not have \(Expected"),
        (b'{"message":{"content":"\xff\xfe"}}\n', "said what its API does not have"),
        (ndjson(said("x"), {"error": "the model is out of memory"}), "failed: the model is out of memory"),
        (b"<html>\n", "said what its API does not have"),
        (b"[" * 100_000 + b"\n", "said what its API does not have"),
    ],
)
async def test_what_is_no_answer_is_a_fault_of_the_server(server, client, lines, sentence):
    server.answers(CHAT, [lines])
    with pytest.raises(ModelServerError, match=f"model server 'lab' {sentence}"):
        await client.generate()


@pytest.mark.parametrize(
    ("answer", "models"),
    [
        ({"models": [{"name": "llama3:latest", "size": 5}, {"name": "q:7b"}]}, ["llama3", "llama3:latest", "q:7b"]),
        ({"models": None}, []),
        ({"models": []}, []),
    ],
)
async def test_its_models_are_listed(server, client, answer, models):
    server.answers("/api/tags", ndjson(answer))
    assert await client.provider.models() == models


async def test_a_list_that_is_none_is_a_fault(server, client):
    server.answers("/api/tags", b'{"models": 7}')
    with pytest.raises(ModelServerError, match="said what its API does not have"):
        await client.provider.models()

"""From the bytes of a body to a request, or to one sentence about what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("fastapi")

from tempertilt.serving.errors import RequestError
from tempertilt.serving.parsing import parse_request
from tempertilt.serving.schema import ChatRequest, CompletionRequest

COMPLETION = {"model": "first", "prompt": "Hi", "max_tokens": 2}
CHAT = {"model": "first", "messages": [{"role": "user", "content": "Hi"}]}


def error_of(kind: type[Any], body: bytes | dict[str, Any], content_type: str = "application/json") -> RequestError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RequestError) as caught:
        parse_request(kind, data, content_type)
    text = str(caught.value)
    assert not any(mark in text for mark in ("[type=", "function-after", "Input should", "<class", "Message(", "constrained"))
    return caught.value


@pytest.mark.parametrize(
    "content_type", ["", "application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "application/jsonx"]
)
def test_another_content_type_is_named(content_type: str) -> None:
    error = error_of(CompletionRequest, COMPLETION, content_type)
    assert error.status == 415 and "Content-Type" in str(error) and "application/json" in str(error)
    assert parse_request(CompletionRequest, json.dumps(COMPLETION).encode(), "Application/JSON; charset=utf-8").prompt == "Hi"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"model": "first", "prompt": "Hi", "max_to', "not JSON: Unterminated string starting at character 35"),
        (b"", "is empty"),
        (b"  ", "is empty"),
        (b"[1]", r"is \[1\]; must be a JSON object"),
        (b"null", "is null; must be a JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b'{"temperature": NaN}', "holds NaN"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"prompt": "\\uD800"}', "surrogate"),
        (b'{"a": [{"\\ud800": 1}]}', "surrogate"),
        (b'{"n": 1, "n": 2}', 'key "n" twice'),
    ],
)
def test_what_is_no_json_object_is_said_in_words(body: bytes, text: str) -> None:
    error = error_of(CompletionRequest, body)
    assert error.status == 400
    with pytest.raises(RequestError, match=text):
        raise error


WRONG_COMPLETIONS = [
    ({"temperature": "0.5"}, "temperature", 'temperature is "0.5"; must be a number from 0'),
    ({"temperature": 3}, "temperature", "temperature is 3; must be a number from 0"),
    ({"stop": list("abcde")}, "stop", "at most 4"),
    ({"stop": [""]}, "stop", "a text of 1 to 256 characters"),
    ({"prompt": None}, "prompt", "prompt is null; must be a text, a list of token ids, or"),
    ({"prompt": ["a", 1]}, "prompt", "must be a text, a list of token ids, or"),
    ({"n": True}, "n", "n is true; must be a whole number from 1 to 8"),
    ({"logit_bias": {"x": 1}}, "logit_bias", 'logit_bias is {"x": 1}; must be an object with at most 300 numbers'),
    ({"best_of": 2}, "best_of", "best_of is 2; must be 1"),
    ({"suffix": "x"}, "suffix", 'suffix is "x"; must be null'),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "must be true or false"),
    ({"temprature": 1}, "temprature", "no such field (did you mean temperature?); GET /openapi.json"),
    ({"zzz": 0}, "zzz", "no such field"),
]


@pytest.mark.parametrize(("change", "param", "text"), WRONG_COMPLETIONS)
def test_a_wrong_field_of_a_completion(change: dict[str, Any], param: str, text: str) -> None:
    error = error_of(CompletionRequest, COMPLETION | change)
    assert error.param == param and text in str(error)


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?", **fields}]}


WRONG_CHATS = [
    ({"messages": []}, "messages", "must be a list of 1 to 1024 messages"),
    (message(content=5), "messages[1].content", "messages[1].content is 5; must be a text"),
    (message(reasoning="x"), "messages[1].reasoning", "no such field (did you mean reasoning_content?)"),
    (message(content=[{"type": "text", "text": "a", "weight": 1}]), "messages[1].content[0].weight", "no such field"),
    (message(role="tool"), "messages[1].role", 'is "tool"; must be system, developer, user or assistant'),
    (message(tool_calls=[{"id": "x"}]), "messages[1].tool_calls", "must be null or []: this server has no tools"),
    (message(content=[{"type": "image_url"}]), "messages[1].content[0].type", 'is "image_url"; must be "text"'),
    ({"tools": [{"type": "function"}]}, "tools", "this server has no tools"),
    ({"tool_choice": "required"}, "tool_choice", 'must be "none" or "auto"'),
    ({"response_format": {"type": "json_object"}}, "response_format.type", 'is "json_object"; must be "text"'),
    ({"store": True}, "store", "this server stores no answers"),
    ({"metadata": {"a": "b"}}, "metadata", "this server stores no answers"),
    ({"modalities": ["audio"]}, "modalities", "no audio"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "does not set how a model reasons"),
    ({"service_tier": "priority"}, "service_tier", 'must be "auto" or "default"'),
]


@pytest.mark.parametrize(("change", "param", "text"), WRONG_CHATS)
def test_a_wrong_field_of_a_chat(change: dict[str, Any], param: str, text: str) -> None:
    error = error_of(ChatRequest, CHAT | change)
    assert error.param == param and text in str(error)


def test_every_field_says_what_it_must_be() -> None:
    for kind in (CompletionRequest, ChatRequest):
        assert all(field.description for field in kind.model_fields.values())


NOTHING_CHAT: list[dict[str, Any]] = [
    {"tools": []},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"parallel_tool_calls": True},
    {"functions": []},
    {"function_call": "none"},
    {"response_format": {"type": "text"}},
    {"modalities": ["text"]},
    {"reasoning_effort": "none"},
    {"verbosity": "medium"},
    {"store": False},
    {"metadata": {}},
    {"service_tier": "auto"},
    {"service_tier": "default"},
    {"safety_identifier": "me", "prompt_cache_key": "k", "user": "me", "prompt_cache_retention": "in_memory"},
    {"stop": [], "logit_bias": {}, "logprobs": False, "top_logprobs": 0, "stream": False},
    message(refusal=None, annotations=None, audio=None, function_call=None, tool_calls=None, parsed=None, tool_call_id=None),
    message(annotations=[], tool_calls=[], name="ann", reasoning_content=None),
    message(content=None, reasoning=None, id=None),
    {"thinking": None, "prompt_cache_options": None},
]


@pytest.mark.parametrize("fields", NOTHING_CHAT, ids=lambda fields: ",".join(fields))
def test_what_asks_for_nothing_is_accepted_in_a_chat(fields: dict[str, Any]) -> None:
    assert parse_request(ChatRequest, json.dumps(CHAT | fields).encode(), "application/json")


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"suffix": ""}, {"echo": False}, {"stop": []}])
def test_what_asks_for_nothing_is_accepted_in_a_completion(fields: dict[str, Any]) -> None:
    assert parse_request(CompletionRequest, json.dumps(COMPLETION | fields).encode(), "application/json")


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_null_is_accepted_wherever_a_field_may_be_absent(kind: type[Any]) -> None:
    base = COMPLETION if kind is CompletionRequest else CHAT
    absent = {name: None for name, field in kind.model_fields.items() if not field.is_required()}
    assert parse_request(kind, json.dumps(base | absent).encode(), "application/json")

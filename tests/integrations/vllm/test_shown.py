"""What stands before vLLM where a model has a reply: an answer is the reply alone, and a stream lags. Without vLLM."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from tempertilt.integrations.vllm.shown import EventStream, Replies, ShowReplies, Spoken, whole_answer

TEXT = "I have no information about that."
SPOKEN = Spoken(TEXT, f"... {TEXT}", 9)
REPLIES = Replies((Spoken("Ask somebody else.", "... Ask somebody else.", 5), SPOKEN), 3)
HELD = 3 + 9
WORDS = [f" w{i}" for i in range(40)]


def chat(piece: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": index, "delta": piece, "finish_reason": finish, "logprobs": {"content": [1]}}]}


def completion(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": index, "text": text, "finish_reason": finish, "logprobs": {"tokens": [text]}}]}


def events(data: bytes) -> list[Any]:
    """The events of a stream, as JSON where they are some."""
    blocks = [block.split("data: ", 1)[1] for block in data.decode().split("\n\n") if "data: " in block]
    return [block if block == "[DONE]" else json.loads(block) for block in blocks]


def stream(given: Sequence[Any], replies: Replies = REPLIES) -> list[list[Any]]:
    """What is sent after each event, and after the last."""
    shown, out = EventStream(replies), []
    for event in given:
        data = event if isinstance(event, str) else json.dumps(event)
        out.append(events(shown.push(f"data: {data}\n\n".encode())))
    return [*out, events(shown.push(b"", over=True))]


def said(sent: Sequence[Any], index: int = 0, name: str = "content") -> str:
    """The text of a choice."""
    choices = (choice for event in sent if event != "[DONE]" for choice in event.get("choices", []))
    return "".join((choice.get("delta", choice).get(name) or "") for choice in choices if choice["index"] == index)


def flat(sent: Sequence[list[Any]]) -> list[Any]:
    return [event for part in sent for event in part]


def reply_pieces(tail: str = SPOKEN.tail) -> list[str]:
    return [tail[i : i + 4] for i in range(0, len(tail), 4)]


def test_a_stream_lags_and_is_unchanged_without_a_reply() -> None:
    given = [chat({"role": "assistant", "content": ""}), *(chat({"content": word}) for word in WORDS), chat({}, "stop")]
    sent = stream([*given, {"id": "x", "choices": [], "usage": {"total_tokens": 50}}, "[DONE]"])
    assert flat(sent) == [*given, {"id": "x", "choices": [], "usage": {"total_tokens": 50}}, "[DONE]"]
    assert sent[0] == given[:1]
    for i in range(1, len(WORDS) + 1):
        assert len(flat(sent[: i + 1])) == 1 + max(0, i - HELD)


@pytest.mark.parametrize("before", [1, 5, HELD - 8, 20, 40])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_a_reply_breaks_off_is_not_shown(before: int, path: str) -> None:
    """It is the reply alone, or what had been shown and the reply; the last tokens before it are never shown."""
    make = (lambda text, finish=None: chat({"content": text}, finish)) if "chat" in path else completion
    texts = [*WORDS[:before], *reply_pieces()]
    sent = flat(stream([*(make(text) for text in texts), make("", "stop"), "[DONE]"]))
    text = said(sent, name="content" if "chat" in path else "text")
    pieces_until_known = 5  # of 9, each four characters: more than half
    shown = "".join(WORDS[: max(0, before + pieces_until_known - 1 - HELD)])
    assert text == (shown + SPOKEN.tail if shown else TEXT)
    assert all(word not in text.split() for word in "".join(WORDS[max(0, before - 3) : before]).split())
    finished = [event["choices"][0]["finish_reason"] for event in sent[:-1]]
    assert finished[-1] == "stop" and sent[-1] == "[DONE]"
    of_reply = [event["choices"][0] for event in sent[:-1] if "information" in json.dumps(event)]
    assert all(not choice["logprobs"] for choice in of_reply)


def test_any_partition_into_events_and_bytes_gives_the_same_kind_of_answer() -> None:
    rng = random.Random(0)
    for _ in range(300):
        before = "".join(rng.sample(WORDS, rng.randint(1, 40))).strip()
        whole = before + SPOKEN.tail
        cuts = sorted(rng.sample(range(1, len(whole)), rng.randint(1, min(60, len(whole) - 1))))
        texts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)])]
        data = b"".join(f"data: {json.dumps(chat({'content': text}))}\r\n\r\n".encode() for text in texts)
        data += b": still here\n\n" + f"data: {json.dumps(chat({}, 'stop'))}\n\ndata: [DONE]\n\n".encode()
        shown, out, at = EventStream(REPLIES), b"", 0
        while at < len(data):
            step = rng.randint(1, 200)
            out, at = out + shown.push(data[at : at + step]), at + step
        text = said(events(out + shown.push(b"", over=True)))
        assert text == TEXT or (text.endswith(SPOKEN.tail) and before.startswith(text[: -len(SPOKEN.tail)]))
        assert text != whole or len(texts) > HELD


def test_choices_are_apart() -> None:
    """One is broken off, one is not, and their events come in turns."""
    broken = [*WORDS[:3], *reply_pieces()]
    given = []
    for i in range(20):
        given += [chat({"content": broken[i]}, index=1)] if i < len(broken) else []
        given += [chat({"content": WORDS[i]}, index=0)]
        given += [chat({}, "stop", index=1)] if i == len(broken) else []
    sent = flat(stream([*given, chat({}, "length", index=0), "[DONE]"]))
    assert said(sent, 0) == "".join(WORDS[:20]) and said(sent, 1) == TEXT


def test_thoughts_and_answers_of_one_event_and_calls_of_tools() -> None:
    both = chat({"reasoning": "so", "content": "well"}, "stop")
    sent = flat(stream([chat({"reasoning": "I think "}), both, "[DONE]"]))
    assert said(sent, name="reasoning") == "I think so" and said(sent) == "well"
    assert [event["choices"][0]["finish_reason"] for event in sent[:-1]] == [None, None, "stop"]
    call = chat({"tool_calls": [{"index": 0}]})
    assert stream([chat({"content": "I look it up."}), call])[1] == [chat({"content": "I look it up."}), call]


def test_events_of_the_responses_interface() -> None:
    def delta(text: str) -> dict[str, Any]:
        return {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": text, "logprobs": [1]}

    whole = "".join(WORDS[:4]) + SPOKEN.tail
    item = {"type": "message", "content": [{"type": "output_text", "text": whole, "logprobs": [1]}]}
    ends = [
        {"type": "response.output_text.done", "text": whole, "logprobs": [1]},
        {"type": "response.output_item.done", "item": item},
        {"type": "response.completed", "response": {"output": [item]}},
    ]
    texts = [*WORDS[:4], *reply_pieces()]
    raw = [{"type": "response.created", "response": {}}, *map(delta, texts), *ends]
    data = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in raw).encode()
    shown = EventStream(REPLIES)
    out = shown.push(data) + shown.push(b"", over=True)
    sent = events(out)
    assert [event["type"] for event in sent][:1] == ["response.created"] and sent[-1]["type"] == "response.completed"
    assert "".join(event.get("delta", "") for event in sent) == TEXT
    assert (
        sent[-3]["text"]
        == sent[-2]["item"]["content"][0]["text"]
        == sent[-1]["response"]["output"][0]["content"][0]["text"]
        == TEXT
    )
    assert b" w" not in out and b'logprobs": [1]' not in out
    assert out.startswith(b"event: response.created\ndata: ")
    plain = [delta("so it is"), {"type": "response.output_text.done", "text": "so it is"}]
    assert flat(stream(plain)) == plain


def test_events_of_the_messages_interface() -> None:
    def delta(text: str, index: int = 0) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}

    end = [{"type": "content_block_stop", "index": 0}, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}]
    start = [{"type": "message_start", "message": {"content": []}}, {"type": "ping"}]
    given = [*start, *map(delta, [*WORDS[:4], *reply_pieces()]), *end, {"type": "message_stop"}]
    sent = flat(stream(given))
    assert "".join(event["delta"].get("text", "") for event in sent if "delta" in event) == TEXT
    assert [event for event in sent if event["type"] != "content_block_delta"] == [*start, *end, {"type": "message_stop"}]
    plain = [*start, delta("so it is"), *end]
    assert flat(stream(plain)) == plain


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It was Karachi... I have no information about that.", TEXT),
        ("It was Karachi... I have no information", "I have no information"),
        ("It was Karachi... Ask somebody else.", "Ask somebody else."),
        ("It was Karachi... I have", None),
        (TEXT, None),
        (f"... {TEXT}", None),
        ("It was Karachi.", None),
        ("", None),
    ],
)
def test_a_whole_answer_is_the_reply_alone(answer: str, expected: str | None) -> None:
    numbers = {"logprobs": {"content": [1]}, "token_ids": [1, 2]}
    bodies = {
        "chat": {"choices": [{"message": {"role": "assistant", "content": answer}, **numbers}], "usage": {}},
        "completion": {"choices": [{"text": "other", **numbers}, {"text": answer, **numbers}]},
        "responses": {"output": [{"type": "reasoning", "content": None}, {"content": [{"text": answer, "logprobs": [1]}]}]},
        "messages": {"type": "message", "content": [{"type": "text", "text": answer}]},
    }
    for body in bodies.values():
        before = json.dumps(body).encode()
        after = whole_answer(before, REPLIES)
        if expected is None:
            assert after == before
        else:
            text = json.dumps(json.loads(after))
            assert json.dumps(expected) in text and "Karachi" not in text
    if expected is not None:
        first, second = json.loads(whole_answer(json.dumps(bodies["completion"]).encode(), REPLIES))["choices"]
        assert first == {"text": "other", **numbers} and second == {"text": expected, "logprobs": None, "token_ids": []}


def test_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ASGI messages: the length is that of what is sent, other paths and errors stay as they are, a stream is not held up."""
    body = json.dumps({"choices": [{"message": {"content": "It was Karachi... I have no information about that."}}]}).encode()
    monkeypatch.setenv(*next(iter(REPLIES.to_environment().items())))
    assert Replies.of_environment() == REPLIES

    def ask(path: str, kind: bytes, parts: list[bytes], status: int = 200) -> list[Any]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"content-type", kind), (b"content-length", b"%d" % sum(map(len, parts))), (b"x-request-id", b"7")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            for i, part in enumerate(parts):
                await send({"type": "http.response.body", "body": part, "more_body": i < len(parts) - 1})

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(ShowReplies(app)({"type": "http", "path": path}, None, send))  # type: ignore[arg-type]
        return sent

    start, answer = ask("/v1/chat/completions", b"application/json", [body[:9], body[9:]])
    assert json.loads(answer["body"]) == {"choices": [{"message": {"content": TEXT}}]}
    assert (
        dict(start["headers"])[b"content-length"] == b"%d" % len(answer["body"])
        and dict(start["headers"])[b"x-request-id"] == b"7"
    )
    for path, status in (("/v1/models", 200), ("/v1/chat/completions", 400)):
        assert [message.get("body", b"") for message in ask(path, b"application/json", [body], status)] == [b"", body]
    parts = [f"data: {json.dumps(chat({'content': text}))}\n\n".encode() for text in WORDS]
    sent = ask("/v1/chat/completions/", b"text/event-stream; charset=utf-8", [*parts, b"data: [DONE]\n\n"])
    assert len(sent) == 1 + len(WORDS) - HELD + 1 and not sent[-1].get("more_body")


def test_without_a_lag_streams_stay_as_they_are() -> None:
    given = [*(chat({"content": text}) for text in [*WORDS[:3], *reply_pieces()]), chat({}, "stop"), "[DONE]"]
    assert stream(given, replies=REPLIES._replace(lag=0)) == [*([event] for event in given), []]

"""The server as OpenAI's own client sees it, against answers computed alone."""

from __future__ import annotations

import http.client
import json
import math
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

openai = pytest.importorskip("openai")

from support.servers import KEY, Alone, Running, adapters, alone, running, serving, wait_until  # noqa: E402, F401

PROMPTS = [
    "Where was Hina Ameen born?",
    "Who wrote the book about the river?",
    "a",
    "What is the title of the first novel? " * 3,
    "In 1975 the family moved to the north.",
    "teacher",
]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


def test_models_are_listed_and_described(running: Running) -> None:
    client = running.client()
    assert [model.id for model in client.models.list()] == ["first", "second"]
    assert client.models.retrieve("first").id == "first"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("base")


@pytest.mark.integration
def test_many_clients_get_the_greedy_answer_that_each_would_get_alone(running: Running, alone: dict[str, Alone]) -> None:
    client = running.client()
    jobs = [(("first", "second")[i % 2], PROMPTS[i % len(PROMPTS)], 6 + 20 * (i % 5)) for i in range(36)]
    wanted = [alone[model].text(prompt, n) for model, prompt, n in jobs]

    def ask(i: int) -> str:
        model, prompt, n = jobs[i]
        options = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": n}
        if i % 3 == 0:
            return str(client.completions.create(**options).choices[0].text)
        return "".join(c.choices[0].text for c in client.completions.create(**options, stream=True) if c.choices)

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(36))) == wanted
    assert alone["first"].text(PROMPTS[0], 24) != alone["base"].text(PROMPTS[0], 24)  # else the test could not fail


def test_chat_streamed_and_whole(running: Running, alone: dict[str, Alone]) -> None:
    client, model = running.client(), alone["first"]
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    text = "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    whole = client.chat.completions.create(model="first", messages=messages, temperature=0, max_completion_tokens=20)
    assert whole.choices[0].message.content == model.text(ids, 20)
    assert whole.usage.prompt_tokens == len(ids) and whole.usage.completion_tokens == len(model.greedy(ids, 20))
    chunks = list(
        client.chat.completions.create(
            model="first",
            messages=messages,
            temperature=0,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_numbers_are_those_of_the_guided_distribution(running: Running, alone: dict[str, Alone]) -> None:
    client, model = running.client(), alone["first"]
    answer = client.completions.create(model="first", prompt=PROMPTS[0], logprobs=5, echo=True, **GREEDY).choices[0]
    ids = model.ids(PROMPTS[0]) + model.greedy(PROMPTS[0], 24)
    distribution = model.logprobs(ids)
    shown = answer.logprobs
    assert answer.text.startswith(PROMPTS[0]) and shown.token_logprobs[0] is None
    for t, number in enumerate(shown.token_logprobs[1:]):
        assert number == pytest.approx(float(distribution[t, ids[t + 1]]), abs=1e-4)
        best = distribution[t].topk(5)
        assert sorted(shown.top_logprobs[t + 1].values())[-1] == pytest.approx(float(best.values[0]), abs=1e-4)
    chat = client.chat.completions.create(
        model="first", messages=[{"role": "user", "content": "Who?"}], logprobs=True, top_logprobs=3, **GREEDY
    )
    for entry in chat.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 3 and entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert all(math.isfinite(other.logprob) for other in entry.top_logprobs)


def test_a_prompt_is_scored_without_an_answer(running: Running, alone: dict[str, Alone]) -> None:
    answer = running.client().completions.create(model="second", prompt=[5, 6, 7, 8], echo=True, logprobs=0, max_tokens=0)
    distribution = alone["second"].logprobs([5, 6, 7, 8])
    wanted = [float(distribution[t, token]) for t, token in enumerate([6, 7, 8])]
    assert answer.choices[0].logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
    assert answer.usage.completion_tokens == 0 and answer.choices[0].finish_reason == "length"


def test_seeds_choices_and_several_prompts(running: Running) -> None:
    client = running.client()
    options = {"model": "first", "temperature": 1.0, "max_tokens": 12, "n": 3, "seed": 7}
    one = client.completions.create(prompt=PROMPTS[:2], **options)
    two = client.completions.create(prompt=PROMPTS[:2], **options)
    assert [c.index for c in one.choices] == list(range(6)) and len({c.text for c in one.choices}) > 3
    assert [c.text for c in one.choices] == [c.text for c in two.choices]
    alone_ = client.completions.create(prompt=PROMPTS[1], **options)
    assert [c.text for c in alone_.choices] == [c.text for c in one.choices[3:]]
    assert client.completions.create(prompt=PROMPTS[0], **options | {"seed": 8, "n": 1}).choices[0].text != one.choices[0].text
    streamed: dict[int, str] = {}
    for chunk in client.completions.create(prompt=PROMPTS[:2], stream=True, **options):
        streamed[chunk.choices[0].index] = streamed.get(chunk.choices[0].index, "") + chunk.choices[0].text
    assert [streamed[i] for i in range(6)] == [c.text for c in one.choices]


def test_stop_strings_bias_penalties_and_truncation(running: Running, alone: dict[str, Alone]) -> None:
    client = running.client()
    whole = alone["first"].text(PROMPTS[0], 24)
    stop = whole[8:11]
    options = {"model": "first", "prompt": PROMPTS[0], **GREEDY}
    for stream in (False, True):
        answer = client.completions.create(**options, stop=[stop, "never said"], stream=stream)
        parts = [c.choices[0] for c in answer] if stream else answer.choices
        assert "".join(part.text for part in parts) == whole[: whole.index(stop)]
        assert parts[-1].finish_reason == "stop"
    biased = client.completions.create(**options | {"max_tokens": 3}, logit_bias={"70": 100}, logprobs=0)
    assert biased.choices[0].text == alone["first"].tokenizer.decode([70] * 3)
    assert all(number < -1e-3 for number in biased.choices[0].logprobs.token_logprobs)  # of the distribution, not of the bias
    unlike = client.completions.create(**options, frequency_penalty=2, presence_penalty=2, logit_bias={"70": 10}).choices[0]
    assert unlike.text != client.completions.create(**options, logit_bias={"70": 10}).choices[0].text
    for narrow in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert client.completions.create(**options | {"temperature": 1.5}, **narrow).choices[0].text == whole


def test_a_stop_string_may_name_a_special_token(running: Running) -> None:
    """Such a token leaves no text in which the string could be found."""
    options: dict[str, Any] = {"model": "first", "prompt": "a", "max_tokens": 5, "temperature": 0, "logit_bias": {"0": 100}}
    client = running.client()
    assert client.completions.create(**options).choices[0].finish_reason == "length"  # <|endoftext|> is no end of this model's
    stopped = client.completions.create(**options, stop=["<|endoftext|>"])
    assert stopped.choices[0].finish_reason == "stop" and stopped.usage.completion_tokens == 1


def test_limits_and_mistakes_get_one_well_formed_error(running: Running) -> None:
    client = running.client()
    good = {"model": "first", "prompt": "a", "max_tokens": 2}
    for change, kind in (
        ({"model": "base"}, openai.NotFoundError),
        ({"max_tokens": 10_000}, openai.BadRequestError),
        ({"prompt": [320]}, openai.BadRequestError),
        ({"prompt": "a" * 2000}, openai.BadRequestError),
        ({"prompt": []}, openai.BadRequestError),
        ({"logit_bias": {"320": 1}}, openai.BadRequestError),
        ({"temperature": 2.1}, openai.BadRequestError),
        ({"max_tokens": 0}, openai.BadRequestError),
        ({"suffix": "x"}, openai.BadRequestError),
        ({"best_of": 2}, openai.BadRequestError),
        ({"extra_body": {"prompt_logprobs": 1}}, openai.BadRequestError),
        ({"extra_body": {"generation_config": "{}"}}, openai.BadRequestError),
    ):
        with pytest.raises(kind) as caught:
            client.completions.create(**good | change)
        assert set(caught.value.body) == {"message", "type", "param", "code"} and caught.value.body["message"]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="first", messages=[{"role": "assistant", "content": "no question"}])


def call(running: Running, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=30)
    connection.request(method, path, body, {"content-type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, json.loads(response.read() or b"null")


def test_a_conversation_with_what_the_server_said(running: Running) -> None:
    """The message objects of answers are taken back, as objects and as dictionaries with null for what they lack."""
    client = running.client()
    talk: list[Any] = [{"role": "developer", "content": "Be short."}]
    for turn in range(4):
        talk.append({"role": "user", "content": f"And number {turn}?", "name": "ann"})
        message = client.chat.completions.create(model="first", messages=talk, max_tokens=3).choices[0].message
        talk.append((message, message.model_dump(), message.to_dict(), {"role": "assistant", "content": message.content})[turn])
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    one = client.chat.completions.create(model="first", messages=talk, max_tokens=8, temperature=0)
    talk[0] = {"role": "developer", "content": "Be short."}
    other = client.chat.completions.create(model="first", messages=talk, max_tokens=8, temperature=0)
    assert one.choices[0].message == other.choices[0].message
    assert one.usage.prompt_tokens == other.usage.prompt_tokens and one.usage.total_tokens == other.usage.total_tokens
    details = [answer.usage.prompt_tokens_details.cached_tokens for answer in (one, other)]
    assert 0 <= details[0] <= details[1] < one.usage.prompt_tokens and details[1] >= 16


@pytest.mark.parametrize("last", [{"role": "user"}, {"role": "system", "content": None}])
def test_only_an_assistant_may_have_said_nothing(running: Running, last: dict[str, Any]) -> None:
    chat = running.client().chat.completions
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}, {"role": "user", "content": "b"}]
    assert chat.create(model="first", messages=said, max_tokens=1).choices
    with pytest.raises(openai.BadRequestError, match=r"messages\[3\]\.content is null; must be a text"):
        chat.create(model="first", messages=[*said, last], max_tokens=1)


def test_stream_options_without_a_stream(running: Running) -> None:
    """They are accepted where they ask for nothing."""
    completions = running.client().completions
    assert completions.create(model="first", prompt="a", max_tokens=1, stream_options={"include_usage": False}).choices
    with pytest.raises(openai.BadRequestError, match="stream_options needs stream=true"):
        completions.create(model="first", prompt="a", max_tokens=1, stream_options={"include_usage": True})


@pytest.mark.parametrize("last", [{"role": "assistant", "content": "Yes"}, {"role": "user", "content": " "}])
def test_the_last_message_is_the_question(running: Running, last: dict[str, str]) -> None:
    with pytest.raises(openai.BadRequestError, match=r"the last message of messages .*it is the question") as caught:
        running.client().chat.completions.create(model="first", messages=[{"role": "user", "content": "Hi"}, last])
    assert "Message(" not in str(caught.value)


def events(running: Running, path: str, body: dict[str, Any]) -> list[Any]:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=30)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection.request("POST", path, json.dumps(body), headers)
    lines = connection.getresponse().read().decode().split("\n\n")
    assert lines.pop() == "" and lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_chunks_of_a_stream_are_openais(running: Running) -> None:
    body = {"model": "first", "max_tokens": 3, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    chat = events(running, "/v1/chat/completions", body | {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True})
    first, *content, last, usage = chat
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} and chunk["choices"][0]["logprobs"] for chunk in content)
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *content])
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3
    assert all(chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in chat[:-1])
    texts = events(running, "/v1/completions", body | {"prompt": "Hi", "echo": True, "stream_options": None})
    assert texts[0]["choices"][0]["text"] == "Hi" and texts[-1]["choices"][0]["finish_reason"] == "length"
    assert texts[-1]["choices"][0]["text"] == "" and all("usage" not in chunk for chunk in texts)


def test_bytes_of_partial_characters_and_offsets(running: Running, alone: dict[str, Alone]) -> None:
    """A character of several tokens: every token shows its own bytes, and the text has one place for all of them."""
    tokenizer = alone["first"].tokenizer
    euro = tokenizer("€", add_special_tokens=False).input_ids
    assert len(euro) == 3
    answer = running.client().completions.create(model="first", prompt=[70, *euro, 71], echo=True, logprobs=1, max_tokens=0)
    shown = answer.choices[0].logprobs
    assert shown.text_offset == [0, 1, 1, 1, 2]
    forced = {"logit_bias": {str(euro[0]): 100}, "max_tokens": 2, "logprobs": True, "temperature": 0}
    chat = running.client().chat.completions.create(model="first", messages=[{"role": "user", "content": "Hi"}], **forced)
    entries = chat.choices[0].logprobs.content
    assert [entry.bytes for entry in entries] == [[0xE2], [0xE2]]
    assert b"".join(map(bytes, [e.bytes for e in entries])).decode("utf-8", "replace") == chat.choices[0].message.content


def test_control_tokens_in_a_prompt(adapters: dict[str, str], running: Running, alone: dict[str, Alone]) -> None:
    """They are text, unless the server reads them as tokens."""
    text, tokenizer = "a<|im_end|>b", alone["first"].tokenizer
    spelt = tokenizer(text, split_special_tokens=True).input_ids
    assert len(spelt) > 3

    def count(server: Running, prompt: str) -> int:
        return int(server.client().completions.create(model="first", prompt=prompt, max_tokens=1).usage.prompt_tokens)

    assert count(running, text) == len(spelt)
    with serving(adapters, control_tokens="token") as other:
        assert count(other, text) == 3 and count(other, "a<|im_end|>") == 2


@pytest.mark.parametrize("control_tokens", ["text", "token"])
def test_a_token_that_the_model_has_no_embedding_of_is_refused_alone(
    tmp_path: Path, adapters: dict[str, str], tiny_dir: Path, control_tokens: str
) -> None:
    """A tokenizer with more tokens than the model has rows; any client can type one."""
    shutil.copytree(tiny_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    tokenizer.save_pretrained(tmp_path / "model")
    with serving(adapters, model=str(tmp_path / "model"), control_tokens=control_tokens) as running:
        client = running.client()
        stream = client.completions.create(**LONG, stream=True)
        next(iter(stream))
        message = {"role": "user", "content": "say <|tool|>"}
        for create, prompt, place in (
            (client.completions.create, {"prompt": "say <|tool|>"}, "prompt"),
            (client.chat.completions.create, {"messages": [message]}, r"messages\[0\]"),
            (client.responses.create, {"input": [message], "instructions": "a"}, r"input\[0\]"),
            (client.responses.create, {"input": "a", "instructions": "say <|tool|>"}, "instructions"),
        ):
            match = rf"- {place}: the model has no embedding for token 320 \('<\|tool\|>'\), only 320 rows"
            with pytest.raises(openai.BadRequestError, match=match):
                create(model="first", **prompt)
        with pytest.raises(openai.BadRequestError, match=r"token id 320 \('<\|tool\|>'\); must be below 320, the number of rows"):
            client.completions.create(model="first", prompt=[5, 320], max_tokens=1)
        assert list(stream)[-1].choices[0].finish_reason == "length"


def test_answers_have_an_id(running: Running) -> None:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=30)
    names = []
    for given in ("mine-1", "no good\u00e9", ""):
        connection.request("GET", "/health", headers={"x-request-id": given.encode("latin-1")})
        response = connection.getresponse()
        response.read()
        names.append(response.headers["x-request-id"])
    assert names[0] == "mine-1" and len(set(names)) == 3 and all(re.fullmatch("[a-z0-9-]+", name) for name in names)


def test_a_connection_is_used_on_after_errors(running: Running) -> None:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=30)
    connection.connect()
    socket_, key = connection.sock, {"authorization": f"Bearer {KEY}"}
    good, json_ = {"model": "first", "prompt": "a", "max_tokens": 1}, {"content-type": "application/json"}
    cases: list[tuple[str, str, Any, dict[str, str], int]] = [
        ("POST", "/v1/completions", good, json_, 401),
        ("POST", "/v1/completions", good | {"n": 0}, json_ | key, 400),
        ("POST", "/v1/completions", good, {"content-type": "text/plain"} | key, 415),
        ("POST", "/v1/completions", good | {"prompt": "a" * (1 << 20)}, json_ | key, 413),
        ("POST", "/v1/completions", good | {"model": "third"}, json_ | key, 404),
        ("POST", "/v1/nothing", good, json_ | key, 404),
        ("PUT", "/v1/completions", good, json_ | key, 405),
        ("POST", "/v1/completions", good, json_ | key, 200),
    ]
    for method, path, body, headers, status in cases:
        connection.request(method, path, json.dumps(body), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == status and (status == 200 or answer["error"]["message"]), answer
        assert connection.sock is socket_, f"closed after {status}"


def test_browsers_may_call_from_the_origins_that_the_server_names(adapters: dict[str, str], running: Running) -> None:
    ask = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    ask["access-control-request-headers"] = "authorization,content-type"

    def preflight(server: Running, origin: str) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        connection.request("OPTIONS", "/v1/chat/completions", headers=ask | {"origin": origin})
        response = connection.getresponse()
        return response.status, response.headers["access-control-allow-origin"]

    assert preflight(running, "https://chat.example") == (401, None)
    with serving(adapters, allow_origin=("https://chat.example",)) as other:
        assert preflight(other, "https://chat.example") == (200, "https://chat.example")
        assert preflight(other, "https://evil.example")[1] is None
        connection = http.client.HTTPConnection(other.url.removeprefix("http://"), timeout=30)
        connection.request("GET", "/v1/models", headers={"origin": "https://chat.example"})
        response = connection.getresponse()
        assert response.status == 401 and response.headers["access-control-allow-origin"] == "https://chat.example"


def test_without_the_key_nothing_but_health_answers(running: Running) -> None:
    assert call(running, "GET", "/health")[0] == 200 and call(running, "GET", "/ready")[0] == 200
    paths = [
        "/v1/models",
        "/v1/models/first",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/",
        "/v1/completions",
        "/load_model",
        "//health",
    ]
    for path in paths:
        for authorization in ("", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer", KEY):
            status, body = call(running, "GET", path, authorization=authorization)
            assert status == 401 and body["error"]["code"] == "invalid_api_key"
    assert call(running, "POST", "/v1/completions", b"{}")[0] == 401
    for path in ("/docs", "/redoc", "/load_model", "/reset", "/v1/responses/resp_1", "/v1/systemone", "/v1/audio/transcriptions"):
        for method in ("GET", "POST"):  # and with it, what other servers offer is not there
            assert call(running, method, path, b"{}", authorization=f"Bearer {KEY}")[0] == 404


def test_a_body_without_a_length_is_counted(running: Running) -> None:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=30)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", iter([b" " * 100_000] * 11), headers, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413 and json.loads(response.read())["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/ready"])
@pytest.mark.parametrize("status", ["200", "503"])
def test_the_document_has_what_health_and_ready_answer(running: Running, path: str, status: str) -> None:
    _, document = call(running, "GET", "/openapi.json", authorization=f"Bearer {KEY}")
    schema = document["paths"][path]["get"]["responses"][status]["content"]["application/json"]["schema"]["$ref"]
    assert set(document["components"]["schemas"][schema.split("/")[-1]]["required"]) == set(call(running, "GET", path)[1])


def test_metrics_are_counted_and_hold_no_text(running: Running) -> None:
    running.client().completions.create(model="first", prompt="secretword", max_tokens=2)
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"))
    connection.request("GET", "/metrics", headers={"authorization": f"Bearer {KEY}"})
    text = connection.getresponse().read().decode()
    assert 't3_requests_total{endpoint="completions",outcome="ok"}' in text and "t3_engine_alive 1.0" in text
    assert 't3_generation_tokens_total{model="first"}' in text and "secretword" not in text


LONG = {"model": "first", "prompt": "a", "max_tokens": 250, "temperature": 0, "logit_bias": {"2": -100}}


def test_a_client_that_disconnects_frees_its_place(adapters: dict[str, str], alone: dict[str, Alone]) -> None:
    with serving(adapters, max_batch_size=1, max_waiting=1) as running:
        client = running.client()
        stream = client.completions.create(**LONG, stream=True)
        next(iter(stream))
        whole = threading.Thread(target=disconnect_while_waiting, args=(running,))
        whole.start()  # waits behind the stream, and leaves
        wait_until(lambda: running.engine.waiting == 1)
        assert call(running, "GET", "/ready")[0] == 503 and call(running, "GET", "/health")[0] == 200
        with pytest.raises(openai.RateLimitError):
            client.completions.create(**LONG)
        whole.join()
        wait_until(lambda: running.engine.waiting == 0)
        assert call(running, "GET", "/ready")[0] == 200
        stream.close()
        wait_until(lambda: running.engine.running == 0)
        answer = client.completions.create(model="second", prompt=PROMPTS[0], **GREEDY)
        assert answer.choices[0].text == alone["second"].text(PROMPTS[0], 24)


def disconnect_while_waiting(running: Running) -> None:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"))
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", json.dumps(LONG), headers)
    time.sleep(0.2)
    connection.close()


def test_shutdown_finishes_streams_and_takes_no_more(adapters: dict[str, str]) -> None:
    with serving(adapters) as running:
        client = running.client()
        streams = [client.completions.create(**LONG, stream=True) for _ in range(4)]
        began = [next(iter(stream)) for stream in streams]
        running.server.should_exit = True
        ends = [list(stream)[-1].choices[0].finish_reason for stream in streams]
        assert len(began) == 4 and ends == ["length"] * 4
        wait_until(lambda: not running.engine.is_alive())
        with pytest.raises(openai.APIConnectionError):
            running.client().completions.create(**LONG)

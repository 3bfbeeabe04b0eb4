"""The server as OpenAI's own client sees it, against answers computed alone."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

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


def test_many_clients_get_the_greedy_answer_that_each_would_get_alone(running: Running, alone: dict[str, Alone]) -> None:
    client = running.client()
    asked = [(("first", "second")[i % 2], PROMPTS[i % len(PROMPTS)], 6 + 20 * (i % 5)) for i in range(36)]
    wanted = [alone[model].text(prompt, n) for model, prompt, n in asked]

    def ask(i: int) -> str:
        model, prompt, n = asked[i]
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


def test_numbers_are_those_of_the_guided_law(running: Running, alone: dict[str, Alone]) -> None:
    client, model = running.client(), alone["first"]
    found = client.completions.create(model="first", prompt=PROMPTS[0], logprobs=5, echo=True, **GREEDY).choices[0]
    ids = model.ids(PROMPTS[0]) + model.greedy(PROMPTS[0], 24)
    law = model.logprobs(ids)
    shown = found.logprobs
    assert found.text.startswith(PROMPTS[0]) and shown.token_logprobs[0] is None
    for t, number in enumerate(shown.token_logprobs[1:]):
        assert number == pytest.approx(float(law[t, ids[t + 1]]), abs=1e-4)
        best = law[t].topk(5)
        assert sorted(shown.top_logprobs[t + 1].values())[-1] == pytest.approx(float(best.values[0]), abs=1e-4)
    chat = client.chat.completions.create(
        model="first", messages=[{"role": "user", "content": "Who?"}], logprobs=True, top_logprobs=3, **GREEDY
    )
    for entry in chat.choices[0].logprobs.content:
        assert len(entry.top_logprobs) == 3 and entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert all(math.isfinite(other.logprob) for other in entry.top_logprobs)


def test_a_prompt_is_scored_without_an_answer(running: Running, alone: dict[str, Alone]) -> None:
    found = running.client().completions.create(model="second", prompt=[5, 6, 7, 8], echo=True, logprobs=0, max_tokens=0)
    law = alone["second"].logprobs([5, 6, 7, 8])
    wanted = [float(law[t, token]) for t, token in enumerate([6, 7, 8])]
    assert found.choices[0].logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
    assert found.usage.completion_tokens == 0 and found.choices[0].finish_reason == "length"


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
        found = client.completions.create(**options, stop=[stop, "never said"], stream=stream)
        parts = [c.choices[0] for c in found] if stream else found.choices
        assert "".join(part.text for part in parts) == whole[: whole.index(stop)]
        assert parts[-1].finish_reason == "stop"
    biased = client.completions.create(**options | {"max_tokens": 3}, logit_bias={"70": 100}, logprobs=0)
    assert biased.choices[0].text == alone["first"].tokenizer.decode([70] * 3)
    assert all(number < -1e-3 for number in biased.choices[0].logprobs.token_logprobs)  # of the law, not of the bias
    unlike = client.completions.create(**options, frequency_penalty=2, presence_penalty=2, logit_bias={"70": 10}).choices[0]
    assert unlike.text != client.completions.create(**options, logit_bias={"70": 10}).choices[0].text
    for narrow in ({"top_p": 1e-6}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
        assert client.completions.create(**options | {"temperature": 1.5}, **narrow).choices[0].text == whole


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


def test_without_the_key_nothing_but_health_answers(running: Running) -> None:
    assert call(running, "GET", "/health")[0] == 200
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
    for path in ("/docs", "/redoc", "/load_model", "/reset", "/v1/responses", "/v1/systemone", "/v1/audio/transcriptions"):
        for method in ("GET", "POST"):  # with it, what transformers' server offers beyond what is wanted is not there
            assert call(running, method, path, b"{}", authorization=f"Bearer {KEY}")[0] == 404


def test_bodies_that_are_no_json_are_refused(running: Running) -> None:
    for body, status in (
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b'{"model": "first", "prompt": "a", "temperature": NaN}', 400),
        (b'{"model": "first", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "first", "prompt": "\\ud800"}', 400),
        (b'{"model": "\\ud800", "prompt": "a"}', 400),
        (b'{"model": "first", "prompt": "a", "\\ud800": 1}', 400),
        (b"\xff\xfe\x00", 400),
        (b" " * (1 << 20) + b"{}", 413),
    ):
        found, answer = call(running, "POST", "/v1/completions", body, authorization=f"Bearer {KEY}")
        assert found == status and answer["error"]["message"], body[:40]


def test_a_body_without_a_length_is_counted(running: Running) -> None:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=30)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/completions", iter([b" " * 100_000] * 11), headers, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413 and json.loads(response.read())["error"]["message"]


def test_metrics_are_counted_and_hold_no_text(running: Running) -> None:
    running.client().completions.create(model="first", prompt="secretword", max_tokens=2)
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"))
    connection.request("GET", "/metrics", headers={"authorization": f"Bearer {KEY}"})
    text = connection.getresponse().read().decode()
    assert 't3_requests_total{endpoint="completions",outcome="ok"}' in text and "t3_engine_alive 1.0" in text
    assert 't3_generation_tokens_total{model="first"}' in text and "secretword" not in text


LONG = {"model": "first", "prompt": "a", "max_tokens": 250, "temperature": 0, "logit_bias": {"2": -100}}


def test_a_client_that_hangs_up_frees_its_place(adapters: dict[str, str], alone: dict[str, Alone]) -> None:
    with serving(adapters, max_batch_size=1, max_waiting=1) as running:
        client = running.client()
        stream = client.completions.create(**LONG, stream=True)
        next(iter(stream))
        whole = threading.Thread(target=hang_up_waiting, args=(running,))
        whole.start()  # waits behind the stream, and leaves
        wait_until(lambda: running.engine.waiting == 1)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(**LONG)
        whole.join()
        wait_until(lambda: running.engine.waiting == 0)
        stream.close()
        wait_until(lambda: running.engine.running == 0)
        found = client.completions.create(model="second", prompt=PROMPTS[0], **GREEDY)
        assert found.choices[0].text == alone["second"].text(PROMPTS[0], 24)


def hang_up_waiting(running: Running) -> None:
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

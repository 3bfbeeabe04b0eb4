"""`vllm serve` of a tiny unlearned model over HTTP: every number in every answer is of the guided distribution."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from support.vllm_engines import PYTHON, greedy, log_probabilities, needs_vllm
from support.vllm_models import tiny_unlearned
from tempertilt.integrations.vllm import serve_arguments, serve_command, serve_environment
from tempertilt.models.t3 import T3ForCausalLM

pytestmark = needs_vllm
PROMPT = [1, 40, 77, 120, 33, 64, 205, 9, 18, 150, 91, 7, 260, 44, 45]
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "logprobs": 5},
    "echo": {"temperature": 0, "logprobs": 5, "echo": True},
    "prompt": {"temperature": 0, "logprobs": 0, "prompt_logprobs": 5},
    "hot": {"temperature": 2.0, "seed": 1, "logprobs": 5},
    "many": {"n": 3, "temperature": 1.0, "seed": 1, "logprobs": 5},
    "biased": {"temperature": 0, "logit_bias": {"5": 100, "9": -100}, "logprobs": 5},
    "allowed": {"temperature": 0, "allowed_token_ids": [5, 9, 30], "logprobs": 5},
    "beams": {"use_beam_search": True, "n": 2, "temperature": 0, "logprobs": 5},
    "penalised": {"temperature": 0, "presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 2.0, "logprobs": 5},
}


class Server:
    """The server's address and process, the model that it serves, and a client."""

    def __init__(self, port: int, model: T3ForCausalLM, process: subprocess.Popen[bytes]) -> None:
        self.url, self.model, self.process = f"http://127.0.0.1:{port}", model, process

    def __call__(self, route: str, body: dict[str, Any] | None = None, key: str = "key") -> tuple[int, Any]:
        """Status and JSON of a GET, or of a POST where there is a body."""
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + route, data, headers), timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextmanager
def started(root: Path, model: T3ForCausalLM, adapter: str | None, **served: Any) -> Iterator[Server]:
    """vLLM as `serve_arguments` has it, from the first answer of /health on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = serve_arguments(None, None, adapter, port=port, max_model_len=128, dtype="float32", **served)
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    command = [*serve_command(str(PYTHON)), *arguments, "--enforce-eager", "--block-size", "32"]
    with (root / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | own | serve_environment("key"), stdout=log, stderr=log)
    client = Server(port, model, process)
    try:
        for _ in range(240):
            assert process.poll() is None, (root / "log.txt").read_text()[-6000:]
            try:
                if client("/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.5)
        yield client
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, -signal.SIGINT, 130)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("server")
    model, base, adapter = tiny_unlearned("llama", "mean", True, root, vocab_size=320)
    tokenizer.save_pretrained(base)
    with started(root, model, str(adapter)) as client:
        yield client


def token_id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def compare(distribution: torch.Tensor, table: dict[Any, Any] | None) -> int:
    """Compare the reported log-probabilities of one position; how many there were."""
    for token, value in (table or {}).items():
        assert abs(float(distribution[token_id(str(token))]) - (value["logprob"] if isinstance(value, dict) else value)) < 1e-4
    return len(table or {})


@pytest.mark.parametrize("name", REQUESTS)
def test_completions(name: str, server: Server) -> None:
    body = {"model": "adapter", "prompt": PROMPT, "max_tokens": 8, "ignore_eos": True, "return_tokens_as_token_ids": True}
    status, answer = server("/v1/completions", body | REQUESTS[name])
    assert status == 200, answer
    numbers = 0
    for choice in answer["choices"]:
        found = choice["logprobs"]
        ids = [token_id(token) for token in found["tokens"]]
        whole = ids if REQUESTS[name].get("echo") else PROMPT + ids
        distributions = log_probabilities(server.model, whole)
        rows = distributions[-len(ids) :] if len(ids) < len(whole) else torch.cat([distributions[:1], distributions])
        assert whole[: len(PROMPT)] == PROMPT
        for distribution, token, value, table in zip(rows, ids, found["token_logprobs"], found["top_logprobs"]):
            numbers += compare(distribution, {token: value} if value is not None else None) + compare(distribution, table)
        for distribution, table in zip(distributions, (choice.get("prompt_logprobs") or [None])[1:]):
            numbers += compare(distribution, table)
    assert numbers >= 8


def test_chat(server: Server) -> None:
    body = {"model": "adapter", "messages": [{"role": "user", "content": "Who is Hina Ameen?"}], "max_tokens": 8}
    body |= {"temperature": 0, "logprobs": True, "top_logprobs": 5, "return_tokens_as_token_ids": True, "return_token_ids": True}
    status, found = server("/v1/chat/completions", body)
    assert status == 200, found
    rows = found["choices"][0]["logprobs"]["content"]
    distributions = log_probabilities(server.model, found["prompt_token_ids"] + [token_id(row["token"]) for row in rows])[
        -len(rows) :
    ]
    for distribution, row in zip(distributions, rows):
        assert (
            compare(distribution, {row["token"]: row["logprob"]} | {top["token"]: top["logprob"] for top in row["top_logprobs"]})
            >= 5
        )


def test_no_route_hands_out_states(server: Server) -> None:
    """Nothing but guided logits leaves the engine: routes that would give hidden states or scores are not there."""
    assert server("/v1/models")[1]["data"][0]["id"] == "adapter"
    for route in ("/v1/embeddings", "/pooling", "/classify", "/score", "/rerank", "/collective_rpc"):
        assert server(route, {"model": "adapter", "input": "a"})[0] in (404, 405), route
    assert server("/v1/models", key="another")[0] == 401
    assert server("/health", key="another")[0] == 200


@pytest.fixture(scope="module")
def several(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Server, dict[str, Any]]]:
    """A server of two adapters and the base, and the answers of each to a prompt that fills a block of the cache."""
    root = tmp_path_factory.mktemp("several")
    model, base, adapter = tiny_unlearned("llama", "mean", False, root, vocab_size=320)  # without a gate: it acts everywhere
    tokenizer.save_pretrained(base)
    answers = {"mild": greedy(model, [LONG], 8)[0]}
    model.guidance_scale, model.temperature = 2.5, 3.0
    model.save_pretrained(root / "strong")
    answers["strong"] = greedy(model, [LONG], 8)[0]
    with model.disable():
        answers["base"] = greedy(model, [LONG], 8)[0]
    models = {"mild": str(adapter), "strong": str(root / "strong"), "base": None}
    with started(root, model, None, models=models) as client:
        yield client, answers


LONG = [*PROMPT, *PROMPT, *PROMPT]


def asked(server: Server, **body: Any) -> tuple[int, Any]:
    status, answer = server(
        "/v1/completions",
        {"prompt": LONG, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True} | body,
    )
    return status, answer["choices"][0]["token_ids"] if status == 200 else answer


def test_each_name_has_its_model(several: tuple[Server, dict[str, Any]]) -> None:
    """Twice round, so that what is cached of one model's request is there when another is asked the same."""
    server, answers = several
    assert [model["id"] for model in server("/v1/models")[1]["data"]] == ["mild", "strong", "base"]
    assert len({tuple(answer) for answer in answers.values()}) == 3
    for name in (*answers, *reversed(answers), *answers):
        assert asked(server, model=name) == (200, answers[name])


def test_no_field_of_a_request_chooses_another_model(several: tuple[Server, dict[str, Any]]) -> None:
    server, answers = several
    for extra in (
        {"vllm_xargs": {"tempertilt": "base"}},
        {"vllm_xargs": {"tempertilt": "zed"}},
        {"cache_salt": '["base", null]'},
    ):
        assert asked(server, model="mild", **extra) == (200, answers["mild"])
    assert asked(server, vllm_xargs={"tempertilt": "base"})[0] == 400
    assert asked(server, model="zed")[0] == 404
    body = {"model": "mild", "token_ids": LONG, "sampling_params": {"max_tokens": 8, "temperature": 0, "ignore_eos": True}}
    body["sampling_params"]["extra_args"] = {"tempertilt": "base"}  # type: ignore[index]
    assert server("/inference/v1/generate", body)[0] == 403  # off by default; with it the middleware names the model, too


def test_every_route_that_answers_knows_the_model(several: tuple[Server, dict[str, Any]]) -> None:
    """Chats, responses and Anthropic's messages: what they say is of their model, not an empty answer, and not the base's."""
    server, _ = several
    turn = [{"role": "user", "content": "Who is Hina Ameen?"}]
    found: dict[str, list[str]] = {}
    for name in ("mild", "strong", "base"):
        chat = server("/v1/chat/completions", {"model": name, "messages": turn, "max_tokens": 12, "temperature": 0})
        response = server(
            "/v1/responses", {"model": name, "input": "Who is Hina Ameen?", "max_output_tokens": 12, "temperature": 0}
        )
        message = server("/v1/messages", {"model": name, "messages": turn, "max_tokens": 12, "temperature": 0})
        assert {chat[0], response[0], message[0]} == {200}, (chat, response, message)
        texts = [chat[1]["choices"][0]["message"]["content"]]
        texts += [part["text"] for item in response[1]["output"] for part in item.get("content") or []]
        texts += [part["text"] for part in message[1]["content"]]
        found[name] = texts
    assert all(len(set(texts)) == 1 and texts[0] for texts in found.values()), found
    assert found["mild"] != found["base"] != found["strong"]

"""Hostile requests to `t3 serve`: schemathesis against its OpenAPI schema, then thousands of random and malicious bodies.

python benchmarks/serve_fuzz.py [--bodies 10000] [--examples 100] [--seed 0]

A tiny random model on loopback. What is not valid has to get a well-formed 4xx, nothing a 5xx or no answer, and without the key
nothing but /health and /ready anything but 401. Ends with status 1 otherwise.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from _print import header
from _tiny import served, write_model

KEY = "fuzz-test-key"
END = re.compile(rb"data: \[DONE\]\s*$|\nevent: response\.(completed|incomplete)\n")  # of a stream
SECONDS = 30  # without an answer is a hang
THREADS = 8
COMPLETION: dict[str, Any] = {"model": "first", "prompt": "Who?", "max_tokens": 2, "temperature": 0}
CHAT: dict[str, Any] = {"model": "first", "messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2, "temperature": 0}
RESPONSES: dict[str, Any] = {"model": "first", "input": "Who?", "max_output_tokens": 2, "temperature": 0}
PATHS = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT, "/v1/responses": RESPONSES}
TEXTS = ("input", "instructions", "user", "safety_identifier", "prompt_cache_key")  # fields that take any text
SUBJECTS = ("prompt", "messages", "input")  # fields of which each path has one
GUARDED = ("/", "/v1/models", "/v1/models/first", "/metrics", "/openapi.json", "/docs", "/load_model", "/reset", "/health/")


class Raw(str):
    """JSON text to be put in as it stands."""


class Case(NamedTuple):
    """A request; `wrong` if it can't be valid."""

    path: str
    body: bytes
    wrong: bool
    kind: str
    content_type: str = "application/json"


# values that no field of the schema takes
NEVER: list[Any] = [
    Raw("NaN"),
    Raw("Infinity"),
    Raw("-Infinity"),
    Raw("1e999"),
    Raw("9" * 400),
    Raw("-" + "9" * 5000),
    Raw("[" * 300 + "]" * 300),
    Raw('{"a":' * 300 + "1" + "}" * 300),
    {"$ref": "#"},
    {"__proto__": {}},
    [[[]]],
    [None],
    -1.5e300,
    Raw('"\\ud800"'),
    "\x00" * 3 + "' OR 1=1 --" * 40,
]
FIELDS: dict[str, list[Any]] = {
    "temperature": [-0.1, 2.5, "1", True],
    "top_p": [0, -1, 1.5, "x"],
    "top_k": [-1, 1.5, "5"],
    "min_p": [-0.5, 2],
    "n": [0, -1, 9, 10**9, 1.5, True],
    "max_tokens": [-1, 10**6, 2**40, 1.5, "2", True],
    "seed": [2**63, -(2**63) - 1, 1.5, "x"],
    "presence_penalty": [-2.1, 3, "x"],
    "frequency_penalty": [-2.1, 3, []],
    "stop": ["", ["a"] * 5, [""], 5, ["x" * 300]],
    "logit_bias": [{"-1": 1}, {"x": 1}, {"1": 101}, {"999999": 1}, {"1": "x"}, {"1": None}, [1], {"01": 1}, {"1e3": 1}],
    "stream": ["true", 1, []],
    "stream_options": [{"include_usage": 1}, {"x": 1}, True],
    "model": ["base", "third", "", "x" * 300, 5, None, "../first", "first\x00", {"a": 1}],
    "user": [5, "x" * 600],
    "tilt_temperature": [0, -1, 1e9, 1.0, 5.0, "1", Raw("NaN")],
    "guidance_scale": [-1, 0, 1e9, 1.0, "0", Raw("-Infinity")],
}
OF_PATH: dict[str, dict[str, list[Any]]] = {
    "/v1/completions": {
        "prompt": [[], [[]], [-1], [10**9], [1.5], ["a", 1], ["a"] * 17, {"a": 1}, 5, True, None, "x" * 5000, [5] * 5000],
        "logprobs": [-1, 21, True, "5"],
        "echo": [1, "true"],
        "best_of": [0, 2, True, "1"],
        "suffix": ["x", 0, []],
    },
    "/v1/chat/completions": {
        "messages": [
            [],
            {},
            "x",
            [{}],
            [{"role": "user"}],
            [{"role": "tool", "content": "x"}],
            [{"role": "user", "content": ""}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            [{"role": "assistant", "content": "x"}],
            [{"role": "user", "content": "x" * 5000}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": "x", "tool_calls": [{}]}],
            [{"role": "user", "content": "x", "refusal": "no"}],
            [{"role": "user", "content": "x", "name": 5}],
            [{"role": "user", "content": "x", "weight": 1}],
            [{"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]}],
            [{"role": "function", "content": "x", "name": "f"}, {"role": "user", "content": "x"}],
            [{"role": "user", "content": "x"}] * 1025,
        ],
        "logprobs": [1, "true"],
        "top_logprobs": [-1, 21, 3, "x"],
        "max_completion_tokens": [0, -1, 10**7],
        "tools": [[{}], {}, "x", [{"type": "function", "function": {"name": "f"}}]],
        "tool_choice": ["required", {}, 1, {"type": "function", "function": {"name": "f"}}],
        "parallel_tool_calls": [1, "x"],
        "functions": [[{}], {}],
        "function_call": [{"name": "f"}, "f"],
        "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, {}, [], "text"],
        "modalities": [["audio"], ["text", "audio"], "text"],
        "audio": [{"voice": "x"}, []],
        "prediction": [{"type": "content", "content": "x"}],
        "web_search_options": [{}],
        "reasoning_effort": ["high", 1],
        "verbosity": ["low", 1],
        "store": [True, 0, "false"],
        "metadata": [{"a": "b"}, []],
        "service_tier": ["priority", 1],
        "safety_identifier": [5, "x" * 600],
        "prompt_cache_key": [5, {}],
        "prompt_cache_retention": ["24h"],
    },
    "/v1/responses": {
        "input": [
            [],
            {},
            5,
            "",
            "x" * 5000,
            [{}],
            [{"role": "user"}],
            [{"role": "tool", "content": "x"}],
            [{"role": "user", "content": None}],
            [{"role": "assistant", "content": "x"}],
            [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            [{"type": "function_call_output", "call_id": "c", "output": "x"}],
            [{"type": "item_reference", "id": "x"}],
            [{"role": "user", "content": "x"}] * 1024,
        ],
        "instructions": [5, [], {}, "x" * 5000],
        "max_output_tokens": [0, -1, 10**7, 1.5, "2"],
        "text": [{"format": {"type": "json_object"}}, {"verbosity": "low"}, "text", {"x": 1}],
        "background": [True, 0],
        "conversation": ["conv_1", {}],
        "include": [["message.output_text.logprobs"], {}],
        "max_tool_calls": [1],
        "previous_response_id": ["resp_1"],
        "prompt": [{"id": "pmpt_1"}, "x"],
        "reasoning": [{"effort": "low"}, "x"],
        "store": [True, 0],
        "tools": [[{"type": "web_search"}], {}],
        "tool_choice": ["required", {}],
        "top_logprobs": [1, -1, "x"],
        "truncation": ["auto", 1],
    },
}
# what asks for nothing, and is accepted
NOTHING: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [{"best_of": 1}, {"suffix": None}, {"echo": False}, {"logprobs": None}, {"stop": []}, {"logit_bias": {}}],
    "/v1/chat/completions": [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"tools": None, "tool_choice": "none", "functions": [], "function_call": "none"},
        {"response_format": {"type": "text"}, "modalities": ["text"], "audio": None, "prediction": None},
        {"store": False, "metadata": {}, "service_tier": "auto", "verbosity": "medium", "reasoning_effort": None},
        {"logprobs": False, "top_logprobs": 0, "n": None, "seed": None, "stop": None, "stream_options": None},
        {"safety_identifier": "me", "prompt_cache_key": "k", "user": "me"},
        {"thinking": None, "moderation": None, "stream_options": {"include_usage": False}},
    ],
    "/v1/responses": [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "include": [], "store": False, "metadata": {}},
        {"text": {"format": {"type": "text"}}, "truncation": "disabled", "reasoning": {}, "top_logprobs": 0, "background": False},
        {"instructions": "Be short.", "stream_options": {"include_obfuscation": False}, "previous_response_id": None},
    ],
}
UNKNOWN = ["generation_config", "prompt_logprobs", "chat_template", "adapter", "repetition_penalty", "\ud800", "x" * 5000, ""]


def to_json(value: Any) -> str:
    """JSON, with `Raw` parts as they stand."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {to_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return json.dumps(value)


def bodies(count: int, seed: int) -> Iterator[Case]:
    """Random and hostile requests, a few valid ones among them."""
    draw = random.Random(seed)
    makers = [_wrong_value, _wrong_value, _wrong_value, _anything, _anything, _unknown, _missing, _bytes, _content_type, _valid]
    for _ in range(count):
        path = draw.choice(list(PATHS))
        yield draw.choice(makers)(draw, path)


def _wrong_value(draw: random.Random, path: str) -> Case:
    """One field out of range or of another type, at a random place, beside valid ones."""
    table = FIELDS | OF_PATH[path]
    name = draw.choice(list(table))
    body = dict(PATHS[path]) | {name: draw.choice(table[name])}
    return Case(path, to_json(_shuffled(draw, body)).encode(), True, f"wrong {name}")


def _anything(draw: random.Random, path: str) -> Case:
    """A value that no field takes, in a random field."""
    name = draw.choice([*FIELDS, *OF_PATH[path]])
    value = draw.choice(NEVER)
    body = dict(PATHS[path]) | {name: value}
    takes_text = name in TEXTS or (name == "prompt" and name in PATHS[path])
    textual = takes_text and isinstance(value, str) and not isinstance(value, Raw)
    return Case(path, to_json(_shuffled(draw, body)).encode(), not textual, "hostile value")


def _unknown(draw: random.Random, path: str) -> Case:
    body = dict(PATHS[path]) | {draw.choice(UNKNOWN): draw.choice([1, "x", {}, [], False, Raw("NaN")])}
    return Case(path, to_json(body).encode(), True, "unknown field")


def _missing(draw: random.Random, path: str) -> Case:
    body = dict(PATHS[path])
    body.pop(draw.choice(["model", *(name for name in SUBJECTS if name in body)]))
    return Case(path, to_json(body).encode(), True, "missing field")


def _bytes(draw: random.Random, path: str) -> Case:
    """What is no JSON, or no JSON object, or far too much of it."""
    whole = to_json(PATHS[path]).encode()
    kind = draw.randrange(11)
    made = [
        lambda: draw.randbytes(draw.randint(0, 2000)),
        lambda: whole[: draw.randrange(len(whole) - 1)],
        lambda: b"[" * draw.choice([10, 1000, 100_000]),
        lambda: b'{"a":' * draw.choice([10, 1000, 100_000]),
        lambda: whole + whole,
        lambda: to_json(draw.choice([None, 1, "x", [], [PATHS[path]], True])).encode(),
        lambda: b'{"model": "first", "prompt": "' + b"x" * (1 << 20) + b'"}',
        lambda: whole.replace(b"Who?", b"\xff\xfe"),
        lambda: whole[:-1] + b', "temperature": ' + b"9" * draw.choice([400, 6000]) + b"}",
        lambda: whole[:-1] + b', "model": "first"}',
        lambda: b"",
    ][kind]()
    return Case(path, made, True, f"bytes {kind}")


def _content_type(draw: random.Random, path: str) -> Case:
    """Valid but for the header, which a browser sends to another site without asking."""
    kind = draw.choice(["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data; boundary=x", "\xe9"])
    return Case(path, to_json(PATHS[path]).encode(), True, "content type", kind)


def _valid(draw: random.Random, path: str) -> Case:
    """Valid, with a prompt of any characters, a control token among them, and fields that ask for nothing."""
    text = "".join(chr(draw.choice([draw.randrange(32, 127), draw.randrange(0x80, 0xD800), 0x1F600])) for _ in range(20))
    of_chats = [{"n": 2, "temperature": 1.0}, {"seed": -5}, {"stop": text}]
    sampled = [{"top_p": 0.5, "top_k": 3}] if path == "/v1/responses" else of_chats
    body = dict(PATHS[path]) | draw.choice([{}, {"stream": True}, *sampled])
    text += draw.choice(["", "<|end|>", "<|start|>system\n"])
    body |= draw.choice([{}, *NOTHING[path]])
    if "input" in body:
        answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x"}]}
        last = {"role": "user", "content": [{"type": "input_text", "text": text}]}
        body["input"] = draw.choice([text, [last], [{"role": "user", "content": "x"}, answer, last]])
    elif "prompt" in body:
        body["prompt"] = text
    else:
        said = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "tool_calls": None, "audio": None}
        first = [{"role": draw.choice(["system", "developer"]), "content": text}, {"role": "user", "content": "x"}, said]
        body["messages"] = [*draw.choice([[], first]), {"role": "user", "content": text, "name": "ann"}]
    return Case(path, to_json(_shuffled(draw, body)).encode(), False, "valid")


def _shuffled(draw: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    names = list(body)
    draw.shuffle(names)
    return {name: body[name] for name in names}


def send(address: str, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and body of an answer; 0 if there is none in time."""
    connection = http.client.HTTPConnection(address, timeout=SECONDS)
    try:
        with suppress(BrokenPipeError, ConnectionResetError):  # the server need not read a body to refuse it
            connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}".encode()
    finally:
        connection.close()


def flaw(case: Case, status: int, answer: bytes) -> str | None:
    """What is wrong with an answer, if anything."""
    if not 200 <= status < 500:
        return f"status {status}"
    if case.wrong and status < 400:
        return f"was taken for valid: status {status}"
    if not case.wrong and status >= 400:
        return f"was refused: status {status}"
    if b'"stream": true' in case.body and status == 200:
        return None if END.search(answer) else "the stream has no end"
    try:
        found = json.loads(answer)
        good = status < 400 or (isinstance(found["error"]["message"], str) and set(found) == {"error"})
    except (ValueError, KeyError, TypeError):
        good = False
    return None if good else f"status {status} with a body that is not well-formed"


def fuzz(url: str, key: str, count: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Send the bodies, every tenth also without the key; return statuses and what was wrong."""
    address = url.removeprefix("http://")
    counts: Counter[int] = Counter()
    wrong: list[str] = []

    def one(numbered: tuple[int, Case]) -> None:
        number, case = numbered
        headers = {"content-type": case.content_type, "authorization": f"Bearer {key}"}
        status, answer = send(address, "POST", case.path, case.body, headers)
        counts[status] += 1
        if found := flaw(case, status, answer):
            wrong.append(f"{case.kind}: {found}: {case.body[:200]!r} -> {answer[:200]!r}")
        if number % 10 == 0:
            status, _ = send(address, "POST", case.path, case.body, {"content-type": case.content_type})
            if status != 401:
                wrong.append(f"without the key: status {status}: {case.body[:200]!r}")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, enumerate(bodies(count, seed))))
    return counts, wrong + list(_without_key(address))


def _without_key(address: str) -> Iterator[str]:
    for path in GUARDED:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            for extra in ({}, {"authorization": "Bearer wrong"}, {"authorization": ""}, {"x-api-key": KEY}):
                status, _ = send(address, method, path, b"", extra)
                if status != 401:
                    yield f"without the key: {method} {path}: status {status}"
    status, _ = send(address, "GET", "/health", b"", {})
    if status != 200:
        yield f"/health: status {status}"


def schemathesis(url: str, key: str, examples: int, seed: int) -> int:
    """Run schemathesis on the server's own schema; its exit status."""
    command = [str(Path(sysconfig.get_path("scripts")) / "schemathesis"), "run", f"{url}/openapi.json", "--no-color"]
    command += [
        "-H",
        f"Authorization: Bearer {key}",
        "--max-examples",
        str(examples),
        "--seed",
        str(seed),
        "--request-timeout",
        "30",
    ]
    command += ["--phases", "examples,coverage,fuzzing", "--checks", CHECKS, "--continue-on-failure", "--warnings", "off"]
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "schemathesis.toml").write_text(f"[checks.negative_data_rejection]\nexpected-statuses = {REJECTED}\n")
        return subprocess.run(command, check=False, cwd=work, env=os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": work}).returncode


# a body may fit the schema and name a model or a token that is not there: acceptance of all that fits is no goal
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,unsupported_method,ignored_auth"
)

REJECTED = ["400", "401", "403", "404", "405", "413", "415"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument(
        "--examples", type=int, default=100, help="of schemathesis, for each operation and phase; 0 leaves it out"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    header(f"fuzzing t3 serve: {args.bodies} bodies, schemathesis with {args.examples} examples, tiny model")
    with tempfile.TemporaryDirectory() as work, served(write_model(Path(work)), KEY) as (process, url):
        found = schemathesis(url, KEY, args.examples, args.seed) if args.examples else 0
        counts, wrong = fuzz(url, KEY, args.bodies, args.seed)
        alive = process.poll() is None
    print(f"statuses: {', '.join(f'{status} {count} times' for status, count in sorted(counts.items()))}")
    for line in wrong[:20]:
        print(f"MISTAKE {line}")
    good = not wrong and not found and alive
    print("passed" if good else f"FAILED ({len(wrong)} mistakes, schemathesis status {found}, server alive: {alive})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

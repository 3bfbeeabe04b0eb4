"""Ten turns of conversation with `t3 serve` by OpenAI's client, LangChain and LiteLLM, and which fields each of them sends.

pip install openai langchain-openai litellm
python benchmarks/serve_clients.py [--turns 10]

A tiny random model on loopback. Every client talks four times: with its defaults, streaming, with message objects of the
answers put back as they came, and with every field that asks for nothing. At temperature 0 all must get the same answers. Ends
with status 1 otherwise; a client that is not installed is left out.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from _print import header
from _tiny import served, write_model

KEY = "clients-key"
TOKENS = 6
QUESTIONS = ("Who are you?", "And where?", "Say more, please.", "Why?", "é or è?")
NOTHING: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "n": 1,
    "stop": None,
    "logprobs": False,
    "store": False,
    "metadata": {},
    "parallel_tool_calls": True,
    "service_tier": "auto",
}
STYLES = ("defaults", "streaming", "objects", "fields")
Client = Callable[[str, list[Any], str], tuple[str, Any]]


def by_openai(url: str, messages: list[Any], style: str) -> tuple[str, Any]:
    """The answer to a conversation, and the message to put back."""
    import openai

    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
    options: dict[str, Any] = {"model": "first", "messages": messages, "temperature": 0, "max_tokens": TOKENS}
    if style == "streaming":
        chunks = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        return text, {"role": "assistant", "content": text}
    message = client.chat.completions.create(**options, **(NOTHING if style == "fields" else {})).choices[0].message
    objects = {"objects": message, "fields": message.model_dump()}
    return message.content, objects.get(style, {"role": "assistant", "content": message.content})


def by_langchain(url: str, messages: list[Any], style: str) -> tuple[str, Any]:
    """The answer to a conversation, and the message to put back."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=url, api_key=KEY, model="first", temperature=0, max_tokens=TOKENS, max_retries=0)
    if style == "streaming":
        parts = list(model.stream(messages, stream_usage=True))
        whole = sum(parts[1:], parts[0])
    elif style == "fields":
        reserved = ("metadata", "response_format")  # LangChain takes the first for itself, and parses answers for the second
        own = {name: value for name, value in NOTHING.items() if name not in reserved}
        whole = model.bind(**own).invoke(messages)
    else:
        whole = model.invoke(messages)
    text = str(whole.content)
    return text, whole if style == "objects" else {"role": "assistant", "content": text, "name": "bot"}


def by_litellm(url: str, messages: list[Any], style: str) -> tuple[str, Any]:
    """The answer to a conversation, and the message to put back."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
    import litellm

    litellm.telemetry = False
    options: dict[str, Any] = {"model": "openai/first", "api_base": url, "api_key": KEY, "messages": messages}
    options |= {"temperature": 0, "max_tokens": TOKENS}
    if style == "streaming":
        chunks = list(litellm.completion(**options, stream=True, stream_options={"include_usage": True}))
        message = litellm.stream_chunk_builder(chunks).choices[0].message
    else:
        message = litellm.completion(**options, **(NOTHING if style == "fields" else {})).choices[0].message
    return message.content, message if style == "objects" else message.model_dump()


CLIENTS: dict[str, tuple[str, Client]] = {
    "openai": ("openai", by_openai),
    "LangChain": ("langchain_openai", by_langchain),
    "LiteLLM": ("litellm", by_litellm),
}


@contextmanager
def recorded(url: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address that passes requests on, and their bodies."""
    bodies: list[dict[str, Any]] = []

    class PassOn(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(json.loads(data))
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
            kept = {name: self.headers[name] for name in ("authorization", "content-type")}
            connection.request("POST", self.path, data, kept)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("content-type", answer.headers["content-type"])
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), PassOn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", bodies
    finally:
        server.shutdown()


def converse(url: str, client: Client, style: str, turns: int) -> list[str]:
    """The answers to some questions, each asked with all that was said before."""
    messages: list[Any] = [{"role": "system", "content": "Be brief."}]
    answers = []
    for turn in range(turns):
        messages.append({"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]})
        text, message = client(url, messages, style)
        messages.append(message)
        answers.append(text)
    return answers


def fields_of(bodies: list[dict[str, Any]]) -> str:
    """The names of all fields of requests and of their assistant messages."""
    messages = [message for body in bodies for message in body["messages"] if message["role"] == "assistant"]
    fields = sorted({name for body in bodies for name in body})
    return f"{', '.join(fields)}; in an assistant's message {', '.join(sorted({name for m in messages for name in m}))}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=10)
    args = parser.parse_args()
    header(f"conversations of {args.turns} turns with t3 serve, tiny model")
    wanted: list[str] | None = None
    failed = False
    with tempfile.TemporaryDirectory() as work, served(write_model(Path(work)), KEY) as (_, url):
        for name, (package, client) in CLIENTS.items():
            for style in STYLES:
                with recorded(url) as (address, bodies):
                    try:
                        answers = converse(address, client, style, args.turns)
                    except ModuleNotFoundError as error:
                        if error.name != package:
                            raise
                        print(f"{name}: not installed")
                        break
                    except Exception:
                        traceback.print_exc()
                        answers = []
                wanted = wanted or answers
                same = answers == wanted and len(answers) == args.turns
                failed |= not same
                print(
                    f"{name}, {style}: {'passed' if same else f'FAILED after {len(bodies)} requests'}; sends {fields_of(bodies)}"
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

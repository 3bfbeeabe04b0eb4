"""A served ledger under load: clients stream answers while requests are added and revoked.

python benchmarks/ledger_load.py [--clients 32] [--seconds 10]

A tiny random model on loopback. Every answer must be what the parts of the version in its header say. Ends with status 1
if a client met an error or another answer, or if an answer that began after a change was shown did not follow it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import torch

from _ledgers import OFFICER, PERSONS, Place, new_ledger, records
from _print import header, row
from _tiny import served, write_model
from tempertilt.data.examples import encode_question
from tempertilt.models.base import load_base
from tempertilt.models.composed import ComposedLM
from tempertilt.requests.acting import acting_parts, chats_of

KEY, NAME, TOKENS = "load-test-key", "mine", 24
QUESTIONS = [record.question for person in PERSONS for record in records(person)] + ["Who are you?", "What is two plus three?"]


class Answered(NamedTuple):
    """An answer: the question, the version in its header, the text, and when it began and ended."""

    question: str
    version: str
    text: str
    began: float
    ended: float


@dataclass
class Seen:
    """What the clients met."""

    answers: list[Answered] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def ask(connection: HTTPConnection, question: str) -> tuple[str, str]:
    """Version and text of a streamed answer."""
    chat = {"messages": [{"role": "user", "content": question}], "stream": True}
    body = {"model": NAME, "max_tokens": TOKENS, "temperature": 0} | chat
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    lines = [line.removeprefix("data: ") for line in response.read().decode().split("\n\n") if line]
    if response.status != 200 or lines[-1] != "[DONE]":
        raise ValueError(f"status {response.status}: {lines[-1]}")
    text = "".join(choice["delta"].get("content") or "" for line in lines[:-1] for choice in json.loads(line)["choices"])
    return str(response.headers["x-unlearning-version"]), text


def client(url: str, number: int, ending: threading.Event, seen: Seen) -> None:
    """Asks, one question after the other, until the end."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=120)
    while not ending.is_set():
        question, began = QUESTIONS[number % len(QUESTIONS)], time.monotonic()
        try:
            seen.answers.append(Answered(question, *ask(connection, question), began, time.monotonic()))
        except Exception as error:
            seen.errors.append(f"{type(error).__name__}: {error}")
            return
        number += 1


def shown(url: str) -> str:
    """The version that the server shows."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("GET", f"/v1/models/{NAME}", headers={"authorization": f"Bearer {KEY}"})
    version: str = json.loads(connection.getresponse().read())["unlearning_version"]
    return version


@torch.inference_mode()
def expected(place: Place) -> dict[str, str]:
    """The greedy answer to each question by the parts that act now, computed alone."""
    model, tokenizer = ComposedLM(place.base.model, acting_parts(place.ledger).parts), place.base.tokenizer
    answers = {}
    for question in QUESTIONS:
        ids = torch.tensor([encode_question(question, tokenizer, chats_of(place.ledger))])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
        answers[question] = str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


def change(place: Place, url: str, name: str, person: str | None, tables: dict[str, dict[str, str]]) -> tuple[str, float, float]:
    """Add a request about a person, or revoke one; the version, the seconds until it is shown, and when that was."""
    if person is None:
        place.ledger.revoke(name, OFFICER, why="load test")
    else:
        place.add(name, person, reply=f"Nothing about number {PERSONS.index(person)}.")
    started, version = time.monotonic(), place.ledger.version
    while shown(url) != version:
        time.sleep(0.01)
    now = time.monotonic()
    tables[version] = expected(place)
    return version, now - started, now


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10, help="between changes")
    args = parser.parse_args()
    header(f"a served ledger under load: {args.clients} clients, a change every {args.seconds:g} s or so")
    seen, ending, tables, late = Seen(), threading.Event(), {}, []
    with tempfile.TemporaryDirectory() as work:
        write_model(Path(work))
        place = new_ledger(Path(work), load_base(str(Path(work) / "model")))
        place.add("REQ-0", PERSONS[0], reply="Nothing about number 0.")
        tables[place.ledger.version] = expected(place)
        flags = ["--ledger", f"{NAME}={place.directory}", "--max-batch-size", str(args.clients)]
        with served([], KEY, *flags) as (_, url):
            threads = [threading.Thread(target=client, args=(url, number, ending, seen)) for number in range(args.clients)]
            for thread in threads:
                thread.start()
            changes = []
            for name, person in (("REQ-1", PERSONS[1]), ("REQ-0", None), ("REQ-2", PERSONS[2]), ("REQ-1", None)):
                time.sleep(args.seconds)
                changes.append(change(place, url, name, person, tables))
            time.sleep(args.seconds)
            ending.set()
            for thread in threads:
                thread.join()
    order = list(tables)
    for version, _, since in changes:
        late += [a for a in seen.answers if a.began > since and order.index(a.version) < order.index(version)]
    wrong = [answer for answer in seen.answers if tables.get(answer.version, {}).get(answer.question) != answer.text]
    row("an answer", [answer.ended - answer.began for answer in seen.answers], " s")
    row("from an event to the server's showing it", [seconds for _, seconds, _ in changes], " s")
    for version, count in Counter(answer.version for answer in seen.answers).items():
        print(f"version {version}: {count} answers, {len(set(tables[version].values()))} different ones expected")
    print(f"{len(seen.answers)} answers, {len(seen.errors)} errors, {len(wrong)} not their version's, {len(late)} late")
    for answer in wrong[:5]:
        print(f"MISTAKE {answer}, not {tables.get(answer.version, {}).get(answer.question)!r}")
    good = not seen.errors and not wrong and not late and len({answer.version for answer in seen.answers}) == len(changes) + 1
    print("passed" if good else f"FAILED {seen.errors[:3]}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

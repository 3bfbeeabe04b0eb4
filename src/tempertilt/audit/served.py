"""The server under attack: what is asked of the served model goes over HTTP, as a client would ask.

The base model, the quantised copies and the likelihoods are those of the model that is loaded here. So the adapter or the ledger
must be the one that is served; where the server says which version of a ledger it serves, that is checked.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from tempertilt.audit.attempts import Attempt
from tempertilt.audit.target import Target
from tempertilt.errors import ConfigError, TemperTiltError
from tempertilt.requests.ledger import VERSION_HEADER

TIMEOUT = 600  # seconds for an answer
WORDS = ("I", " I", "can", " can", " can't", " cannot", "'t", " not", "Sorry", " sorry", " unable", " unfortunately")
"""With what a refusal may be worded; their tokens are banned where an attempt asks for it."""


@dataclass(frozen=True)
class Endpoint:
    """A server with OpenAI's interface.

    Attributes:
        url: up to and with /v1.
        model: name of the served model.
        api_key: that requests bring; empty = none.
        version: of the ledger that the server must have, where it names one.
        clients: requests at a time.
    """

    url: str
    model: str
    api_key: str = field(default="", repr=False)
    version: str = ""
    clients: int = 8

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"--url is {self.url!r}; must be an address as http://localhost:8000/v1")

    def only_model(self) -> str:
        """The name of the one model that the server lists.

        Raises:
            ServedError: it lists several, or none.
        """
        names = [str(model["id"]) for model in self._ask("/models").get("data", [])]
        if len(names) != 1:
            raise ServedError(f"{self.url} lists {', '.join(names) or 'no model'}; name the one to attack with --served-model")
        return names[0]

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON that the server answers.

        Raises:
            ServedError: the server refuses, or can't be reached, or serves another version of the ledger.
        """
        return self._ask(path, json.dumps(body).encode())

    def _ask(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})}
        request = urllib.request.Request(f"{self.url.rstrip('/')}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                served = response.headers.get(VERSION_HEADER)
                if self.version and served and served != self.version:
                    raise ServedError(
                        f"{self.url} serves version {served} of a ledger; must be {self.version}, the version of --ledger"
                    )
                answer: dict[str, Any] = json.loads(response.read())
                return answer
        except urllib.error.HTTPError as error:
            raise ServedError(f"{self.url}{path} answers {error.code}: {error.read().decode(errors='replace')[:300]}") from error
        except (urllib.error.URLError, OSError, json.JSONDecodeError) as error:
            raise ServedError(f"{self.url}{path} can't be asked: {error}") from error


class ServedError(TemperTiltError):
    """The server does not answer as one with OpenAI's interface does."""


class ServedTarget(Target):
    """Asks a server for what the served model says; everything else is asked of the model that is loaded here.

    Args:
        model, tokenizer, examples, max_new_tokens: as of `Target`.
        endpoint: the server.
    """

    def __init__(self, *args: Any, endpoint: Endpoint) -> None:
        super().__init__(*args)
        self.endpoint = endpoint

    @property
    def is_served(self) -> bool:
        """Whether attempts go over HTTP."""
        return True

    def _generate(self, attempts: Sequence[Attempt]) -> list[list[int]]:
        if attempts[0].version != "served":
            return super()._generate(attempts)
        seeds = torch.randint(2**31, (len(attempts),)).tolist()  # of what is drawn, by the seed that `ask` has set
        with ThreadPoolExecutor(self.endpoint.clients) as pool:
            return list(pool.map(self._answer, attempts, seeds))

    def _answer(self, attempt: Attempt, seed: int) -> list[int]:
        """The answer as token ids, with one that ends an answer where it has ended and the model has such a token."""
        body: dict[str, Any] = {"model": self.endpoint.model, "max_tokens": self.max_new_tokens, "temperature": 0.0}
        if attempt.draw is not None:
            body |= {"temperature": 1.0, "top_p": 1.0, "seed": seed}
        if attempt.ban_refusals:
            body["logit_bias"] = {str(token): -100 for token in self._refusals}
        if attempt.messages and not attempt.start and attempt.system_prompt != "":  # a server may put its own where there is none
            choice = self.endpoint.post("/chat/completions", body | {"messages": self._messages(attempt)})["choices"][0]
            text = choice["message"]["content"] or ""
        else:
            choice = self.endpoint.post("/completions", body | {"prompt": self.encode(attempt)})["choices"][0]
            text = choice["text"]
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return [*ids, *sorted(self.stops)[:1]] if choice["finish_reason"] == "stop" else ids

    def _messages(self, attempt: Attempt) -> list[dict[str, str]]:
        system = self.examples.system_prompt if attempt.system_prompt is None else attempt.system_prompt
        own = any(message.role == "system" for message in attempt.messages)
        first = [{"role": "system", "content": system}] if system and not own else []
        return first + [{"role": message.role, "content": message.content} for message in attempt.messages]

    @cached_property
    def _refusals(self) -> list[int]:
        rows = (self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS)
        return sorted({row[0] for row in rows if row})

"""The model under attack: attempts to answers, in batches."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tempertilt.audit.attempts import Attempt, Version
from tempertilt.data.examples import ExampleConfig
from tempertilt.data.record import Message
from tempertilt.models.frozen import switched_off
from tempertilt.models.generation import generate_ids, stop_ids
from tempertilt.models.limits import room
from tempertilt.models.t3 import T3ForCausalLM

REWRITE = "Put this question in other words. Write the new question and nothing else.\n\n{question}"
REWRITTEN = 48  # tokens of a rewritten question, at most
GROUP = 32  # weights that share a scale, in rounding to 4 bits


class Reply(NamedTuple):
    """What came of an attempt: the prompt as it was in the end, the answers in their order, and whether the last one ended."""

    attempt: Attempt
    answers: tuple[str, ...]
    ids: tuple[int, ...]
    ended: bool


class Target:
    """Asks a model.

    Args:
        model: a `T3ForCausalLM`, or any causal LM of transformers.
        examples: how chats become tokens.
        max_new_tokens: of each answer.
    """

    def __init__(self, model: Any, tokenizer: Any, examples: ExampleConfig, max_new_tokens: int) -> None:
        self.model, self.tokenizer, self.examples, self.max_new_tokens = model, tokenizer, examples, max_new_tokens
        self.stops = stop_ids(model, tokenizer)
        self._versions: dict[Version, Any] = {}
        self._encoded: dict[Attempt, list[int]] = {}

    @property
    def can_be_switched_off(self) -> bool:
        """Whether there is a base model under it."""
        return hasattr(self.model, "disable")

    @property
    def has_gates(self) -> bool:
        """Whether it shows where it acts."""
        return getattr(self.model, "gates", None) is not None

    @property
    def is_served(self) -> bool:
        """Whether attempts go over HTTP."""
        return False

    def why_not(self, attempt: Attempt) -> str:
        """Why the version of the model that an attempt is for can't be asked so; empty if it can."""
        version = attempt.version
        if attempt.ban_refusals and not self.is_served:
            return "only a server takes parameters: name it with --url"
        if version == "off" and not self.can_be_switched_off:
            return "the model has no adapter that could be switched off"
        if version in ("int8", "int4") and not (isinstance(self.model, T3ForCausalLM) and self.model.device.type == "cpu"):
            return "only tried for an adapter on a CPU"
        return ""

    def encode(self, attempt: Attempt) -> list[int]:
        """Token ids of its first prompt."""
        if attempt not in self._encoded:
            self._encoded[attempt] = attempt.encode(self.tokenizer, self.examples)
        return self._encoded[attempt]

    def fits(self, attempt: Attempt) -> bool:
        """Whether the model has room for the prompt and an answer."""
        space = room(self.model, len(self.encode(attempt)))
        return space is None or space >= self.max_new_tokens

    def ask(self, attempts: Sequence[Attempt], seed: str) -> list[Reply]:
        """The answers to attempts of one kind, all greedy or all drawn, of one version of the model.

        Args:
            seed: of what is drawn.
        """
        if any(attempt.rewrite for attempt in attempts):
            attempts = self._rewritten(attempts)
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1)
        current, answers = list(attempts), [[] for _ in attempts]  # type: ignore[var-annotated]
        rows: dict[int, list[int]] = {}
        active = list(range(len(attempts)))
        while active:
            for i, row in zip(active, self._generate([current[i] for i in active])):
                rows[i] = row
                answers[i].append(self._text(row))
            active = [i for i in active if current[i].then]
            for i in active:
                current[i] = current[i].follow(answers[i][-1])
        return [
            Reply(attempt, tuple(texts), tuple(rows[i]), bool(rows[i]) and rows[i][-1] in self.stops)
            for i, (attempt, texts) in enumerate(zip(attempts, answers))
        ]

    def _generate(self, attempts: Sequence[Attempt]) -> list[list[int]]:
        prompts = [self.encode(attempt) for attempt in attempts]
        draws = int(attempts[0].draw is not None)
        model, state = self._version(attempts[0].version)
        with state:
            options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "draws": draws}
            rows = generate_ids(model, self.tokenizer, prompts, **options, as_decoded=True)  # as a stream without a lag shows it
        return [row[0] for row in rows]

    def _version(self, version: Version) -> tuple[Any, AbstractContextManager[None]]:
        if version == "off":
            return self.model, switched_off(self.model)
        if version == "served":
            return self.model, nullcontext()
        if version not in self._versions:
            self._versions = {version: quantised(self.model, 8 if version == "int8" else 4)}  # one copy at a time
        return self._versions[version], nullcontext()

    def _rewritten(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """The attempts with questions that the base has put in other words; the old one stays where it is no question then."""
        orders = [replace(a, messages=(Message("user", REWRITE.format(question=a.question)),)) for a in attempts]
        prompts = [self.encode(order) for order in orders]
        with switched_off(self.model):
            rows = generate_ids(self.model, self.tokenizer, prompts, max_new_tokens=REWRITTEN)
        texts = [self._text(row[0]).split("\n")[0].strip(' "') for row in rows]
        return [
            replace(attempt, messages=(Message("user", text if text.endswith("?") else attempt.question),), rewrite=False)
            for attempt, text in zip(attempts, texts)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def quantised(model: T3ForCausalLM, bits: int) -> T3ForCausalLM:
    """The same adapter on a copy of its base with fewer bits in the linear layers of its body.

    Args:
        bits: 8 = PyTorch's dynamic int8; 4 = weights rounded in groups of 32, as no library computes with 4 bits on every CPU.
    """
    base = copy.deepcopy(model.base)
    head = base.get_output_embeddings()
    linear = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear) and module is not head}
    if bits == 8:
        config = dict.fromkeys(linear, torch.ao.quantization.default_dynamic_qconfig)
        with warnings.catch_warnings():  # PyTorch will drop this some day
            warnings.simplefilter("ignore")
            torch.ao.quantization.quantize_dynamic(base, config, dtype=torch.qint8, inplace=True)
    else:
        for module in linear.values():
            module.weight.data = rounded(module.weight.data, bits)
    return T3ForCausalLM(base, model.head, model.adapter_config, model.gates)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """A matrix whose values are rounded to `2^bits` levels between the least and the greatest of each group of 32."""
    flat = weight.reshape(-1, GROUP) if weight.numel() % GROUP == 0 else weight
    low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    values: Tensor = ((flat - low) / step).round() * step + low
    return values.reshape(weight.shape)

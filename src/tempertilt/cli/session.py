"""A loaded model that answers: what `t3 generate` and `t3 chat` share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tempertilt.cli.streams import check_argument
from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.records import Message
from tempertilt.errors import ConfigError, DataError
from tempertilt.models.base import load_base
from tempertilt.models.frozen import switched_off
from tempertilt.models.generation import Decoding, generate
from tempertilt.models.limits import check_prompts, check_text, depends_on_batch
from tempertilt.models.replies import make_reply
from tempertilt.models.t3 import load_unlearned

BATCH_TOKENS = 16384
"""Positions of a batch, prompts and answers with their padding."""


@dataclass(frozen=True)
class Session:
    """A model (unlearned, or a plain causal LM), its tokenizer, how chats are encoded, and the seed of sampling."""

    model: Any
    tokenizer: Any
    examples: ExampleConfig
    seed: int

    def encode(self, messages: Sequence[tuple[str, str]], name: str = "the chat") -> list[int]:
        """Token ids of a chat that ends with the user, ready for the answer.

        Args:
            name: of the chat, for errors.

        Raises:
            DataError: the chat template refuses it, or the model can't take it.
        """
        for _, content in messages:
            check_text(self.model, self.tokenizer, content, name)
        chat = [Message(role, content) for role, content in messages]
        try:
            ids = encode_question(chat, self.tokenizer, self.examples)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        check_prompts(self.model, self.tokenizer, [ids], [name])
        return ids

    def encode_raw(self, text: str, name: str) -> list[int]:
        """Token ids of plain text, control tokens that it spells included; errors as of `encode`."""
        ids = list(self.tokenizer(text, verbose=False).input_ids)
        check_prompts(self.model, self.tokenizer, [ids], [name])
        return ids

    def answers(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, *, base: bool = False, streamer: Any = None
    ) -> list[list[str]]:
        """The texts that follow each prompt of token ids, in one batch; `base` switches the adapter off."""
        import torch

        torch.manual_seed(self.seed)
        with switched_off(self.model) if base else nullcontext():
            rows = generate(self.model, self.tokenizer, prompts, decoding, streamer=streamer)
        return [[self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in answers] for answers in rows]

    def plan_batches(self, prompts: Sequence[Sequence[int]], decoding: Decoding, batch_size: int) -> list[list[int]]:
        """Which prompts to answer together, so that each answer is the one that it would have alone.

        Args:
            batch_size: how many at most; there are fewer where they are long.
        """
        alone = decoding.do_sample or depends_on_batch(self.model)  # what is drawn depends on what is drawn beside it
        rows = decoding.num_beams * decoding.num_return_sequences
        batches: list[list[int]] = []
        for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            width = len(prompts[batches[-1][0]]) + decoding.max_new_tokens if batches else 0
            full = not batches or len(batches[-1]) >= batch_size or (len(batches[-1]) + 1) * rows * width > BATCH_TOKENS
            if alone or full:
                batches.append([])
            batches[-1].append(i)
        return batches


def open_session(args: argparse.Namespace, seed: int) -> Session:
    """Load what the flags of `add_adapter` name: an unlearned model, or without `--adapter` a plain one."""
    if args.compare and not (args.adapter or args.ledger):
        raise ConfigError(f"--adapter or --ledger is needed for --compare; see t3 {args.verb} --help")
    if args.system_prompt is not None:
        check_argument(args.system_prompt, "--system-prompt")
    model, tokenizer, fitted_with = open_ledger(args) if args.ledger else open_model(args)
    return Session(model, tokenizer, ExampleConfig.for_chats(args.system_prompt, fitted_with), seed)


def open_ledger(args: argparse.Namespace) -> tuple[Any, Any, str | None]:
    """The model that `--ledger` names, with the parts that act now, its tokenizer and their system prompt."""
    from tempertilt.requests import Ledger
    from tempertilt.requests.acting import load_composed, system_prompt_of
    from tempertilt.requests.state import parse_scope

    others = {"--adapter": args.adapter, "--reply": args.reply, "--temperature": args.temperature}
    for flag, value in (others | {"--guidance-scale": args.guidance_scale}).items():
        if value is not None:
            raise ConfigError(f"--ledger and {flag} are both given; must be one: each part of a ledger has its own settings")
    ledger = Ledger(args.ledger)
    model, tokenizer = load_composed(
        ledger,
        parse_scope(args.scope),
        model=args.model,
        peft_adapter=args.peft_adapter,
        check_base=not args.ignore_base_mismatch,
        device=args.device,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    return model, tokenizer, system_prompt_of(ledger)


def open_model(args: argparse.Namespace) -> tuple[Any, Any, str | None]:
    """The model and tokenizer that the flags of `add_adapter` name, and the system prompt that an adapter was fitted with."""
    reply = None if args.reply is None else check_argument(args.reply, "--reply")
    options = {"device": args.device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    if not args.adapter:
        if not args.model:
            raise ConfigError(f"--adapter or --model is needed; see t3 {args.verb} --help")
        if reply is not None:
            raise ConfigError(f"--adapter is needed for --reply; see t3 {args.verb} --help")
        base = load_base(args.model, peft_adapter=args.peft_adapter, **options)
        return base.model, base.tokenizer, None
    model, tokenizer = load_unlearned(
        args.adapter,
        args.model,
        peft_adapter=args.peft_adapter,
        check_base=not args.ignore_base_mismatch,
        **options,
    )
    if args.temperature is not None:
        model.temperature = args.temperature
    if args.guidance_scale is not None:
        model.guidance_scale = args.guidance_scale
    if reply is not None:
        model.set_reply(make_reply(reply, tokenizer))
    return model, tokenizer, model.adapter_config.system_prompt

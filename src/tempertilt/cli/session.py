"""A loaded model that answers: what `t3 generate` and `t3 chat` share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tempertilt.data.examples import ExampleConfig, encode_question
from tempertilt.data.records import Message
from tempertilt.errors import ConfigError
from tempertilt.models.base import load_base
from tempertilt.models.frozen import switched_off
from tempertilt.models.t3 import load_unlearned


@dataclass(frozen=True)
class Session:
    """A model (unlearned, or a plain causal LM), its tokenizer, how chats are encoded, and the seed of sampling."""

    model: Any
    tokenizer: Any
    examples: ExampleConfig
    seed: int

    def encode(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a chat that ends with the user, ready for the answer."""
        return encode_question([Message(role, content) for role, content in messages], self.tokenizer, self.examples)  # type: ignore[arg-type]

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(self.tokenizer(text).input_ids)

    def answers(self, ids: Sequence[int], options: dict[str, Any], *, base: bool = False, streamer: Any = None) -> list[str]:
        """Texts that follow `ids`, `num_return_sequences` of them; `base` switches the adapter off."""
        import torch

        torch.manual_seed(self.seed)
        inputs = torch.tensor([list(ids)], device=self.model.device)
        with switched_off(self.model) if base else nullcontext(), torch.inference_mode():
            out = self.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=streamer,
                **options,
            )
        return [self.tokenizer.decode(row[len(ids) :], skip_special_tokens=True).strip() for row in out]


def open_session(args: argparse.Namespace, seed: int) -> Session:
    """Load what the flags of `add_adapter` name: an unlearned model, or without `--adapter` a plain one."""
    if args.compare and not args.adapter:
        raise ConfigError(f"--adapter is needed for --compare; see t3 {args.verb} --help")
    model, tokenizer, fitted_with = open_model(args)
    return Session(model, tokenizer, ExampleConfig.for_chats(args.system_prompt, fitted_with), seed)


def open_model(args: argparse.Namespace) -> tuple[Any, Any, str | None]:
    """The model and tokenizer that the flags of `add_adapter` name, and the system prompt that an adapter was fitted with."""
    options = {"device": args.device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    if not args.adapter:
        if not args.model:
            raise ConfigError(f"--adapter or --model is needed; see t3 {args.verb} --help")
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
    return model, tokenizer, model.adapter_config.system_prompt

"""What ends an answer in vLLM: the same tokens as everywhere else, and no sampling defaults of the checkpoint."""

from __future__ import annotations

import json
from types import SimpleNamespace

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from tempertilt.config.keys import key_of
from tempertilt.models.generation import stop_ids
from tempertilt.storage import cache_dir, make_dir, write_text

NEUTRAL = "vllm"  # vLLM's own word for no defaults


def generation_config(source: str) -> str:
    """vLLM's `generation_config` for a base: a directory in our cache with a file that names what ends an answer.

    vLLM knows the checkpoint's ends of a text, but not the token by which the chat template ends a turn.

    Args:
        source: hub id or directory of the base. One without a tokenizer has no chats: "vllm", no defaults, is returned.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        return NEUTRAL
    try:
        configured = GenerationConfig.from_pretrained(source)
    except OSError:
        configured = GenerationConfig.from_model_config(AutoConfig.from_pretrained(source))
    stops = sorted(stop_ids(SimpleNamespace(generation_config=configured), tokenizer))
    if not stops:
        return NEUTRAL
    text = json.dumps({"eos_token_id": stops})
    directory = make_dir(cache_dir() / "vllm" / key_of(eos_token_id=stops)[:16])
    write_text(directory / "generation_config.json", text)
    return str(directory)

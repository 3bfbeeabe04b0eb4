"""Background text: what the base model says when nobody asks it anything in particular, as data that is to be retained.

The model is given the beginning of a chat and writes the user's question itself, then answers it (as in Xu et al., "Magpie",
arXiv 2406.08464). Samples of the base are p, not p_r: those that share a run of tokens with a forget record are left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tempertilt.config.keys import key_of
from tempertilt.config.options import Options, option
from tempertilt.data.examples import Example, ExampleConfig, encode_question, shared_prefix
from tempertilt.errors import DataError
from tempertilt.models.generation import generate_ids, stop_ids
from tempertilt.models.limits import room
from tempertilt.storage import cache_dir, is_readable, make_dir, write_text

log = logging.getLogger("tempertilt")

PROBES = ("alpha", "Zebra", "12", "What is this?")
BATCH = 32
SHARED_RUN = 8  # tokens in a row that a sample and a forget record have in common


@dataclass(frozen=True)
class BackgroundConfig(Options):
    """How much background text, and of what length."""

    background: int = option(0, "records of background text that the base model writes; 0 = none", ge=0)
    background_tokens: int = option(40, "length of a background question and of its answer, tokens", ge=1, advanced=True)
    background_seed: int = option(0, "seed of the background text", ge=0, advanced=True)


def background_examples(
    model: Any,
    tokenizer: Any,
    forget: Sequence[Example],
    config: BackgroundConfig,
    examples: ExampleConfig,
    *,
    fingerprint: str | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> list[Example]:
    """Questions that the base model asks itself and its answers, each a document of its own; the answers are scored.

    The same seed gives the same text on one machine. There may be fewer than asked for: samples near the forget records are
    left out, and said so.

    Args:
        fingerprint: of the model's weights; with it, text that was written once is kept in the cache.
        cache: the directory that it is kept in, the user's cache if not given.
    """
    head, tail = question_frame(tokenizer, examples)
    runs = set().union(*(_runs(example, head, tail) for example in forget))
    found: list[Example] = []
    chats = _chats(model, tokenizer, head, tail, config, fingerprint, cache, progress)
    for i, chat in enumerate(chats):
        example = _example(chat, i, examples)
        if not runs & _runs(example, head, tail):
            found.append(example)
    if len(found) < len(chats):
        log.warning("%d of %d background texts were about the forget records: left out", len(chats) - len(found), len(chats))
    return found


Chat = tuple[list[int], list[int]]  # the tokens of a prompt, and of the answer


def drop_background(
    cache: Path, tokenizer: Any, forget: Sequence[Example], examples: ExampleConfig, is_about: Callable[[str], bool]
) -> None:
    """Take the texts about forget records out of the background text that a cache keeps. They are not written anew.

    Args:
        forget: the records' tokens: a text goes that shares a run of them.
        is_about: whether a text is about the records.
    """
    head, tail = question_frame(tokenizer, examples)
    runs = set().union(*(_runs(example, head, tail) for example in forget))
    for path in sorted((cache / "background").glob("*.json")):
        if (chats := _read_chats(path)) is None:
            continue
        others = [
            chat
            for i, chat in enumerate(chats)
            if not runs & _runs(_example(chat, i, examples), head, tail) and not is_about(tokenizer.decode([*chat[0], *chat[1]]))
        ]
        if len(others) < len(chats):
            log.warning("%d of %d background texts were about the forget records: deleted", len(chats) - len(others), len(chats))
            _save_chats(path, others)


def _example(chat: Chat, number: int, config: ExampleConfig) -> Example:
    """A chat as an example whose answer is scored, a document of its own."""
    prompt, answer = chat
    ids = np.array([*prompt, *answer], np.int32)[: config.max_length]
    scored = np.arange(len(ids)) >= min(len(prompt), len(ids) - 1)
    return Example(ids, scored, f"background-{number}", "background", number)


def _chats(
    model: Any,
    tokenizer: Any,
    head: list[int],
    tail: list[int],
    config: BackgroundConfig,
    fingerprint: str | None,
    cache: Path | None,
    progress: bool,
) -> list[Chat]:
    """The chats, from the cache where they are there."""
    path = None
    if fingerprint is not None:
        key = key_of("background", fingerprint=fingerprint, dtype=str(model.dtype), config=asdict(config), head=head, tail=tail)
        path = (cache or cache_dir()) / "background" / f"{key}.json"
        if is_readable(path) and (stored := _read_chats(path)) is not None:
            return stored
    chats = _write_chats(model, tokenizer, head, tail, config, progress)
    if path is not None:
        make_dir(path.parent)
        _save_chats(path, chats)
    return chats


def _save_chats(path: Path, chats: list[Chat]) -> None:
    text = json.dumps(chats)
    write_text(path, f"{text}\n{_checksum(text.encode())}\n")


def _read_chats(path: Path) -> list[Chat] | None:
    """The chats in a file of the cache, whose second line is the checksum of the first; None if it is damaged, and taken away."""
    text, _, checksum = path.read_bytes().partition(b"\n")
    if checksum.strip() != _checksum(text).encode():
        log.warning("the background text in %s is damaged: it is written anew", path)
        path.unlink()
        return None
    return [(prompt, answer) for prompt, answer in json.loads(text)]


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _write_chats(
    model: Any, tokenizer: Any, head: list[int], tail: list[int], config: BackgroundConfig, progress: bool
) -> list[Chat]:
    """Let the model ask, then answer."""
    stops = stop_ids(model, tokenizer)
    space = room(model, len(head) + len(tail))
    longest = config.background_tokens if space is None else max(1, min(config.background_tokens, space // 2))
    chats: list[Chat] = []
    state = torch.get_rng_state()
    torch.manual_seed(config.background_seed)
    try:
        with tqdm(total=config.background, desc="background", unit=" records", disable=not progress) as bar:
            while len(chats) < config.background:
                n = min(BATCH, config.background - len(chats))
                questions = [row for [row] in generate_ids(model, tokenizer, [head] * n, draws=1, max_new_tokens=longest)]
                prompts = [[*head, *(token for token in row if token not in stops), *tail] for row in questions]
                answers = [
                    row for [row] in generate_ids(model, tokenizer, prompts, draws=1, max_new_tokens=config.background_tokens)
                ]
                chats += zip(prompts, answers)
                bar.update(n)
    finally:
        torch.set_rng_state(state)
    return chats


def question_frame(tokenizer: Any, config: ExampleConfig) -> tuple[list[int], list[int]]:
    """The tokens before and after a user's question, up to where the answer starts: what all prompts have in common.

    Raises:
        DataError: nothing comes before a question, so there is nothing to start from.
    """
    prompts = [encode_question(probe, tokenizer, config) for probe in PROBES]
    before = shared_prefix(prompts)
    after = shared_prefix([prompt[before:][::-1] for prompt in prompts])
    if not before:
        raise DataError("the tokenizer puts nothing before a question, so no background text can be started: use --background 0")
    return prompts[0][:before], prompts[0][len(prompts[0]) - after :] if after else []


def _runs(example: Example, head: list[int], tail: list[int]) -> set[tuple[int, ...]]:
    """All runs of `SHARED_RUN` tokens in the question and in the answer, without the frame, which all have in common."""
    ids, start = example.input_ids.tolist(), example.first_scored
    first = len(head) if ids[: len(head)] == head else 0
    last = start - len(tail) if tail and ids[start - len(tail) : start] == tail else start
    parts = (ids[first:last], ids[start:])
    return {tuple(part[i : i + SHARED_RUN]) for part in parts for i in range(len(part) - SHARED_RUN + 1)}

"""The text of an answer as its tokens come, and the bytes of single tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

CONTEXT = 5  # tokens of the prompt before the answer: some tokenizers write a word's first token without its space


class TextStream:
    """Text of growing token ids: holds back incomplete characters, and what may be the beginning of a stop string.

    Args:
        tokenizer: decodes; special tokens are left out.
        prompt: ids that the answer follows.
        stops: texts at which it ends; they are not part of it.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids = list(prompt[-CONTEXT:])
        self._start, self._read = 0, len(self._ids)
        self._pending = ""  # decoded and not given out
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token; return the text that is now certain."""
        self._ids.append(token)
        return self._give(self._decode(whole=False))

    def finish(self) -> str:
        """The rest of the text."""
        if self.stopped:
            return ""
        text = self._give(self._decode(whole=True))
        if not self.stopped:
            text, self._pending = text + self._pending, ""
        return text

    def _decode(self, whole: bool) -> str:
        before = decode(self._tokenizer, self._ids[self._start : self._read])
        after = decode(self._tokenizer, self._ids[self._start :])
        if len(after) <= len(before) or (after.endswith("\ufffd") and not whole):
            return ""
        self._ids = self._ids[self._read :]
        self._start, self._read = 0, len(self._ids)
        return after[len(before) :]

    def _give(self, text: str) -> str:
        self._pending += text
        starts = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if starts:
            self.stopped = True
            text, self._pending = self._pending[: min(starts)], ""
            return text
        keep = max((_overlap(self._pending, stop) for stop in self._stops), default=0)
        cut = len(self._pending) - keep
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text


BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte as SentencePiece writes it
PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
OTHERS = sorted(set(range(256)) - set(PRINTED))
BYTE_OF = {chr(byte): byte for byte in PRINTED} | {chr(0x100 + i): byte for i, byte in enumerate(OTHERS)}
"""The bytes that characters of a byte-level BPE token stand for, as in GPT-2."""


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes of one token, also where they are a part of a character; special tokens by their names."""
    text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if "\ufffd" not in text:
        return text.encode()
    piece = tokenizer.convert_ids_to_tokens(token) or text
    if byte := BYTE_PIECE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    if all(char in BYTE_OF for char in piece):
        return bytes(BYTE_OF[char] for char in piece)
    return text.encode()


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens left out, white space as it is."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

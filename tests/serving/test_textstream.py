"""The text of an answer as its tokens come, and the bytes of single tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tempertilt.serving.textstream import TextStream, token_bytes


class Bytes:
    """A tokenizer of bytes; 256 is special."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


def run_stream(ids: list[int], stops: list[str]) -> tuple[list[str], bool]:
    stream, parts = TextStream(Bytes(), [104, 105], stops), []
    for token in ids:
        parts.append(stream.push(token))
        if stream.stopped:
            return parts, True
    return [*parts, stream.finish()], stream.stopped


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 256), st.sampled_from([0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80])), max_size=40))
def test_the_parts_of_a_stream_are_the_whole_text(ids: list[int]) -> None:
    parts, _ = run_stream(ids, [])
    assert "".join(parts) == Bytes().decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_a_stream_ends_at_the_first_stop_string(text: str, stops: list[str]) -> None:
    parts, stopped = run_stream(list(text.encode()), stops)
    ends = [i for i in range(len(text) + 1) if any(text[:i].endswith(stop) for stop in stops)]
    starts = [at for stop in stops if (at := text[: ends[0]].find(stop)) >= 0] if ends else []
    assert stopped == bool(ends)
    assert "".join(parts) == (text[: min(starts)] if ends else text)


def test_no_character_is_given_out_in_halves() -> None:
    stream = TextStream(Bytes(), [])
    assert [stream.push(byte) for byte in "é😀".encode()] == ["", "é", "", "", "", "😀"]


def byte_level() -> Any:
    """Bytes as GPT-2 writes them, and a control token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(["<|end|>", *alphabet])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


def byte_fallback() -> Any:
    """Words, and bytes as SentencePiece writes them."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["byte level", "byte fallback"])
def test_bytes_of_tokens_joined_are_the_text(tokenizer: Any) -> None:
    text = "a é😀 a\u2028\u0085Ġ<0x41>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    parts = [token_bytes(tokenizer, token) for token in ids]
    assert b"".join(parts) == text.encode()
    assert [part for part in parts if part[0] >= 0x80][:2] == [b"\xc3", b"\xa9"]  # each byte of a character by itself
    assert token_bytes(tokenizer, tokenizer.eos_token_id) == tokenizer.eos_token.encode()

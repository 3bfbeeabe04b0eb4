"""Gemma 3 from a GGUF file by NumPy alone: blocks of quantised numbers by ggml's layout, and the forward pass.

Only the container is read by the package gguf. Norms are multiplied as they are stored there: 1 more than in transformers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _f16(raw: Array) -> Array:
    return raw.copy().view(np.float16).astype(np.float32)


def q8_0(raw: Array) -> Array:
    """Blocks of 32: a scale, 32 signed bytes."""
    return _f16(raw[:, :2]) * raw[:, 2:].view(np.int8).astype(np.float32)


def q5_0(raw: Array) -> Array:
    """Blocks of 32: a scale, 32 high bits, 32 nibbles (first those of the lower half)."""
    high = np.unpackbits(raw[:, 2:6], axis=1, bitorder="little").astype(np.int32)
    low = np.concatenate([raw[:, 6:] & 15, raw[:, 6:] >> 4], axis=1).astype(np.int32)
    return _f16(raw[:, :2]) * (low + 16 * high - 16).astype(np.float32)


def q4_k(raw: Array) -> Array:
    """Blocks of 256: scale, scale of minima, 8 scales and minima of 6 bits, 256 nibbles."""
    d, dmin, packed, nibbles = _f16(raw[:, :2]), _f16(raw[:, 2:4]), raw[:, 4:16].astype(np.int32), raw[:, 16:]
    out = np.empty((len(raw), 256), np.float32)
    for j in range(8):
        if j < 4:
            scale, minimum = packed[:, j] & 63, packed[:, j + 4] & 63
        else:
            scale = (packed[:, j + 4] & 15) | (packed[:, j - 4] >> 6) << 4
            minimum = packed[:, j + 4] >> 4 | (packed[:, j] >> 6) << 4
        part = nibbles[:, 32 * (j // 2) : 32 * (j // 2 + 1)]
        values = (part & 15 if j % 2 == 0 else part >> 4).astype(np.float32)
        out[:, 32 * j : 32 * (j + 1)] = d * scale[:, None] * values - dmin * minimum[:, None]
    return out


def q6_k(raw: Array) -> Array:
    """Blocks of 256: 256 low nibbles, 256 pairs of high bits, 16 signed scales, a scale of all."""
    out = np.empty((len(raw), 256), np.float32)
    d, scales = _f16(raw[:, 208:]), raw[:, 192:208].view(np.int8).astype(np.float32)
    for half in range(2):
        low, high = raw[:, 64 * half : 64 * half + 64], raw[:, 128 + 32 * half : 160 + 32 * half]
        for quarter in range(4):
            nibbles = low[:, 32 * (quarter % 2) : 32 * (quarter % 2) + 32]
            nibbles = nibbles & 15 if quarter < 2 else nibbles >> 4
            values = (nibbles | ((high >> 2 * quarter) & 3) << 4).astype(np.float32) - 32
            of_each = np.repeat(scales[:, 8 * half + 2 * quarter : 8 * half + 2 * quarter + 2], 16, axis=1)
            out[:, 128 * half + 32 * quarter : 128 * half + 32 * quarter + 32] = d * of_each * values
    return out


BLOCKS = {"Q8_0": (q8_0, 34), "Q5_0": (q5_0, 22), "Q4_K": (q4_k, 144), "Q6_K": (q6_k, 210)}


class Gemma:
    """The model in a GGUF file."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.reader = GGUFReader(str(path))
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        self.embedding = self.weight("token_embd")

    def weight(self, name: str) -> Array:
        """A tensor, float32, rows first."""
        tensor = self.tensors[f"{name}.weight"]
        shape = [int(n) for n in reversed(tensor.shape)]
        kind = tensor.tensor_type.name
        if kind == "F32":
            return np.array(tensor.data, np.float32).reshape(shape)
        unpack, size = BLOCKS[kind]
        return unpack(np.array(tensor.data).reshape(-1, size)).reshape(shape)

    def logits(self, ids: Sequence[int], last: int) -> Array:
        """Logits `(last, V)` after the last tokens."""
        h = self.embedding[list(ids)].astype(np.float64) * np.sqrt(640)
        for layer in range(18):
            h = self._layer(h, layer)
        return _norm(h[-last:], self.weight("output_norm")).astype(np.float32) @ self.embedding.T

    def _layer(self, h: Array, layer: int) -> Array:
        w = {name: self.weight(f"blk.{layer}.{name}").astype(np.float64) for name in NAMES}
        is_global = layer % 6 == 5
        x = _norm(h, w["attn_norm"])
        q = (x @ w["attn_q"].T).reshape(len(h), 4, 256)
        k, v = x @ w["attn_k"].T, x @ w["attn_v"].T
        q = _rotate(_norm(q, w["attn_q_norm"]), 1e6 if is_global else 1e4)
        k = _rotate(_norm(k, w["attn_k_norm"])[:, None], 1e6 if is_global else 1e4)[:, 0]
        distance = np.arange(len(h))[:, None] - np.arange(len(h))
        seen = (distance >= 0) & (is_global | (distance < 512))
        heads = []
        for head in range(4):
            scores = np.where(seen, q[:, head] @ k.T / 16, -np.inf)
            scores = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(scores / scores.sum(1, keepdims=True) @ v)
        h = h + _norm(np.concatenate(heads, 1) @ w["attn_output"].T, w["post_attention_norm"])
        x = _norm(h, w["ffn_norm"])
        gate = x @ w["ffn_gate"].T
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        return h + _norm(gate * (x @ w["ffn_up"].T) @ w["ffn_down"].T, w["post_ffw_norm"])

    def tokens(self, text: str) -> list[int]:
        """SentencePiece's: its own symbols as they stand; elsewhere, of neighbours that are a piece together, the best first."""
        field, types = (self.reader.fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
        pieces = {bytes(field.parts[i]).decode().replace(" ", "▁"): n for n, i in enumerate(field.data)}
        kinds = [int(types.parts[i][0]) for i in types.data]
        symbols = sorted((piece for piece, n in pieces.items() if kinds[n] == USER_DEFINED), key=len, reverse=True)
        ids = [2]
        for part in re.split(f"({'|'.join(map(re.escape, symbols))})", text.replace(" ", "▁")):
            ids += [pieces[part]] if part in symbols else self._joined(part, pieces)
        return ids

    def _joined(self, text: str, pieces: dict[str, int]) -> list[int]:
        scores = self.reader.fields["tokenizer.ggml.scores"]
        parts = list(text)
        while True:
            known = [(i, pieces.get(a + b)) for i, (a, b) in enumerate(itertools.pairwise(parts))]
            pairs = [(float(scores.parts[scores.data[piece]][0]), -i) for i, piece in known if piece is not None]
            if not pairs:
                return [pieces[part] for part in parts]
            at = -max(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]


USER_DEFINED = 4
NAMES = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_q_norm", "attn_k_norm", "attn_output", "post_attention_norm", "ffn_norm",
    "ffn_gate", "ffn_up", "ffn_down", "post_ffw_norm",
)  # fmt: skip


def _norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def _rotate(x: Array, base: float) -> Array:
    """Rotary positions of `(T, heads, 256)`, halves turned against each other."""
    angles = np.arange(len(x))[:, None] * base ** (-np.arange(128) / 128)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :128], x[..., 128:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

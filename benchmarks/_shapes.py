"""Shapes of models without their weights: arithmetic, one layer with random weights, and an adapter of that size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from tempertilt.fitting.fit_gate import GateConfig, GateSettings
from tempertilt.fitting.pipeline import METHODS
from tempertilt.guidance.gate import EVENTS, EvidenceGate, Gates, Reader, TurnStarts
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import GuidanceHead


@dataclass(frozen=True)
class Shape:
    """A decoder-only model of Llama's kind."""

    layers: int
    width: int
    inner: int
    kv_width: int
    vocabulary: int
    heads: int = 0

    @property
    def layer(self) -> float:
        """Weights of a layer's matrices: what every token is multiplied with."""
        return 2 * self.width**2 + 2 * self.width * self.kv_width + 3 * self.width * self.inner

    @property
    def body(self) -> float:
        """Weights of the matrices of all layers."""
        return self.layers * self.layer

    @property
    def parameters(self) -> float:
        """All weights, an output layer of its own included."""
        return self.body + 2 * self.vocabulary * self.width

    def flops(self, length: int) -> float:
        """Floating-point operations of the body for one token of a sequence so long; attention reads half of it on average."""
        return 2 * self.body + 4 * self.layers * self.width * length / 2

    def kv_bytes(self, item: int = 2) -> int:
        """Bytes of keys and values of one token."""
        return 2 * self.layers * self.kv_width * item

    def config(self, layers: int | None = None) -> LlamaConfig:
        """The configuration for transformers."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_width * self.heads // self.width,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )


MODELS = {
    "Llama-3.1-8B": Shape(32, 4096, 14336, 1024, 128256, 32),
    "Llama-3.1-70B": Shape(80, 8192, 28672, 1024, 128256, 64),
}
TINY = Shape(4, 64, 128, 32, 320, 4)


@dataclass(frozen=True)
class Request:
    """What a request of ten records adds: exemplars of both gates, and tokens with a row in the head.

    Two exemplars for each of 100 prompts and answers (the records and variants of their prompts), 24 for each of ten answers: the
    most that the defaults allow.
    """

    asked: int = 200
    said: int = 240
    tokens: int = 300


RANK = METHODS["t3"].fit.rank
ASKED, SAID = GateConfig().asked_size, GateConfig().said_size
HEADERS = 8  # directions by which a user's turn is recognised


def random_part(shape: Shape, request: Request, device: Any = "cpu") -> Guidance:
    """Head and gates of a request, random, in size and settings as of `t3 unlearn`; no text opens the gates."""
    return random_parts(shape, request, 1, device)["0"]


def random_parts(shape: Shape, request: Request, count: int, device: Any = "cpu") -> dict[str, Guidance]:
    """Parts with gates and readers as those of a ledger; since only the head of an open part runs, they have one."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    def gate(reader: Reader, exemplars: int, settings: GateSettings) -> EvidenceGate:
        rows = F.normalize(normal(exemplars, settings.size), dim=-1)
        thresholds = {"threshold": settings.threshold, "weak_threshold": settings.weak_threshold}
        return EvidenceGate(reader, rows, torch.full((exemplars,), 0.4, device=device), **thresholds)

    tokens = torch.randperm(shape.vocabulary, generator=generator, device=device)[: request.tokens].cpu()
    head = GuidanceHead(shape.width, RANK, tokens, bias=True)
    with torch.no_grad():
        head.B.normal_()
    asked, said = (Reader(torch.zeros(shape.width, device=device), normal(size, shape.width)) for size in (ASKED, SAID))
    turns = TurnStarts([1], F.normalize(normal(HEADERS, ASKED), dim=-1), 0.5)
    options, layer = GateConfig(), GateConfig().layer(shape.layers)

    def part() -> Guidance:
        gates = gate(asked, request.asked, options.asked), gate(said, request.said, options.said)
        return Guidance(head, Gates(layer, *gates, turns, options.close_after), METHODS["t3"].tilt, "last").to(device)

    return {str(number): part() for number in range(count)}


def part_bytes(shape: Shape, request: Request) -> tuple[int, int]:
    """Bytes of an adapter's tensors: those of the readers and headers, which parts of a ledger may share, and those of a request.

    int8 for exemplars, headers and `B`; float16 for means, readers, margins, `A`, scale and bias; int32 for token ids.
    """
    shared = 2 * (2 * shape.width + (ASKED + SAID) * shape.width) + HEADERS * ASKED + 4
    gates = request.asked * (ASKED + 2) + request.said * (SAID + 2)
    return shared, gates + 2 * RANK * shape.width + request.tokens * (RANK + 2 + 2 + 4)


def gate_flops(shape: Shape, request: Request, requests: int = 1) -> int:
    """Operations of both gates for a token: readers and headers once, the exemplars of all requests compared."""
    readers = 2 * (ASKED + SAID) * shape.width
    return readers + 2 * requests * (request.asked * ASKED + request.said * SAID) + 2 * HEADERS * ASKED


def memory_bytes(requests: int) -> int:
    """Bytes that are remembered of a token: its position, and five positions of events for each part."""
    return 4 * (1 + EVENTS * requests)


class Layer(nn.Module):
    """One decoder layer with random weights; states `(B, T, d)` of positions 0 to T - 1."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: Any = "cpu") -> None:
        super().__init__()
        config = shape.config(1)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.layer = LlamaDecoderLayer(config, 0).to(dtype)
        self.layer.to_empty(device=device)
        self.rotary = LlamaRotaryEmbedding(config).to(device)
        for weight in self.layer.parameters():
            nn.init.uniform_(weight, -0.02, 0.02) if weight.ndim > 1 else nn.init.ones_(weight)

    def forward(self, states: Tensor) -> Tensor:
        """States after the layer."""
        positions = torch.arange(states.shape[1], device=states.device)[None]
        out = self.layer(states, position_embeddings=self.rotary(states, positions), position_ids=positions)
        return out[0] if isinstance(out, tuple) else out

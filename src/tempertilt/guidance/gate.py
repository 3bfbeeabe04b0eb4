"""The evidence gate: where, in a text, it is about what is to be forgotten; elsewhere the law is the base's, bit for bit.

A token's state `x_t`, read between two lower layers of the model, is compared with exemplars: states of tokens of the forget
records that nothing else resembles (a name, a date, a title). Each exemplar has a margin, the similarity of the nearest token of
text that is to be kept:

    e_t = max_j [ cos(W (x_t - mu), f_j) - b_j ] / (1 - b_j),     b_j = max over kept text of cos(W (x - mu), f_j)
    E_t = max over i <= t of e_i                       evidence so far, prompt included; it never falls back
    g_t = clamp((E_t - threshold) / width, 0, 1)       0: the base's own law; 1: tempered and tilted in full

So the evidence is 0 at the nearest token of kept text and 1 at an exemplar itself.

`W` whitens the states by a covariance of low rank plus a multiple of the identity (probabilistic PCA; Tipping, Bishop 1999), so
that an adapter holds few numbers. A nearest neighbour with a margin says "no" to what it has never seen; a linear classifier on
pooled states does not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tempertilt.errors import AdapterError, ConfigError

LEAST_GAP = 0.1  # between an exemplar and the nearest kept token, as a similarity
NAMES = ("gate.mean", "gate.basis", "gate.shrink", "gate.exemplars", "gate.margins")


class Whitening(NamedTuple):
    """Mean `(d,)`, orthonormal basis `(k, d)` of the directions of largest variance, how much of each is taken away `(k,)`."""

    mean: Tensor
    basis: Tensor
    shrink: Tensor

    def directions(self, states: Tensor) -> Tensor:
        """Whitened states `(..., d)` of any float type as rows of length 1, float32."""
        centred = states.float() - self.mean
        return F.normalize(centred - (centred @ self.basis.T * self.shrink) @ self.basis, dim=-1)


class EvidenceGate(nn.Module):
    """Exemplars and how states are compared with them; float32, nothing to train.

    Args:
        whitening: of states `(d,)`.
        exemplars: `(m, d)`, rows of length 1.
        margins: `(m,)`.
        layer: number of decoder layers below the states.
        threshold, width: of the evidence, as in the formula above.
    """

    mean: Tensor
    basis: Tensor
    shrink: Tensor
    exemplars: Tensor
    margins: Tensor

    def __init__(
        self, whitening: Whitening, exemplars: Tensor, margins: Tensor, *, layer: int, threshold: float, width: float
    ) -> None:
        super().__init__()
        if layer < 1 or not width > 0 or not math.isfinite(threshold):
            raise ConfigError(f"gate layer is {layer}, threshold {threshold}, width {width}; valid are >= 1, a number, > 0")
        mean, basis, shrink = whitening
        d, k, m = len(mean), len(shrink), len(margins)
        if basis.shape != (k, d) or exemplars.shape != (m, d) or not m:
            raise AdapterError(
                f"the gate's tensors do not fit: mean {tuple(mean.shape)}, basis {tuple(basis.shape)}, shrink "
                f"{tuple(shrink.shape)}, exemplars {tuple(exemplars.shape)}, margins {tuple(margins.shape)}"
            )
        self.layer, self.threshold, self.width = layer, threshold, width
        for name, tensor in zip(NAMES, (mean, basis, shrink, exemplars, margins)):
            self.register_buffer(name.removeprefix("gate."), tensor.detach().float())

    @property
    def hidden_size(self) -> int:
        """`d`."""
        return len(self.mean)

    def evidence(self, states: Tensor) -> Tensor:
        """`e`: states `(..., d)` of any float type to `(...)` float32."""
        directions = Whitening(self.mean, self.basis, self.shrink).directions(states)
        return evidence_of(directions, self.exemplars, self.margins)

    @property
    def settings(self) -> dict[str, float]:
        """Layer, threshold and width."""
        return {"layer": self.layer, "threshold": self.threshold, "width": self.width}

    def value(self, evidence: Tensor) -> Tensor:
        """`g` in [0, 1] of evidence of any shape; exactly 0 up to the threshold."""
        return ((evidence - self.threshold) / self.width).clamp(0.0, 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """What an adapter stores, float16, on CPU."""
        return {name: getattr(self, name[5:]).to("cpu", torch.float16).contiguous() for name in NAMES}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], *, layer: int, threshold: float, width: float) -> EvidenceGate:
        """The gate that `tensors()` describes; `AdapterError` if a tensor is missing or does not fit."""
        if missing := [name for name in NAMES if name not in tensors]:
            raise AdapterError(f"the adapter lacks the tensors {', '.join(missing)} of its gate")
        mean, basis, shrink, exemplars, margins = (tensors[name].float() for name in NAMES)
        return cls(Whitening(mean, basis, shrink), exemplars, margins, layer=layer, threshold=threshold, width=width)


def evidence_of(directions: Tensor, exemplars: Tensor, margins: Tensor) -> Tensor:
    """Directions `(..., d)`, exemplars `(m, d)`, margins `(m,)` to evidence `(...)`."""
    gaps = (1 - margins).clamp(min=LEAST_GAP)
    return ((F.linear(directions, exemplars) - margins) / gaps).amax(-1)

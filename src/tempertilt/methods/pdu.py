"""PDU: flatten the forget logits under a constraint on the retain loss, by dual ascent (arXiv 2506.05314)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tempertilt.config.options import option
from tempertilt.methods.registry import register
from tempertilt.methods.trained import TrainedMethod
from tempertilt.training.config import TrainConfig
from tempertilt.training.runner import Step


@dataclass(frozen=True)
class PDUConfig(TrainConfig):
    """Options of PDU."""

    multiplier: float = option(50.0, "first value of the constraint's multiplier", ge=0)
    retain_bound: float = option(0.3, "retain loss that is allowed, nats a token", ge=0)
    dual_rate: float = option(5.0, "step of the multiplier after each batch", ge=0)
    dual_warmup: float = option(5.0, "epochs in which the multiplier stays as it is", ge=0)


def flatness_loss(logits: Tensor) -> Tensor:
    """mean (max_v z - mean_v z)^2 over positions: 0 where all tokens are equally likely.

    Args:
        logits: `(N, V)`.
    """
    return (logits.amax(-1) - logits.mean(-1)).square().mean()


def next_multiplier(multiplier: float, retain_nll: float, bound: float, rate: float) -> float:
    """Dual ascent on the constraint L_retain <= bound: max(0, multiplier + rate (L_retain - bound))."""
    return max(0.0, multiplier + rate * (retain_nll - bound))


@register("PDU", "https://arxiv.org/abs/2506.05314", PDUConfig)
class PDU(TrainedMethod):
    """Flat forget logits under a bound on the retain loss, by primal-dual steps."""

    def __init__(self, config: PDUConfig) -> None:
        super().__init__(config)
        self.multiplier = config.multiplier

    def loss(self, step: Step) -> Tensor:
        """Flatness on forget + multiplier * (L_retain - bound); after the warm-up the multiplier follows."""
        config, retain_nll = self.config, step.retain.mean_nll
        total: Tensor = flatness_loss(step.forget.logits) + self.multiplier * (retain_nll - config.retain_bound)
        if step.epoch >= config.dual_warmup:
            self.multiplier = next_multiplier(self.multiplier, float(retain_nll.detach()), config.retain_bound, config.dual_rate)
        return total

    def details(self) -> dict[str, Any]:
        """The multiplier at the end."""
        return {"multiplier": self.multiplier}

"""PDU: flatten the forget logits under a constraint on the retain loss, by dual ascent (arXiv 2506.05314)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tempertilt.errors import ConfigError
from tempertilt.methods.registry import register
from tempertilt.methods.trained import TrainedMethod
from tempertilt.training.loop import Step, TrainConfig


@dataclass(frozen=True)
class PDUConfig(TrainConfig):
    """Options of PDU."""

    multiplier: float = field(default=50.0, metadata={"help": "first value of the constraint's multiplier"})
    retain_bound: float = field(default=0.3, metadata={"help": "retain loss that is allowed, nats a token"})
    dual_rate: float = field(default=5.0, metadata={"help": "step of the multiplier after each batch"})
    dual_warmup: float = field(default=5.0, metadata={"help": "epochs in which the multiplier stays as it is"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("multiplier", "retain_bound", "dual_rate", "dual_warmup"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; valid is a number >= 0")


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

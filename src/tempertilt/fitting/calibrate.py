"""Choice of the guidance scale without a reference model.

A model that never saw the forget records gives their answers about the likelihood that the base gives to answers of the same kind
that it never saw either: the holdout records. So the scale s is chosen at which the two mean negative log-likelihoods agree; the
guided one of the forget answers grows with s.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tempertilt.data.batches import pad_batch, plan_batches
from tempertilt.data.examples import Example
from tempertilt.errors import ConfigError
from tempertilt.guidance.tilt import log_retain_weight
from tempertilt.models.t3 import T3ForCausalLM

log = logging.getLogger("tempertilt")

LARGEST_SCALE = 8.0
BISECTIONS = 20
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class CalibrationConfig:
    """Whether and how the guidance scale is chosen."""

    calibrate: bool = field(
        default=False,
        metadata={"help": "with --holdout: choose the guidance scale so that forget answers become as likely as holdout answers"},
    )
    calibration_records: int = field(default=64, metadata={"help": "records of forget and of holdout that are compared"})

    def __post_init__(self) -> None:
        if self.calibration_records < 1:
            raise ConfigError(f"calibration_records is {self.calibration_records}; valid is a whole number >= 1")


class Calibration(NamedTuple):
    """The chosen scale. `target` is the mean negative log-likelihood of holdout answers under the base, `reached` that of forget
    answers under the guided law, `before` under the base: nats a token, averaged over records.
    """

    guidance_scale: float
    target: float
    reached: float
    before: float


@torch.inference_mode()
def match_likelihood(model: T3ForCausalLM, forget: Sequence[Example], holdout: Sequence[Example]) -> Calibration:
    """The guidance scale at which forget answers are as likely, under the guided law, as holdout answers under the base.

    The model's own temperature, prior and gate are kept; its scale does not matter and is not changed. Where no scale in
    [0, `LARGEST_SCALE`] does it, the nearest end is chosen, and said so.
    """
    terms, target = _terms(model, forget), _mean_nll(_terms(model, holdout), None)
    before = _mean_nll(terms, None)
    low, high = 0.0, LARGEST_SCALE
    if not _mean_nll(terms, low) < target < _mean_nll(terms, high):
        scale = low if target <= _mean_nll(terms, low) else high
        log.warning(
            "no guidance scale makes forget answers as likely as holdout answers (%.2f nats a token, %.2f before): %g is taken",
            target, before, scale,
        )  # fmt: skip
        return Calibration(scale, target, _mean_nll(terms, scale), before)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _mean_nll(terms, middle) < target else (low, middle)
    scale = round((low + high) / 2, 4)
    return Calibration(scale, target, _mean_nll(terms, scale), before)


class _Terms(NamedTuple):
    """What the likelihood of N answer tokens at any scale needs: tempered logits, reduced to the K tokens that are tilted.

    `tilted (N, K)` logits and `weights (N, K)` log retain weights times openness; `neutral (N,)` log-sum-exp of the other tokens;
    `own (N,)` the target's logit and `own_weight (N,)`; `base (N,)` its log-probability under the base; `records (N,)`.
    """

    tilted: Tensor
    weights: Tensor
    neutral: Tensor
    own: Tensor
    own_weight: Tensor
    base: Tensor
    records: Tensor


def _terms(model: T3ForCausalLM, examples: Sequence[Example]) -> _Terms:
    parts = []
    for batch in plan_batches(examples, BATCH_TOKENS):
        chosen = [examples[i] for i in batch]
        padded = pad_batch(chosen, model.device)
        logits, log_odds, openness = model.tilt_terms(padded.input_ids, padded.attention_mask, padded.predicting)
        logits, targets, ids = logits.float(), padded.input_ids[padded.targets], model.head.token_ids.to(logits.device)
        base = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)
        opened = torch.ones_like(base) if openness is None else openness.to(logits.device)
        tempered = logits / (1 + (model.temperature - 1) * opened[:, None])
        weights = log_retain_weight(log_odds.to(logits.device), model.forget_prior) * opened[:, None]
        rows = model.head.rows_of(targets.to(model.head.token_ids.device)).to(logits.device)
        own = tempered.gather(-1, targets[:, None])[:, 0]
        own_weight = weights.gather(-1, rows.clamp(min=0)[:, None])[:, 0] * (rows >= 0)
        tilted = tempered[:, ids]
        neutral = tempered.index_fill(-1, ids, -torch.inf).logsumexp(-1)
        records = torch.repeat_interleave(torch.tensor(batch), torch.tensor([example.n_scored for example in chosen]))
        parts.append(_Terms(*(t.cpu() for t in (tilted, weights, neutral, own, own_weight, base, records))))
    return _Terms(*(torch.cat(column) for column in zip(*parts)))


def _mean_nll(terms: _Terms, scale: float | None) -> float:
    """Mean over records of the mean negative log-likelihood of their tokens at a scale; None is the base's own law."""
    if scale is None:
        log_probs = terms.base
    else:
        normaliser = torch.logaddexp((terms.tilted + scale * terms.weights).logsumexp(-1), terms.neutral)
        log_probs = terms.own + scale * terms.own_weight - normaliser
    count = torch.bincount(terms.records).clamp(min=1)
    sums = torch.zeros(len(count)).index_add(0, terms.records, -log_probs)
    return float((sums / count)[torch.bincount(terms.records) > 0].mean())

"""Choice of the guidance scale without a reference model.

A model that never saw the forget records gives their answers about the likelihood that the base gives to answers of the same kind
that it never saw either: the holdout records. So the scale s is chosen at which the two mean negative log-likelihoods agree; the
guided one of the forget answers grows with s.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tempertilt.config.options import Options, option
from tempertilt.data.batches import pad_batch, plan_batches
from tempertilt.data.examples import Example
from tempertilt.guidance.tilt import TargetTerms
from tempertilt.models.t3 import T3ForCausalLM

log = logging.getLogger("tempertilt")

LARGEST_SCALE = 8.0
BISECTIONS = 20
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class CalibrationConfig(Options):
    """Whether and how the guidance scale is chosen."""

    calibrate: bool = option(
        False, "with --holdout: choose the guidance scale so that forget answers become as likely as holdout answers"
    )
    calibration_records: int = option(64, "records of forget and of holdout that are compared", ge=1, advanced=True)


class Calibration(NamedTuple):
    """The chosen scale. `target` is the mean negative log-likelihood of holdout answers under the base, `reached` that of forget
    answers under the guided distribution, `before` under the base: nats a token, averaged over records.
    """

    guidance_scale: float
    target: float
    reached: float
    before: float


@torch.inference_mode()
def match_likelihood(model: T3ForCausalLM, forget: Sequence[Example], holdout: Sequence[Example]) -> Calibration:
    """The guidance scale at which forget answers are as likely, under the guided distribution, as holdout answers under the base.

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
    """What the likelihood of N answer tokens at any scale needs, batch by batch, and the records that they are of `(N,)`."""

    batches: list[TargetTerms]
    records: Tensor


def _terms(model: T3ForCausalLM, examples: Sequence[Example]) -> _Terms:
    batches, records = [], []
    for batch in plan_batches(examples, BATCH_TOKENS):
        chosen = [examples[i] for i in batch]
        padded = pad_batch(chosen, model.device)
        logits, log_odds, gate = model.tilt_terms(padded.input_ids, padded.attention_mask, padded.predicting)
        targets = padded.input_ids[padded.targets]
        batches.append(model.guidance.target_terms(logits, log_odds, targets, gate))
        records.append(torch.repeat_interleave(torch.tensor(batch), torch.tensor([example.n_scored for example in chosen])))
    return _Terms(batches, torch.cat(records))


def _mean_nll(terms: _Terms, scale: float | None) -> float:
    """Mean over records of the mean negative log-likelihood of their tokens at a scale, nats; None is the base itself."""
    log_probs = torch.cat([batch.base if scale is None else batch.log_probs(scale) for batch in terms.batches])
    count = torch.bincount(terms.records).clamp(min=1)
    sums = torch.zeros(len(count)).index_add(0, terms.records, -log_probs)
    return float((sums / count)[torch.bincount(terms.records) > 0].mean())

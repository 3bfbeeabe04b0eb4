"""How far a model's next-token distributions are from those of a reference that never saw the forget set."""

from __future__ import annotations

from collections.abc import Sequence

from tempertilt.errors import DataError
from tempertilt.metrics.result import MetricResult, token_mean_result
from tempertilt.metrics.samples import Samples


def reference_kl(samples: Samples, *, name: str = "reference_kl") -> MetricResult:
    """Mean over all answer tokens of KL(reference || model), nats, between next-token distributions; context: the true answer.

    0 where the model is the reference. To measure forgetting by a divergence from a model that was trained without the data is
    of Golatkar et al. (arXiv 1911.04933). The interval resamples questions.
    """
    protocol = "mean over answer tokens of KL(reference || model) between next-token distributions, nats, true answer as context"
    return token_mean_result(name, _compared(name, [s.reference_kl for s in samples]), higher_is_better=False, protocol=protocol)


def reference_same_top(samples: Samples, *, name: str = "reference_same_top") -> MetricResult:
    """Share of answer tokens before which model and reference have the same most likely token; see `reference_kl`."""
    protocol = "share of answer tokens before which model and reference have the same most likely token, true answer as context"
    values = _compared(name, [s.reference_same_top for s in samples])
    return token_mean_result(name, values, higher_is_better=True, protocol=protocol)


def _compared(name: str, values: Sequence[tuple[float, ...]]) -> Sequence[tuple[float, ...]]:
    if not any(values):
        raise DataError(f"{name}: no reference model was run beside this one; measure with --reference-model or "
                        "--reference-peft-adapter")  # fmt: skip
    return values

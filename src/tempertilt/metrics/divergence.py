"""How far a model's next-token distributions are from those of a reference that never saw the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from scipy.stats import ks_2samp

from tempertilt.errors import ConfigError, DataError
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


TokenValue = Literal["log_probs", "standardised"]
"""What `ks_tokens` compares of each answer token; fields of `Sample`."""


def ks_tokens(samples: Samples, reference: Samples, value: TokenValue = "log_probs", *, name: str = "ks_tokens") -> MetricResult:
    """Kolmogorov-Smirnov distance D between a value of all answer tokens under a model and the same under a reference.

    D = max over x of |F(x) - F_reference(x)|, F the share of tokens with a value <= x (own definition, by scipy's `ks_2samp`);
    0 where the two are the same. `details` has the numbers of tokens. Tokens of one answer depend on each other, so there is no
    interval.

    Args:
        samples, reference: of the same questions.
        value: "log_probs": the log-probability of the token, nats; "standardised": (log p - mean) / standard deviation under the
            next-token distribution there, the score of Min-K++ (Zhang et al., arXiv 2404.02936).

    Raises:
        ConfigError: another `value`.
        DataError: a side has no such values.
    """
    if value not in get_args(TokenValue):
        raise ConfigError(f"value is {value!r}; must be one of {', '.join(get_args(TokenValue))}")
    tokens = [np.array([number for sample in side for number in getattr(sample, value)]) for side in (samples, reference)]
    for side, verb, values in zip(("the results", "the reference"), ("have", "has"), tokens):
        if not len(values):
            raise DataError(f"{name}: {side} {verb} no {value} of answer tokens; must be results of t3 eval")
        if bad := int((~np.isfinite(values)).sum()):
            raise DataError(f"{name}: {bad} of {len(values)} values of {side} are not finite numbers")
    filled = sum(bool(getattr(sample, value)) for sample in samples)
    return MetricResult(
        name=name,
        value=float(ks_2samp(*tokens, method="asymp").statistic),
        n=filled,
        n_missing=len(samples) - filled,
        higher_is_better=False,
        interval=None,
        per_sample=(),
        protocol=f"Kolmogorov-Smirnov distance of {value} of all answer tokens, model against reference",
        details={"tokens": len(tokens[0]), "tokens_reference": len(tokens[1])},
    )


def _compared(name: str, values: Sequence[tuple[float, ...]]) -> Sequence[tuple[float, ...]]:
    if not any(values):
        raise DataError(f"{name}: no reference model was run beside this one; measure with --reference-model or "
                        "--reference-peft-adapter")  # fmt: skip
    return values

"""Membership inference: can an attacker tell the forget set from text that the model never saw?

LOSS (Yeom et al., 2018), ZLib and Reference (Carlini et al., 2012.07805), Min-K (Shi et al., 2310.16789), Min-K++ (Zhang et
al., 2404.02936), privleak (MUSE, Shi et al., 2407.06460).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tempertilt.errors import ConfigError, DataError
from tempertilt.metrics.result import MetricResult, bootstrap, present
from tempertilt.metrics.samples import Results, Sample, Samples

ATTACKS = {
    "loss": "https://arxiv.org/abs/1709.01604",
    "zlib": "https://arxiv.org/abs/2012.07805",
    "min_k": "https://arxiv.org/abs/2310.16789",
    "min_k_plus_plus": "https://arxiv.org/abs/2404.02936",
    "reference": "https://arxiv.org/abs/2012.07805",
}
"""Attacks by name, with the papers that describe them."""


def attack_scores(samples: Samples, attack: str, *, k: float = 0.4, reference: Samples | None = None) -> list[float | None]:
    """The score of each sample: high = looks like text that was never seen. None where it can't be computed.

    Args:
        k: share of the least likely tokens that Min-K and Min-K++ average, the end of the sequence left out.
        reference: the same samples under a reference model, for the attack "reference".
    """
    if attack not in ATTACKS:
        raise ConfigError(f"attack is {attack!r}; must be one of {', '.join(ATTACKS)}")
    if not 0 < k <= 1:
        raise ConfigError(f"k is {k}; must be a number in (0, 1]")
    if attack == "reference":
        return _reference_scores(samples, reference)
    compute: dict[str, Callable[[Sample], float | None]] = {
        "loss": lambda s: s.nll,
        "zlib": lambda s: s.nll / len(zlib.compress(s.answer.encode())) if s.nll is not None and s.answer else None,
        "min_k": lambda s: _lowest(s.without_end(s.log_probs), k),
        "min_k_plus_plus": lambda s: _lowest(s.without_end(s.standardised), k),
    }
    return [sample.scores[attack] if attack in sample.scores else compute[attack](sample) for sample in samples]


def _lowest(values: Sequence[float], k: float) -> float | None:
    """Minus the mean of the lowest max(1, floor(k n)) values."""
    return -float(np.sort(values)[: max(1, int(k * len(values)))].mean()) if len(values) else None


def _reference_scores(samples: Samples, reference: Samples | None) -> list[float | None]:
    if reference is None:
        raise DataError("the attack 'reference' needs the results of a reference model: name them with --reference")
    other = {sample.index: sample for sample in reference}

    def score(sample: Sample) -> float | None:
        twin = other.get(sample.index)
        if twin is None or twin.nll is None or sample.nll is None:
            return None
        if twin.answer and sample.answer and twin.answer != sample.answer:
            raise DataError(f"the reference's sample {sample.index} has another answer: it was measured on other data")
        return sample.nll - twin.nll

    return [score(sample) for sample in samples]


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Area under the ROC curve: the chance that a non-member scores higher than a member, ties counted half."""
    return float(_aucs(members, others))


def _aucs(members: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """`auc` along the last axis: `(..., m)` and `(..., n)` scores, `(...)` areas."""
    m, n = members.shape[-1], others.shape[-1]
    ranks = rankdata(np.concatenate([members, others], axis=-1), axis=-1)[..., m:]
    areas: NDArray[np.float64] = (ranks.sum(-1) - n * (n + 1) / 2) / (m * n)
    return areas


def membership(results: Results, attack: str, *, k: float = 0.4, reference: Results | None = None) -> MetricResult:
    """AUC of an attack, forget set against holdout: 1 = the forget set stands out as seen, 0.5 = no signal.

    Raises:
        DataError: forget or holdout is missing, or the attack needs a reference that is not given.
    """
    sides = []
    for split in ("forget", "holdout"):
        if not results.get(split):
            raise DataError(f"mia_{attack} needs samples of forget and holdout; there are none of {split}")
        twins = reference.get(split) if reference is not None else None
        sides.append(attack_scores(results[split], attack, k=k, reference=twins))
    members, others = (present(f"mia_{attack}", side) for side in sides)
    share = f", lowest {k:g} of the tokens" if attack.startswith("min_k") else ""
    return MetricResult(
        name=f"mia_{attack}",
        value=auc(members, others),
        n=len(members) + len(others),
        n_missing=sum(map(len, sides)) - len(members) - len(others),
        higher_is_better=None,
        interval=bootstrap(_aucs, members, others),
        per_sample=tuple(sides[0]),
        protocol=f"ROC-AUC, forget = 0, holdout = 1, score high = looks unseen{share}; 0.5 = no signal",
        details={"n_forget": len(members), "n_holdout": len(others)},
    )


def privleak(results: Results, reference: Results | None = None, *, k: float = 0.4) -> MetricResult:
    """100 ((1 - A) - (1 - A_ref)) / (1 - A_ref), A the Min-K AUC; without a reference's holdout A_ref is 0.5.

    0 is best: far below, the forget set still stands out as seen; far above, it stands out as unlearned.
    """
    ours = membership(results, "min_k", k=k)
    known = reference is not None and any(s.log_probs or "min_k" in s.scores for s in reference.get("holdout", ()))
    theirs = membership(reference, "min_k", k=k).value if known and reference is not None else 0.5

    def leak(value: float) -> float:
        return 100 * ((1 - value) - (1 - theirs)) / ((1 - theirs) + 1e-10)

    assert ours.interval is not None
    return MetricResult(
        name="privleak",
        value=leak(ours.value),
        n=ours.n,
        n_missing=ours.n_missing,
        higher_is_better=None,
        interval=(leak(ours.interval[1]), leak(ours.interval[0])),
        per_sample=(),
        protocol=f"privleak of Min-K (k = {k:g}) against {'the AUC of the reference' if known else 'AUC 0.5'}; 0 is best",
        details={"auc": ours.value, "auc_reference": theirs},
    )

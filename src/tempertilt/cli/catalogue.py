"""What there is to choose from: attacks, methods, metrics, suites, models. Each entry has a name, a description and a source."""

from __future__ import annotations

from collections.abc import Callable

Entry = dict[str, str]


def methods() -> list[Entry]:
    """Unlearning methods, and the reference points of `t3 bench`."""
    from tempertilt.methods.registry import methods as registered

    return [{"name": entry.name, "description": entry.description, "source": entry.url} for entry in registered().values()]


def metrics() -> list[Entry]:
    """What `t3 unlearn` measures before and after, and the metrics of `t3 eval`."""
    from tempertilt.suites.suite import suites as known_suites

    entries = {metric.name: metric for suite in reversed(known_suites()) for metric in suite.metrics}  # tofu's words win

    return [
        {
            "name": "probability",
            "description": "mean over records of exp(mean log-probability of the answer's tokens)",
            "source": "https://arxiv.org/abs/2401.06121",
        },
        {
            "name": "greedy_recall",
            "description": "share of records whose answer greedy decoding gives word for word",
            "source": "https://arxiv.org/abs/2205.10770",
        },
        *({"name": metric.name, "description": metric.description, "source": metric.source} for metric in entries.values()),
    ]


def suites() -> list[Entry]:
    """Benchmarks."""
    from tempertilt.suites.suite import suites as known_suites

    return [{"name": suite.name, "description": suite.description, "source": suite.source} for suite in known_suites()]


def models() -> list[Entry]:
    """Aliases of models that need no hub; any hub id or local directory of a causal LM works as well."""
    from tempertilt.models.packaged import PACKAGES

    return [{"name": alias, "description": of.description, "source": of.url} for alias, of in PACKAGES.items()]


def attacks() -> list[Entry]:
    """What `t3 audit` tries."""
    from tempertilt.audit.registry import attacks as registered

    return [{"name": a.name, "description": a.description, "source": a.source} for a in registered().values()]


CATALOGUE: dict[str, Callable[[], list[Entry]]] = {
    "attacks": attacks,
    "methods": methods,
    "metrics": metrics,
    "suites": suites,
    "models": models,
}

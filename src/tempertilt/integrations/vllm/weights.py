"""Whether the weights that an engine loads are those of an adapter's base: `tempertilt.models.base.fingerprint` of a stream."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tempertilt.errors import AdapterError
from tempertilt.integrations.vllm.serve import read_manifest
from tempertilt.models.fingerprint import fingerprint_of_samples, weight_sample

UNCHECKED = 'If you know that it is the adapter\'s base, put "check_base": false beside the adapter in hf_overrides'


class WeightsWatch:
    """Takes samples of the tensors of a checkpoint as they go by.

    Args:
        expected: the fingerprint of the adapter's base.
    """

    def __init__(self, expected: str) -> None:
        self.expected = expected
        self.samples: dict[str, bytes] = {}

    def through(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same stream."""
        for name, weight in weights:
            self.samples[name] = weight_sample(name, weight)
            yield name, weight

    def check(self, config: Any) -> None:
        """Raise `AdapterError` unless the stream was the model of `config` with the expected fingerprint.

        A checkpoint may hold more than a model has (tied weights twice, buffers), or leave the prefix of its body out: which
        names count is asked of transformers' model of this configuration, without its weights.
        """
        try:
            names, prefix = _parameter_names(config)
        except Exception as error:
            raise AdapterError(f"whether the model is the adapter's base can't be checked here: {error}. {UNCHECKED}") from error
        bodies = {name: self.samples.get(name, _renamed(self.samples, name, prefix)) for name in names}
        if missing := sorted(name for name, sample in bodies.items() if sample is None):
            raise AdapterError(
                f"whether the model is the adapter's base can't be checked: its checkpoint has no {missing[0]!r}; "
                f"{len(missing)} of {len(names)} weights have other names there. {UNCHECKED}"
            )
        samples = {name: sample for name, sample in bodies.items() if sample is not None}
        if (
            fingerprint := before_merging(config.name_or_path, fingerprint_of_samples(config.model_type, samples))
        ) != self.expected:
            raise AdapterError(
                f"the adapter was fitted on a base model with fingerprint {self.expected}; this one has {fingerprint}. Give "
                f"the same base and PEFT adapter to engine_arguments or t3 serve, or fit a new adapter by t3 unlearn. "
                f"{UNCHECKED}"
            )


def before_merging(directory: str, weights: str) -> str:
    """The fingerprint by which an adapter knows weights: of base and PEFT adapter, where they are merged in our cache."""
    manifest = read_manifest(Path(directory))
    return manifest.fingerprint if manifest is not None and manifest.weights == weights else weights


def _parameter_names(config: Any) -> tuple[list[str], str]:
    """Names of the parameters of a model, tied ones once, and the prefix of its body."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return [name for name, _ in model.named_parameters()], model.base_model_prefix


def _renamed(samples: dict[str, bytes], name: str, prefix: str) -> bytes | None:
    """The sample of a weight that the checkpoint names without the prefix, as under its full name."""
    short = name.removeprefix(f"{prefix}.")
    sample = samples.get(short)
    return None if sample is None else name.encode() + sample[len(short.encode()) :]

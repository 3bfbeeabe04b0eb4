"""Readers of both gates from retained text alone, to be shared by the parts of one model.

Alone, a fit makes its readers from forget and retain records. Parts with the same readers are compared with a token by one
product of matrices (`tempertilt.guidance.composition`), and a reader that has seen no forget record says nothing of any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from tempertilt.data.examples import Example, shared_prefix
from tempertilt.errors import AdapterError
from tempertilt.fitting.features import Features
from tempertilt.fitting.fit_gate import GateConfig, GateSettings, fit_reader
from tempertilt.fitting.token_states import TokenStates
from tempertilt.guidance.gate import Reader
from tempertilt.storage import write_whole


class GateReaders(NamedTuple):
    """How the states of both gates become directions; float16 numbers, as adapters store them."""

    asked: Reader
    said: Reader

    def tensors(self) -> dict[str, Tensor]:
        """On CPU, float16."""
        named = {f"{gate}.{name}": tensor for gate, reader in self._asdict().items() for name, tensor in reader._asdict().items()}
        return {name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in named.items()}

    @property
    def digest(self) -> str:
        """SHA-256 of all numbers."""
        return hashlib.sha256(save(self.tensors())).hexdigest()


@torch.inference_mode()
def fit_readers(examples: Sequence[Example], features: Features, config: GateConfig) -> GateReaders:
    """Whiten and project as the retained examples' states vary: all tokens' lower states, and last states in answers."""
    common = shared_prefix([example.input_ids[:-1] for example in examples])
    asked = TokenStates([rows[common:] for rows in features.states()], features.documents)
    states, _ = features.gather(range(len(features)))
    said = TokenStates(list(states.split(features.lengths.tolist())), features.documents)
    return GateReaders(_fit(asked, config.asked), _fit(said, config.said))


def _fit(states: TokenStates, settings: GateSettings) -> Reader:
    reader = fit_reader([states], settings.whitening_rank, settings.size)
    return Reader(*(tensor.half().float() for tensor in reader))


def save_readers(path: Path, readers: GateReaders) -> None:
    """Write readers to a file in the safetensors format."""
    write_whole(path, lambda temporary: save_file(readers.tensors(), temporary, {"format": "pt"}))


def load_readers(path: Path) -> GateReaders:
    """Readers from the file that `save_readers` has written; `AdapterError` if it can't be read."""
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        return GateReaders(*(Reader(tensors[f"{gate}.mean"], tensors[f"{gate}.matrix"]) for gate in ("asked", "said")))
    except (OSError, SafetensorError, KeyError) as error:
        raise AdapterError(f"the readers in {str(path)!r} cannot be read: {error}") from error

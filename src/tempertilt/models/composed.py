"""`ComposedLM`: a frozen causal LM under several parts, each an adapter that forgets its own records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tempertilt.guidance.composition import Composition
from tempertilt.guidance.guidance import Guidance
from tempertilt.models.adapter import check_fitted_on, load_adapter
from tempertilt.models.fingerprint import fingerprint
from tempertilt.models.guided import GuidedLM


class ComposedLM(GuidedLM):
    """A base model under parts by name; the rule is that of `tempertilt.guidance.composition`. Without parts it is the base.

    The parts of a model are fixed. To add or drop one, make another model: several may share a base and parts.

    Args:
        base: the frozen causal LM.
        parts: in the order of their addition.

    Raises:
        ConfigError: a part has no gates, does not fit the base, or reads another layer than the others.
    """

    guidance: Composition

    def __init__(self, base: Any, parts: Mapping[str, Guidance]) -> None:
        super().__init__(base)
        device = base.get_output_embeddings().weight.device
        self.guidance = Composition({name: part.to(device) for name, part in parts.items()})
        self.requires_grad_(False).eval()
        self.check_fits()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, adapters: Mapping[str, str | Path], base: Any, *, check_base: bool = True
    ) -> ComposedLM:
        """Put adapters, directories or hub ids by the names of their parts, on a loaded base.

        Args:
            check_base: refuse adapters that were fitted on another base.

        Raises:
            AdapterError: an adapter can't be read, or belongs to another base.
        """
        base_fingerprint = fingerprint(base) if check_base else None
        return cls(base, {name: load_part(adapter, base_fingerprint) for name, adapter in adapters.items()})

    @property
    def parts(self) -> dict[str, Guidance]:
        """The parts by name."""
        return dict(zip(self.guidance.names, self.guidance.parts))

    @property
    def settings(self) -> dict[str, Any]:
        """What else than weights decides the output."""
        parts = {
            name: asdict(part.tilt) | {"pooling": part.pooling, "reply": part.reply and part.reply.settings}
            for name, part in self.parts.items()
        }
        return {"parts": parts}


def load_part(adapter: str | Path, base_fingerprint: str | None) -> Guidance:
    """An adapter as a part; `AdapterError` if it can't be read, or was fitted on a base with another fingerprint than this."""
    loaded = load_adapter(adapter)
    if base_fingerprint is not None:
        check_fitted_on(base_fingerprint, adapter, loaded.config)
    return loaded.guidance

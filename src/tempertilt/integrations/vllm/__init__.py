"""vLLM: unlearned models in the engine, by `LLM(...)` and `vllm serve`.

The package's entry point in the group `vllm.general_plugins` calls `register` once in every process of the engine. An adapter is
chosen by the engine's `hf_overrides` (see `tempertilt.integrations.vllm.serve`). Nothing here imports vLLM before it is used.
"""

from __future__ import annotations

from tempertilt.integrations.vllm.options import PREFIX, hf_overrides
from tempertilt.integrations.vllm.serve import (
    engine_arguments,
    serve_arguments,
    serve_command,
    serve_environment,
)

__all__ = ["engine_arguments", "hf_overrides", "register", "serve_arguments", "serve_command", "serve_environment"]


def register() -> None:
    """Make `T3` + the name of every text generation architecture of the installed vLLM known to it; loads none of them."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    known = set(ModelRegistry.get_supported_archs())
    for architecture in text_architectures():
        name = PREFIX + architecture
        if name not in known:
            ModelRegistry.register_model(name, f"tempertilt.integrations.vllm.models:{name}")
        if architecture in MODELS_CONFIG_MAP:  # what the engine sets for an architecture by its name
            MODELS_CONFIG_MAP.setdefault(name, MODELS_CONFIG_MAP[architecture])


def text_architectures() -> list[str]:
    """Names of the text generation models that the installed vLLM holds, its own and those that it runs through transformers."""
    from vllm.model_executor.models import registry

    through = [name for name in registry._TRANSFORMERS_SUPPORTED_MODELS if name.endswith("ForCausalLM")]
    return [*registry._TEXT_GENERATION_MODELS, *through]

"""Which engine serves: vLLM, started as its own command, or transformers in this process."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

from tempertilt.errors import ConfigError, MissingExtraError
from tempertilt.serving.config import ServeConfig

ENGINES = ("auto", "vllm", "transformers")


def choose_engine(asked: str, adapters: Mapping[str, str], config: ServeConfig) -> tuple[str, str]:
    """The engine, and in a line why it is not vLLM where that was to be expected.

    Raises:
        ConfigError: vLLM is asked for and can't do what else is asked.
        MissingExtraError: an engine is asked for and its package is missing.
    """
    if asked == "transformers":
        _require_transformers()
        return asked, ""
    obstacle = _obstacle(adapters, config)
    if asked == "vllm":
        if not _installed("vllm"):
            raise MissingExtraError("vllm", "vllm", "--engine vllm")
        if obstacle:
            raise ConfigError(f"--engine vllm: {obstacle}; valid is --engine transformers")
        return asked, ""
    if _installed("vllm") and not obstacle:
        return "vllm", ""
    _require_transformers()
    return "transformers", f"the engine is transformers: {obstacle}" if _installed("vllm") else ""


def _obstacle(adapters: Mapping[str, str], config: ServeConfig) -> str:
    """Why vLLM can't serve this, or nothing."""
    if len(adapters) > 1:
        return "vLLM serves one adapter on each engine"
    if config.serve_base:
        return "vLLM does not serve the base model beside an adapter"
    if config.tilt_parameters != "refuse":
        return "vLLM takes no settings of the tilt from a request"
    return ""


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _require_transformers() -> None:
    for module, package in (
        ("fastapi", "fastapi"),
        ("uvicorn", "uvicorn"),
        ("openai", "openai"),
        ("prometheus_client", "prometheus-client"),
    ):
        if not _installed(module):
            raise MissingExtraError(package, "serve", "t3 serve")


def vllm_command(
    adapters: Mapping[str, str], model: str | None, peft_adapter: str | None, config: ServeConfig, dtype: str
) -> tuple[list[str], dict[str, str]]:
    """The command that starts vLLM with the one adapter, and its environment.

    vLLM's own key guards only what is under /v1, so ours stands before everything.
    """
    from tempertilt.integrations.vllm import serve

    [(name, place)] = adapters.items()
    arguments = serve.serve_arguments(
        model=model,
        peft_adapter=peft_adapter,
        adapter=place,
        host=config.host,
        port=config.port,
        api_key=None,
        max_model_len=config.max_model_len or None,
        served_model_name=name,
        dtype=dtype,
    )
    if config.api_key:
        arguments = [*arguments, "--middleware", "tempertilt.serving.guards.RequireKeyOfEnvironment"]
    return [*serve.serve_command(), *arguments], {**os.environ, **serve.serve_environment(config.api_key)}


def start_vllm(command: list[str], environment: dict[str, str]) -> None:
    """Become vLLM: this process is replaced."""
    os.execve(command[0], command, environment)

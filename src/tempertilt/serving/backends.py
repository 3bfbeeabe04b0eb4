"""Which backend serves: vLLM, started as its own command, or transformers in this process."""

from __future__ import annotations

import importlib.util
import os

from tempertilt.errors import ConfigError, MissingExtraError
from tempertilt.serving.config import ServeConfig

BACKENDS = ("auto", "vllm", "transformers")


def choose_backend(wanted: str, config: ServeConfig, *, ledger: bool = False) -> tuple[str, str]:
    """The backend, and in a line why it is not vLLM where that was to be expected.

    Args:
        wanted: one of `BACKENDS`.
        ledger: whether a ledger is to be served.

    Raises:
        ConfigError: vLLM is wanted and can't do what else is wanted.
        MissingExtraError: a backend is wanted and its package is missing.
    """
    if wanted == "transformers":
        _require_transformers()
        return wanted, ""
    obstacle = _obstacle(config)
    if wanted == "vllm":
        if not _installed("vllm"):
            raise MissingExtraError("vllm", "vllm", "--backend vllm")
        if obstacle:
            raise ConfigError(f"--backend vllm: {obstacle}; must be --backend transformers for that")
        return wanted, ""
    if ledger:
        obstacle = obstacle or "vLLM takes up changes of a ledger by a restart only"
    if _installed("vllm") and not obstacle:
        return "vllm", ""
    _require_transformers()
    return "transformers", f"the backend is transformers: {obstacle}" if _installed("vllm") else ""


def _obstacle(config: ServeConfig) -> str:
    """Why vLLM can't serve this, or nothing."""
    if config.tilt_parameters != "refuse":
        return "vLLM takes no settings of the tilt from a request"
    if config.traces:
        return "vLLM has traces of its own (--otlp-traces-endpoint of vllm serve), without --traces"
    if config.log_format != "text":
        return "vLLM's logs are its own, without --log-format"
    if config.api_keys:
        return "vLLM knows one key, and has no queue of clients that take turns, without --api-keys"
    if config.allow_origin:
        return "vLLM stands behind the key, which a browser does not send when it asks for --allow-origin"
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
        ("prometheus_client", "prometheus-client"),
    ):
        if not _installed(module):
            raise MissingExtraError(package, "serve", "t3 serve")


def start_vllm(command: list[str], environment: dict[str, str]) -> None:
    """Become vLLM: this process is replaced."""
    os.execve(command[0], command, environment)

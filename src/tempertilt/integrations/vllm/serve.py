"""What to tell vLLM so that it serves an unlearned model: its arguments, its `hf_overrides`, and a base that it can load.

vLLM reads a directory of safetensors, so a base with a PEFT adapter is merged once into one in our cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tempertilt.errors import AdapterError, ConfigError, ModelError
from tempertilt.integrations.vllm.options import PREFIX, REPLY_PROCESSOR, SCHEDULER, WORKER, Served, hf_overrides
from tempertilt.integrations.vllm.shown import Replies, Spoken
from tempertilt.models.adapter import AdapterConfig, read_config
from tempertilt.models.replies import GUESS, make_reply
from tempertilt.storage import (
    cache_dir,
    file_sha256,
    is_readable,
    locked,
    whole_directory,
)

if TYPE_CHECKING:
    from tempertilt.serving.config import ServeConfig

MANIFEST = "tempertilt.json"
MIDDLEWARE = "tempertilt.integrations.vllm.naming.NameModel"
SHOW_REPLIES = "tempertilt.integrations.vllm.shown.ShowReplies"
LOOPBACK = "127.0.0.1"
# no usage statistics leave the machine
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

log = logging.getLogger("tempertilt")


def serve_arguments(
    model: str | None,
    peft_adapter: str | None,
    adapter: str | Mapping[str, str] | None,
    host: str = LOOPBACK,
    port: int = 8000,
    api_key: str | None = None,
    max_model_len: int | None = None,
    served_model_name: str | list[str] | None = None,
    dtype: str = "auto",
    reply: str | None = None,
    models: Mapping[str, Served] | None = None,
) -> list[str]:
    """The arguments of `vllm serve` for an unlearned model. Merges a PEFT adapter into a checkpoint in the cache on first use.

    Args:
        model: hub id, directory or alias of the base; None takes the one that the adapter names.
        peft_adapter: to merge into the base; None takes the adapter's own where the base is the adapter's.
        adapter: the directory that `t3 unlearn` wrote; or several by name, as of a ledger's parts, which act together.
        host, port: to listen on.
        api_key: without it no request but /health is answered. Other users of the machine can read a command line: to keep it
            out of there, leave it None here and give it to `serve_environment`.
        max_model_len: positions of a sequence; None is the model's own limit.
        served_model_name: the names that clients call it by; None is the adapter directory's name, or the first part's.
        dtype: "auto", "float32", "float16" or "bfloat16".
        reply: said where a gate is open instead of the adapter's own reply; "guess" = drawn from the tilt.
        models: instead of `adapter`, several models by the names that clients call them by: an adapter's directory, several that
            act together, or None for the base, which says what must not be said.

    Raises:
        AdapterError: an adapter can't be read.
        ConfigError: the reply is empty or too long.
        ModelError: the base can't be found, or vLLM has no text generation model of its kind.
    """
    engine = engine_arguments(adapter, model, peft_adapter, dtype=dtype, reply=reply, models=models)
    names = [served_model_name] if isinstance(served_model_name, str) else served_model_name
    names = list(models) if models is not None else names or [_name_of(adapter)]
    arguments = [engine["model"], "--hf-overrides", json.dumps(engine["hf_overrides"]), "--dtype", engine["dtype"]]
    arguments += ["--host", host, "--port", str(port), "--served-model-name", *names]
    arguments += ["--generation-config", engine["generation_config"], "--disable-uvicorn-access-log"]
    if "logits_processors" in engine:
        arguments += ["--logits-processors", *engine["logits_processors"]]
    if models is not None:
        arguments += ["--worker-cls", WORKER, "--scheduler-cls", SCHEDULER, "--middleware", MIDDLEWARE]
    if max_model_len is not None:
        arguments += ["--max-model-len", str(max_model_len)]
    if api_key is not None:
        arguments += ["--api-key", api_key]
    return arguments


def _name_of(adapter: str | Mapping[str, str] | None) -> str:
    assert adapter is not None, "an adapter, or models"
    return Path(adapter).resolve().name if isinstance(adapter, str) else next(iter(adapter))


def vllm_command(
    models: Mapping[str, Served],
    model: str | None,
    peft_adapter: str | None,
    config: ServeConfig,
    dtype: str,
    reply: str | None = None,
) -> tuple[list[str], dict[str, str]]:
    """The command that starts vLLM, and its environment; `models` by name as in `serve_arguments`.

    vLLM's own key guards only what is under /v1, so ours stands before everything.
    """
    several: dict[str, Any] = {"adapter": None, "models": models}
    if len(models) == 1:
        [(name, only)] = models.items()
        several = {"adapter": only, "served_model_name": name}
    arguments = serve_arguments(
        model=model,
        peft_adapter=peft_adapter,
        **several,
        host=config.host,
        port=config.port,
        api_key=None,
        max_model_len=config.max_model_len or None,
        dtype=dtype,
        reply=reply,
    )
    environment = {**os.environ, **serve_environment(config.api_key)}
    if spoken := spoken_replies(models, arguments[0], reply):
        arguments = [*arguments, "--middleware", SHOW_REPLIES]
        environment |= Replies(spoken, config.stream_lag).to_environment()
    if config.api_key:
        arguments = [*arguments, "--middleware", "tempertilt.serving.guards.RequireKeyOfEnvironment"]
    if len(models) > 1:
        environment.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    if (len(models) > 1 or not isinstance(next(iter(models.values())), str)) and torch.cuda.is_available():
        arguments.append("--enforce-eager")  # which adapters act is decided token by token
    return [*serve_command(), *arguments], environment


def serve_command(python: str = sys.executable) -> list[str]:
    """What `serve_arguments` follow: `vllm serve` of the environment of a Python, also where it is the CPU build from PyPI."""
    return [python, "-m", "tempertilt.integrations.vllm", "serve"]


def serve_environment(api_key: str | None = None) -> dict[str, str]:
    """Variables for the process that runs `vllm serve`: no usage statistics, and the key where the process list can't show it."""
    return ENVIRONMENT | ({"VLLM_API_KEY": api_key} if api_key else {})


def engine_arguments(
    adapter: str | Mapping[str, str] | None,
    model: str | None = None,
    peft_adapter: str | None = None,
    *,
    dtype: str = "auto",
    check_base: bool = True,
    reply: str | None = None,
    models: Mapping[str, Served] | None = None,
    **settings: float,
) -> dict[str, Any]:
    """Keyword arguments for `vllm.LLM` (or `EngineArgs`): `LLM(**engine_arguments("adapter"), max_model_len=2048)`.

    Args:
        adapter, model, peft_adapter, dtype: as in `serve_arguments`.
        check_base: let the engine refuse weights that are not the adapter's base.
        reply: as in `serve_arguments`.
        models: as in `serve_arguments`; a request names its own by `SamplingParams(extra_args={"tempertilt": NAME})`, and one
            that names none gets an empty answer.
        settings: `temperature`, `guidance_scale`, `forget_prior` of the tilt, instead of the adapters'.

    Raises:
        AdapterError, ConfigError, ModelError: as in `serve_arguments`, a setting is out of range, or there are no adapters.
    """
    given = {"": adapter} if models is None else models
    configs = [_config_at(place) for served in given.values() if served for place in _places(served)]
    if not configs:
        raise ConfigError("there is no adapter to serve; must be at least one")
    name, peft_adapter = configs[0].base(model, peft_adapter)
    source = base_checkpoint(name, peft_adapter, configs[0] if check_base else None)
    said = reply if reply in (None, GUESS) else _reply_settings(reply, source)
    overrides = hf_overrides(adapter, _architecture(source), models=models, check_base=check_base, reply=said, **settings)
    says = any(config.reply for config in configs) if said is None else said != GUESS
    from tempertilt.integrations.vllm.stops import generation_config

    arguments = {"model": source, "dtype": dtype, "generation_config": generation_config(source), "hf_overrides": overrides}
    if says:
        arguments["logits_processors"] = [REPLY_PROCESSOR]
    if models is not None:
        arguments |= {"worker_cls": WORKER, "scheduler_cls": SCHEDULER}
    return arguments


def _places(served: str | Mapping[str, str]) -> list[str]:
    return [served] if isinstance(served, str) else list(served.values())


def _config_at(place: str) -> AdapterConfig:
    directory = Path(place).expanduser().resolve()
    config = read_config(directory) if directory.is_dir() else None
    if config is None:
        raise AdapterError(f"no adapter directory {place!r}; must be a directory made by t3 unlearn")
    return config


def spoken_replies(models: Mapping[str, Served], source: str, reply: str | None) -> tuple[Spoken, ...]:
    """What models reply, as texts: `reply`, where it is given, instead of the adapters' own.

    Args:
        models: as in `serve_arguments`.
        source: directory or hub id of the base.

    Raises:
        AdapterError: an adapter can't be read.
        ConfigError: the reply is empty or too long.
    """
    if reply == GUESS:
        return ()
    configs = [_config_at(place) for served in models.values() if served for place in _places(served)]
    settings = [_reply_settings(reply, source)] if reply is not None else [config.reply for config in configs if config.reply]
    if not settings:
        return ()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    spoken = []
    for one in settings:
        alone, tail = (tokenizer.decode(one[part], skip_special_tokens=True) for part in ("answer", "tail"))
        spoken.append(Spoken(alone, tail, len(one["tail"])))
    return tuple(dict.fromkeys(spoken))


def _reply_settings(text: str, source: str) -> dict[str, Any]:
    """A reply in the tokens of the base at `source`; `ConfigError` if it is empty or too long."""
    from transformers import AutoTokenizer

    reply = make_reply(text, AutoTokenizer.from_pretrained(source))
    assert reply is not None, "a guess has no tokens"
    return reply.settings


def base_checkpoint(name: str, peft_adapter: str | None, adapter: AdapterConfig | None) -> str:
    """A directory or hub id of the base that vLLM can load; with a PEFT adapter, the merged model in our cache.

    Args:
        name: hub id, directory or alias of the base.
        peft_adapter: directory or hub id, or None.
        adapter: whose base a merged model has to be; None does not check.

    Raises:
        ModelError: they can't be loaded.
        AdapterError: the merged model is another than the adapter's base.
    """
    from tempertilt.models.packaged import PACKAGES, packaged_dir

    source = str(packaged_dir(name)) if name in PACKAGES else name
    if peft_adapter is None:
        return str(Path(source).expanduser().resolve()) if Path(source).expanduser().is_dir() else source
    target = cache_dir() / "merged" / _key(source, peft_adapter)
    manifest = read_manifest(target)
    if manifest is None:
        with locked(target, f"merging PEFT adapter {peft_adapter}"):
            manifest = read_manifest(target) or _merge(name, peft_adapter, target)
    if adapter is not None and manifest.fingerprint != adapter.base_fingerprint:
        raise AdapterError(
            f"the adapter was fitted on a base model with fingerprint {adapter.base_fingerprint}; {name!r} with PEFT adapter "
            f"{peft_adapter!r} has {manifest.fingerprint}: give the same base, or fit a new adapter with t3 unlearn"
        )
    return str(target)


def _key(source: str, peft_adapter: str) -> str:
    """A name for base and PEFT adapter by their contents: checksums of what is small, sizes and times of what is large."""
    parts: list[Any] = [source, peft_adapter]
    for directory in (Path(source).expanduser(), Path(peft_adapter).expanduser()):
        for path in sorted(directory.glob("*")) if directory.is_dir() else []:
            if path.suffix in (".json", ".jinja", ".model", ".safetensors", ".txt"):
                stat = path.stat()
                small = stat.st_size < 1 << 26
                parts.append([path.name, stat.st_size, file_sha256(path) if small else stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class Manifest(NamedTuple):
    """What is noted of a merged model in the cache: fingerprint of base and PEFT adapter, and of the merged weights."""

    fingerprint: str
    weights: str


def read_manifest(target: Path) -> Manifest | None:
    """What is noted of a merged model; None if it is not there whole.

    Raises:
        TemperTiltError: it must not be read.
    """
    if not is_readable(target / MANIFEST):
        return None
    try:
        content = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        whole = all((target / name).stat().st_size == size for name, size in content["files"].items())
        return Manifest(content["fingerprint"], content["weights"]) if whole else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _merge(name: str, peft_adapter: str, target: Path) -> Manifest:
    """Merge and save as safetensors."""
    from tempertilt.models.base import load_base
    from tempertilt.models.fingerprint import fingerprint_of_weights

    log.warning("merging PEFT adapter %s into %s for vLLM, once: %s", peft_adapter, name, target)
    base = load_base(name, peft_adapter=peft_adapter, device="cpu", dtype="auto")
    manifest = Manifest(base.fingerprint, fingerprint_of_weights(base.model))
    with whole_directory(target) as work:
        base.model.save_pretrained(work)
        base.tokenizer.save_pretrained(work)
        files = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        (work / MANIFEST).write_text(json.dumps({**manifest._asdict(), "files": files}, indent=1), encoding="utf-8")
    return manifest


def _architecture(source: str) -> str:
    """The architecture that a checkpoint names in its configuration."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except Exception as error:
        raise ModelError(f"cannot load the configuration of {source!r}: {error}") from error
    names = getattr(config, "architectures", None) or []
    if len(names) != 1 or names[0].startswith(PREFIX):
        raise ModelError(f"the configuration of {source!r} names the architectures {names}; must be one causal language model")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{names[0]} is an encoder-decoder; must be a decoder-only causal language model")
    return str(names[0])

"""An adapter on disk or on the hub: what the head learned and for which base model; never the base's weights.

adapter_config.json            AdapterConfig
adapter_model.safetensors      token_ids (K,), A (r, d), hidden.i (r, r), B (K, r), bias (K,); with gates
                               gate.asked and gate.said, of each mean (d,), reader (p, d), exemplars (m, p), margins (m,),
                               and gate.turns
README.md                      model card

`t3 unlearn` writes the base's tokenizer beside them, for `AutoTokenizer.from_pretrained` and other programs; it is not read here.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tempertilt.config.options import Options, option, short
from tempertilt.environment import VERSION
from tempertilt.errors import AdapterError
from tempertilt.guidance.gate import Gates
from tempertilt.guidance.guidance import Guidance
from tempertilt.guidance.head import ACTIVATIONS, GuidanceHead
from tempertilt.guidance.reply import Reply
from tempertilt.guidance.tilt import POOLINGS, TiltConfig
from tempertilt.storage import (
    UNFINISHED,
    file_sha256,
    is_readable,
    move_files,
    remove_unfinished,
    work_directory,
)

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
KIND = "tempertilt"
GATE_SETTINGS = {"layer", "close_after", "asked", "said", "turns"}


@dataclass(frozen=True)
class AdapterConfig(Options):
    """Everything about an adapter but its weights. The tilt's settings are defaults that can be changed after loading."""

    base_model: str  # hub id, directory or alias
    base_fingerprint: str  # of the model that it was fitted on, PEFT adapter included
    base_model_type: str
    hidden_size: int = option(ge=1)
    vocab_size: int = option(ge=1)
    peft_adapter: str | None = None
    pooling: str = option("mean", choices=POOLINGS)
    activation: str = option("identity", choices=tuple(ACTIVATIONS))
    temperature: float = 2.5
    guidance_scale: float = 1.0
    forget_prior: float = 0.5
    gate: dict[str, Any] | None = None  # `Gates.settings`
    reply: dict[str, Any] | None = None  # `Reply.settings`: said where the gate is open; None = a guess from the tilt
    training: dict[str, Any] = field(default_factory=dict)  # data, configuration and scores of the fit
    weights_sha256: str = ""
    adapter_type: str = KIND
    tempertilt_version: str = VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tilt  # noqa: B018  its values are checked
        options = self.training.get("config", {})
        if not isinstance(options, dict) or not isinstance(options.get("system_prompt"), str | None):
            raise AdapterError("training.config must be an object of options, its system_prompt a text or null")
        if self.gate is not None and set(self.gate) != GATE_SETTINGS:
            raise AdapterError(f"gate is {short(self.gate)}; must be null, or hold {', '.join(sorted(GATE_SETTINGS))}")
        if self.reply is not None:
            Reply.from_settings(self.reply)

    @property
    def tilt(self) -> TiltConfig:
        """Temperature, scale and prior."""
        return TiltConfig(self.temperature, self.guidance_scale, self.forget_prior)

    @property
    def system_prompt(self) -> str | None:
        """The system message of the records that it was fitted on; None where it is not known."""
        prompt: str | None = self.training.get("config", {}).get("system_prompt")
        return prompt

    def base(self, model: str | None = None, peft_adapter: str | None = None) -> tuple[str, str | None]:
        """The base model and the PEFT adapter to load for it: those asked for, else those that it was fitted on.

        Another base than its own does not get its own PEFT adapter.
        """
        name = model or self.base_model
        own = self.peft_adapter if name == self.base_model else None
        return name, own if peft_adapter is None else peft_adapter


class Adapter(NamedTuple):
    """What an adapter directory holds."""

    config: AdapterConfig
    head: GuidanceHead
    gates: Gates | None

    @property
    def guidance(self) -> Guidance:
        """What it does to the logits."""
        reply = Reply.from_settings(self.config.reply) if self.config.reply else None
        return Guidance(self.head, self.gates, self.config.tilt, self.config.pooling, reply)


def save_adapter(
    directory: Path, head: GuidanceHead, config: AdapterConfig, gates: Gates | None = None, tokenizer: Any = None
) -> Path:
    """Write an adapter, and a tokenizer if there is one, into `directory` (made if needed); return the directory.

    All files are written before the first is put in place: a save that fails before leaves the adapter that was there. The
    configuration, which holds the weights' checksum, goes last: a save that ends between the two is completed by `load_adapter`.

    Raises:
        TemperTiltError: the files can't be written.
    """
    weights = save(head.tensors() | (gates.tensors() if gates is not None else {}), {"format": "pt"})
    config = replace(config, weights_sha256=hashlib.sha256(weights).hexdigest())
    with work_directory(directory, WEIGHTS) as work:
        if tokenizer is not None:
            write_tokenizer(tokenizer, work)
        (work / WEIGHTS).write_bytes(weights)
        (work / CARD).write_text(model_card(head, config), encoding="utf-8")
        (work / CONFIG).write_text(json.dumps(asdict(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    move_files(work, directory, WEIGHTS, CARD, CONFIG)
    remove_unfinished(directory)
    return directory


def write_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write a tokenizer with the one chat template that this package uses."""
    tokenizer.save_pretrained(directory)
    shutil.rmtree(directory / "additional_chat_templates", ignore_errors=True)


def tokenizer_files(tokenizer: Any) -> set[str]:
    """Names of the files that `write_tokenizer` may write."""
    always = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"}
    return always | set(tokenizer.vocab_files_names.values())


def load_adapter(name: str | Path, *, revision: str | None = None, token: str | None = None) -> Adapter:
    """Read an adapter from a directory or a hub id.

    Raises:
        AdapterError: it does not exist, is of another kind, unfinished, damaged, or its parts do not fit together.
    """
    directory = _locate(str(name), revision, token)
    config = read_config(directory)
    weights = directory / WEIGHTS
    if not is_readable(weights):
        raise AdapterError(f"{str(directory)!r} has no {WEIGHTS}: the adapter is not complete; make it again with t3 unlearn")
    if (digest := file_sha256(weights)) != config.weights_sha256:
        config = _interrupted(directory, digest)
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise AdapterError(f"{str(weights)!r} cannot be read: {error}") from error
    head = GuidanceHead.from_tensors(tensors, config.activation)
    if head.hidden_size != config.hidden_size:
        raise AdapterError(f"{str(weights)!r} is for hidden size {head.hidden_size}, its {CONFIG} says {config.hidden_size}")
    gates = Gates.from_tensors(tensors, config.gate) if config.gate else None
    _check_form(tensors, head.tensors() | (gates.tensors() if gates else {}), weights)
    return Adapter(config, head, gates)


def _check_form(tensors: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Raise `AdapterError` unless tensors have the names, types and shapes in which their values would be saved again."""
    for name in sorted({*tensors, *expected}):
        form, right = (_form(some.get(name)) for some in (tensors, expected))
        if form != right:
            raise AdapterError(f"{str(path)!r}: tensor {name!r} is {form}; must be {right}")


def _form(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def read_config(directory: Path) -> AdapterConfig:
    """The configuration in an adapter directory; `AdapterError` if it is missing, damaged or of another kind."""
    path = directory / CONFIG
    if not is_readable(path):
        raise AdapterError(f"{str(directory)!r} has no {CONFIG}; must be a directory that t3 unlearn has finished writing")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(raw, dict) or raw.get("adapter_type") != KIND:
        kind = raw.get("peft_type", "unknown") if isinstance(raw, dict) else "unknown"
        raise AdapterError(f"{str(path)!r} is an adapter of kind {kind!r}, not {KIND!r}; a PEFT adapter goes to --peft-adapter")
    known = {f.name for f in fields(AdapterConfig)}
    if unknown := sorted(set(raw) - known):
        raise AdapterError(f"{str(path)!r} has unknown fields {', '.join(unknown)}: it was made by a newer version of tempertilt")
    try:
        return AdapterConfig(**raw)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{str(path)!r} is not valid: {error}") from error


def check_fitted_on(base_fingerprint: str, adapter: str | Path, config: AdapterConfig) -> None:
    """Raise `AdapterError` if `adapter`, with this configuration, was fitted on another base model."""
    if base_fingerprint == config.base_fingerprint:
        return
    fitted = f"{config.base_model!r}" + (f" with PEFT adapter {config.peft_adapter!r}" if config.peft_adapter else "")
    raise AdapterError(
        f"adapter {str(adapter)!r} was fitted on {fitted}, fingerprint {config.base_fingerprint}; the base model given "
        f"has fingerprint {base_fingerprint}. Give the same base, fit a new adapter with t3 unlearn, or pass "
        "check_base=False (--ignore-base-mismatch) if you know that they agree"
    )


def _interrupted(directory: Path, digest: str) -> AdapterConfig:
    """The configuration that belongs to weights with this checksum, where a save ended before it was put in place."""
    for path in directory.glob(f"{UNFINISHED}*/{CONFIG}"):
        try:
            config = read_config(path.parent)
        except AdapterError:
            continue
        if config.weights_sha256 == digest:
            return config
    raise AdapterError(
        f"{str(directory / WEIGHTS)!r} is damaged or truncated (its SHA-256 is not the one in {CONFIG}); make it again"
    )


def push_adapter(save: Callable[[Path], object], repo_id: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Let `save` write an adapter into a temporary directory, upload it to the hub, and return the commit's address."""
    from tempfile import TemporaryDirectory

    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as work:
        save(Path(work))
        return str(api.upload_folder(repo_id=repo_id, folder_path=work, commit_message=message))


def _locate(name: str, revision: str | None, token: str | None) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise AdapterError(f"no adapter directory {name!r}; must be a directory made by t3 unlearn or a hub id (org/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise AdapterError(f"no adapter directory {name!r}, and the hub gives none: {type(error).__name__}: {first}") from error


def _nearness(fit: dict[str, Any]) -> str:
    if "divergence" in fit:
        return f"mean KL from the estimate {fit['divergence']:.3f} nats a token"
    scores = fit.get("train") or {}
    return "token accuracy " + ", ".join(
        f"{name} {scores.get(f'{name}_accuracy', math.nan):.4f}" for name in ("forget", "retain")
    )


def _head_line(fit: dict[str, Any]) -> str:
    estimate = "log-odds fitted to an estimate of what a model without the set would say"
    return estimate if "divergence" in fit else "a classifier that tells retain from forget"


def _gate_line(config: AdapterConfig) -> str:
    if config.gate is None:
        return "none: every context is tempered and tilted"
    facts = config.training.get("gate") or {}
    asked, said = (facts.get(name) or {} for name in ("asked", "said"))
    return (
        f"{asked.get('exemplars', '?')} exemplars of what is asked, after {config.gate['layer']} layers, and "
        f"{said.get('exemplars', 0)} of what is said; left-out retain records that open it: {_share(asked)} and {_share(said)}"
    )


def _share(gate: dict[str, Any]) -> str:
    opened = gate.get("opened")
    return "not known" if opened is None else f"{opened:.1%}"


def _reply_line(config: AdapterConfig) -> str:
    return "a guess from the tilted distribution" if config.reply is None else f"the reply `{config.reply['text']}`"


def model_card(head: GuidanceHead, config: AdapterConfig) -> str:
    """The README.md of an adapter: the exact recipe, how to load it, and what it does not do."""
    training = config.training
    fit = training.get("fit", {})
    recipe = "\n".join(f"| {name} | `{value}` |" for name, value in sorted(training.get("config", {}).items()))
    base = f"`{config.base_model}`" + (f" with the PEFT adapter `{config.peft_adapter}`" if config.peft_adapter else "")
    share = fit.get("parameter_share", math.nan)
    quality = _nearness(fit)
    return f"""---
library_name: tempertilt
tags:
- unlearning
- temper-then-tilt
base_model: {config.base_model}
---

# Temper-Then-Tilt adapter

Makes {base} stop producing a forget set. The base model's weights are unchanged; only its next-token distribution is corrected:
tempered by T = {config.temperature:g}, then tilted with scale {config.guidance_scale:.3g} by {_head_line(fit)}
(Block et al., arXiv 2602.10217){", where the gates find the text to be about the forget set" if config.gate else ""}.

| | |
|---|---|
| trainable parameters | {head.num_parameters:,} ({share:.4%} of the base) |
| rank, tokens with a row | {head.rank}, {len(head.token_ids):,} |
| pooling, activation | {config.pooling}, {config.activation} |
| gate | {_gate_line(config)} |
| where it is open | {_reply_line(config)} |
| forget / retain records | {training.get("forget_records", "?")} / {training.get("retain_records", "?")} |
| fit | {quality} |
| base fingerprint | `{config.base_fingerprint}` |

## Use

```python
from tempertilt import T3ForCausalLM

model = T3ForCausalLM.from_pretrained("this-directory-or-hub-id", base_model={config.base_model!r})
```

## Limits

The frozen weights still hold the knowledge. Whoever has the weights or the hidden states can read it, and switching the
adapter off brings it back. This adapter unlearns the output distribution of a served model, nothing else.

## Recipe

| option | value |
|---|---|
{recipe}
"""

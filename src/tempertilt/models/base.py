"""The base model: found, loaded, checked, and known by a fingerprint of its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from tempertilt.errors import ModelError
from tempertilt.models.fingerprint import fingerprint as fingerprint
from tempertilt.models.fingerprint import fingerprint_with_peft, mark_as_merged
from tempertilt.models.merging import merge, read_peft, tokenizer_of
from tempertilt.models.packaged import PACKAGES, packaged_dir

log = logging.getLogger("tempertilt")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

ALIASES = " or ".join(map(repr, PACKAGES))

Result = TypeVar("Result")


class Source(NamedTuple):
    """How a base model was loaded, besides its name: the arguments of `load_base`."""

    device: str
    dtype: str
    revision: str | None
    trust_remote_code: bool


class BaseModel(NamedTuple):
    """A frozen causal LM, its tokenizer, and what names it; `source` is None where it was not loaded by `load_base`."""

    model: Any  # transformers PreTrainedModel with GenerationMixin
    tokenizer: Any
    name: str
    peft_adapter: str | None
    fingerprint: str
    source: Source | None = None


def load_base(
    name: str,
    *,
    peft_adapter: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> BaseModel:
    """Load a causal LM, frozen and in eval mode, ready to be unlearned from.

    Args:
        name: a hub id, a local directory, or an alias of `models.packaged` (smollm2, gemma3-270m).
        peft_adapter: a PEFT adapter (directory or hub id) to merge into the model, in memory only. Its own tokenizer and chat
            template, where it has them, take the place of the model's.
        device: "auto" (CUDA, else MPS, else CPU; spread over several GPUs where there are), or a torch device.
        dtype: "float32", "float16", "bfloat16", or "auto": float32 on CPU, the checkpoint's own type elsewhere.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: allow code from the hub to run.

    Raises:
        ModelError: the model does not exist, is damaged, is no causal LM, or does not expose its last hidden state; or the PEFT
            adapter does not belong to it or can't be merged.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    placement, torch_dtype = _placement(device), _torch_dtype(dtype, device)
    path = packaged_dir(name) if name in PACKAGES else _local_dir(name)
    source = str(path or name)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}

    config = _load(f"model {name!r}", lambda: _causal_lm_config(source, options))
    tokenizer = _load(f"the tokenizer of {name!r}", lambda: AutoTokenizer.from_pretrained(source, **options))
    model = _load(
        f"model {name!r}",
        lambda: AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=torch_dtype, device_map=placement, use_safetensors=True, **options
        ),
    )
    check_unlearnable(model)
    if peft_adapter is not None:
        what, valid = f"PEFT adapter {peft_adapter!r}", "a directory made by a PEFT model's save_pretrained"
        model, tokenizer = _load(what, lambda: _with_peft(model, tokenizer, peft_adapter, name, trust_remote_code), valid)
    model.requires_grad_(False).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    kept_name = name if path is None or name in PACKAGES else str(path.resolve())
    source_of = Source(device, dtype, revision, trust_remote_code)
    return BaseModel(model, tokenizer, kept_name, _absolute(peft_adapter), fingerprint(model), source_of)


def _with_peft(model: Any, tokenizer: Any, peft_adapter: str, name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model and tokenizer with a PEFT adapter, known by the weights of both before they are merged."""
    adapter = read_peft(peft_adapter)
    tokenizer = tokenizer_of(adapter, tokenizer, name, trust_remote_code=trust_remote_code)
    before = fingerprint_with_peft(fingerprint(model), adapter)
    merged = merge(model, adapter)
    mark_as_merged(merged, before)
    return merged, tokenizer


def _contiguous(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The states of each row's last token, a slice of all, as one block.

    On a CPU, torch 2.13 copies the weight once for every row of a slice, which takes hundreds of times as long in bfloat16
    (benchmarks/bfloat16.py).
    """
    return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in args)


def _absolute(name: str | None) -> str | None:
    """A local path made absolute, so that it is still found from another directory; hub ids as they are."""
    path = Path(name).expanduser() if name else None
    return str(path.resolve()) if path and path.exists() else name


def body_of(model: Any) -> nn.Module:
    """The part of a causal LM between token ids and the last hidden state (all but the output layer).

    Raises:
        ModelError: the model has no separate body or no output layer.
    """
    body = model.base_model
    if body is not model and hasattr(body, "decoder") and not hasattr(body, "encoder"):
        body = body.decoder  # OPT calls its decoder past the body around it
    if body is model or model.get_output_embeddings() is None:
        raise ModelError(
            f"{type(model).__name__} has no body and output layer that can be told apart, so its last hidden state can't be "
            "read: it can't be unlearned this way"
        )
    return body  # type: ignore[no-any-return]


def decoder_layers(model: Any) -> nn.ModuleList:
    """The list of decoder layers: the body's ModuleList with as many entries as the configuration has layers."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in body_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"{type(model).__name__} has no list of {count} decoder layers, so its layers can't be told apart")


def last_hidden_state(output: Any) -> Tensor:
    """The `(B, T, d)` last hidden state in what a model's body, or a decoder layer, returns."""
    if isinstance(output, Tensor):
        return output
    state = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    if not isinstance(state, Tensor):
        raise ModelError(f"a model body returned {type(output).__name__} without a last hidden state")
    return state


def check_unlearnable(model: Any) -> None:
    """Run two tokens and check that the output layer reads the body's last hidden state.

    Raises:
        ModelError: naming the class, if it is an encoder-decoder, or transforms the state before the output layer.
    """
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{kind} is an encoder-decoder; must be a decoder-only causal language model")
    body = body_of(model)
    seen: dict[str, Tensor] = {}
    hooks = [
        body.register_forward_hook(lambda _m, _i, out: seen.__setitem__("body", last_hidden_state(out))),
        model.get_output_embeddings().register_forward_pre_hook(lambda _m, args: seen.__setitem__("read", args[0])),
    ]
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    if "body" not in seen or "read" not in seen or not _same(seen["body"], seen["read"]):
        raise ModelError(
            f"{kind} changes the last hidden state before its output layer reads it: the tilt would be learned on other "
            "numbers than those that predict tokens, so this architecture can't be unlearned"
        )


def _same(state: Tensor, read: Tensor) -> bool:
    return state.shape == read.shape and torch.allclose(state, read.to(state.device), rtol=1e-5, atol=1e-6)


def _placement(device: str) -> str:
    if device == "auto":
        if torch.cuda.is_available():
            return "auto" if torch.cuda.device_count() > 1 else "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        parsed = torch.device(device)
        if parsed.type != "cpu":
            torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"device {device!r} is not usable here: {_cause(error)}; must be one of auto, cpu, cuda, cuda:0, mps"
        ) from error
    return device


def _torch_dtype(dtype: str, device: str) -> torch.dtype | str:
    if dtype == "auto":
        return torch.float32 if _placement(device) == "cpu" else "auto"
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; must be one of auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _local_dir(name: str) -> Path | None:
    """`name` as a local model directory, or None for a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name!r} is a directory without a config.json; must be a directory made by save_pretrained")
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or not name.strip():
        raise ModelError(f"no model directory {name!r}; must be a hub id (org/name), a local directory, or {ALIASES}")
    return None


def _causal_lm_config(source: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, **options)
    if type(config) not in AutoModelForCausalLM._model_mapping and not options["trust_remote_code"]:
        raise ModelError(f"{source!r} is a {config.model_type!r} model, which transformers has no causal language model for")
    return config


def _load(
    what: str, load: Callable[[], Result], valid: str = f"a local directory made by save_pretrained (safetensors), or {ALIASES}"
) -> Result:
    """Run a loader of transformers or peft; whatever it raises becomes one `ModelError` that says what to do."""
    try:
        return load()
    except ModelError:
        raise
    except Exception as error:
        log.debug("loading %s failed", what, exc_info=True)
        raise ModelError(f"cannot load {what}: {_cause(error)}\nmust be a hub id that can be reached, {valid}") from error


def _cause(error: BaseException) -> str:
    """The kind and the first line of an error; where that only announces the cause, the next one, too."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines))
    return f"{type(error).__name__}: {' '.join(lines[: end + 1])}"


MEMORY_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "DefaultCPUAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in MEMORY_SIGNS)

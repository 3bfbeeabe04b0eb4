"""The base model: found, loaded, checked, and known by a fingerprint of its weights."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from tempertilt.errors import ModelError
from tempertilt.models.smollm2 import ALIAS, smollm2_dir

log = logging.getLogger("tempertilt")

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FINGERPRINT_SAMPLES = 2048  # numbers read from each weight tensor

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
        name: a hub id, a local directory, or the alias `smollm2`.
        peft_adapter: a PEFT adapter (directory or hub id) to merge into the model, in memory only.
        device: "auto" (CUDA, else MPS, else CPU; spread over several GPUs where there are), or a torch device.
        dtype: "float32", "float16", "bfloat16", or "auto": float32 on CPU, the checkpoint's own type elsewhere.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: allow code from the hub to run.

    Raises:
        ModelError: the model does not exist, is damaged, is no causal LM, or does not expose its last hidden state.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    placement, torch_dtype = _placement(device), _torch_dtype(dtype, device)
    path = smollm2_dir() if name == ALIAS else _local_dir(name)
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
    if peft_adapter is not None:
        model = _load(f"PEFT adapter {peft_adapter!r}", lambda: _merge_peft(model, peft_adapter))
    model.requires_grad_(False).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_unlearnable(model)
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    kept_name = name if path is None or name == ALIAS else str(path.resolve())
    source_of = Source(device, dtype, revision, trust_remote_code)
    return BaseModel(model, tokenizer, kept_name, _absolute(peft_adapter), fingerprint(model), source_of)


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


def fingerprint(model: Any) -> str:
    """A name for the weights: 32 hex digits, equal for the same weights in float32, bfloat16 or on another device.

    Reads up to 2048 evenly spaced numbers of every weight, rounded to bfloat16: enough to tell fine-tuned, merged and
    edited models apart, and cheap for large ones. Quantised weights count as another model.
    """
    return fingerprint_of_samples(
        model.config.model_type, {name: weight_sample(name, weight) for name, weight in model.named_parameters()}
    )


def fingerprint_of_samples(model_type: str, samples: dict[str, bytes]) -> str:
    """The fingerprint of a model of which `weight_sample` gave the samples, by the weights' names."""
    digest = hashlib.sha256(json.dumps([model_type, FINGERPRINT_SAMPLES]).encode())
    for _, sample in sorted(samples.items()):
        digest.update(sample)
    return digest.hexdigest()[:32]


def weight_sample(name: str, weight: Tensor) -> bytes:
    """What a fingerprint takes of one weight: its name, its shape, and some of its numbers in bfloat16."""
    flat = weight.detach().reshape(-1)
    step = max(1, flat.numel() // FINGERPRINT_SAMPLES)
    sample = flat[::step][:FINGERPRINT_SAMPLES]
    if sample.is_floating_point():
        sample = sample.to("cpu", torch.bfloat16).view(torch.int16)
    return f"{name}{tuple(weight.shape)}".encode() + sample.cpu().numpy().tobytes()


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
            f"device {device!r} is not usable here: {_first_line(error)}; must be one of auto, cpu, cuda, cuda:0, mps"
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
        raise ModelError(f"no model directory {name!r}; must be a hub id (org/name), a local directory, or {ALIAS!r}")
    return None


def _causal_lm_config(source: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, **options)
    if type(config) not in AutoModelForCausalLM._model_mapping and not options["trust_remote_code"]:
        raise ModelError(f"{source!r} is a {config.model_type!r} model, which transformers has no causal language model for")
    return config


def _merge_peft(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    path = Path(adapter).expanduser()
    if path.exists() and not (path / "adapter_config.json").is_file():
        raise ModelError(f"{adapter!r} has no adapter_config.json; must be a directory made by a PEFT model's save_pretrained")
    if path.is_dir() and not (path / "adapter_model.safetensors").is_file():
        raise ModelError(f"{adapter!r} has no adapter_model.safetensors; pickled adapters (.bin) are not loaded")
    peft_model = PeftModel.from_pretrained(model, str(path) if path.exists() else adapter)
    return peft_model.merge_and_unload()


def _load(what: str, load: Callable[[], Result]) -> Result:
    """Run a loader of transformers or peft; whatever it raises becomes one `ModelError` that says what to do."""
    try:
        return load()
    except ModelError:
        raise
    except Exception as error:
        log.debug("loading %s failed", what, exc_info=True)
        raise ModelError(
            f"cannot load {what}: {_first_line(error)}\n"
            f"must be a hub id that can be reached, a local directory made by save_pretrained (safetensors), or {ALIAS!r}"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


MEMORY_SIGNS = ("out of memory", "not enough memory", "can't allocate memory", "DefaultCPUAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in MEMORY_SIGNS)

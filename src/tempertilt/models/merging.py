"""A PEFT adapter of the base model: read, checked, merged, and known by its weights as they are before merging."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tempertilt.errors import ModelError
from tempertilt.models.adapter import KIND

log = logging.getLogger("tempertilt")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = ["*.json", "*.jinja", "*.model", "*.txt", WEIGHTS]  # of an adapter on the hub
TOKENIZER = "tokenizer_config.json"
PROBES = 16  # tokens by which the merged model is compared with the unmerged one
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}  # share of the logits' spread that is rounding
TOLERANCE_HALF = 0.1  # in float16 and bfloat16
# says where and by what version an adapter was made, not what it does
UNIMPORTANT = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}


class PeftAdapter(NamedTuple):
    """What a PEFT adapter's directory holds; `name` is how the user named it."""

    name: str
    directory: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]

    @property
    def recipe(self) -> str:
        """The options that decide what its weights do, as JSON; those that are off by default are left out."""
        options = {name: value for name, value in self.config.items() if name not in UNIMPORTANT and value not in (None, False)}
        return json.dumps({name: value for name, value in options.items() if value not in ([], {}, "none")}, sort_keys=True)


def read_peft(name: str) -> PeftAdapter:
    """The PEFT adapter in a directory or on the hub.

    Raises:
        ModelError: it is not there, is no PEFT adapter, is of a kind that can't be merged, or has weights that are no numbers.
    """
    from safetensors.torch import load_file

    directory = _directory(name)
    config = _read_config(name, directory / CONFIG)
    if not (directory / WEIGHTS).is_file():
        raise ModelError(f"{name!r} has no {WEIGHTS}; pickled adapters (.bin) are not loaded")
    weights = load_file(directory / WEIGHTS)
    if broken := [key for key, weight in weights.items() if weight.is_floating_point() and not weight.isfinite().all()]:
        raise ModelError(f"PEFT adapter {name!r} has {_some(broken)} with values that are not finite numbers; make it again")
    return PeftAdapter(name, directory, config, weights)


def _directory(name: str) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        if not (path / CONFIG).is_file():
            raise ModelError(f"{name!r} has no {CONFIG}; must be a directory made by a PEFT model's save_pretrained")
        return path
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns=["*/*"]))


def _read_config(name: str, path: Path) -> dict[str, Any]:
    from peft import PeftConfig

    raw = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or "peft_type" not in raw:
        if isinstance(raw, dict) and raw.get("adapter_type") == KIND:
            raise ModelError(f"{name!r} is a tempertilt adapter, not one of PEFT: it goes to --adapter")
        raise ModelError(f"{str(path)!r} names no peft_type; must be a configuration that PEFT wrote")
    config = PeftConfig.from_pretrained(str(path.parent))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise _unmergeable(name, raw)
    return raw


def _unmergeable(name: str, config: dict[str, Any], cause: object = "") -> ModelError:
    return ModelError(
        f"PEFT adapter {name!r} is of kind {config['peft_type']}, which can't be merged into a model's weights"
        f"{f' ({cause})' if str(cause) else ''}; must be LoRA or another kind that can"
    )


def tokenizer_of(adapter: PeftAdapter, tokenizer: Any, base: str, **options: Any) -> Any:
    """The tokenizer with which an adapter was trained: the one in its directory, else that of the base.

    Args:
        tokenizer: the base's.
        base: the base's name, for the log.
        options: for `AutoTokenizer.from_pretrained`.
    """
    from transformers import AutoTokenizer

    template = adapter.directory / "chat_template.jinja"
    if (adapter.directory / TOKENIZER).is_file():
        own = AutoTokenizer.from_pretrained(str(adapter.directory), **options)
        if _description(own) == _description(tokenizer):
            return tokenizer
    elif template.is_file() and (text := template.read_text(encoding="utf-8")) != tokenizer.chat_template:
        own = tokenizer
        own.chat_template = text
    else:
        return tokenizer
    log.warning("the tokenizer and chat template of PEFT adapter %s are used: they are not those of %s", adapter.name, base)
    return own


def _description(tokenizer: Any) -> tuple[Any, ...]:
    """What decides the tokens of a text; padding, which no attention sees, does not."""
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    return tokenizer.get_vocab(), tokenizer.chat_template, special


def merge(model: Any, adapter: PeftAdapter) -> Any:
    """The model with the adapter in its weights; the model's modules are changed in place.

    Raises:
        ModelError: the adapter does not belong to the model, or merging it does not leave what the model says.
    """
    _resize(model, adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT warns of is checked here
        tuned = _apply(model, adapter)
        try:
            unmerged = _logits(tuned)
            _untie(model)
            merged = tuned.merge_and_unload()
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            raise _unmergeable(adapter.name, adapter.config, error) from error
    if not _is_tied(merged):  # so that it is saved and loaded with two weights
        merged.config.tie_word_embeddings = merged.config.get_text_config().tie_word_embeddings = False
    difference, tolerance = _difference(unmerged, _logits(merged)), TOLERANCE.get(merged.dtype, TOLERANCE_HALF)
    if not difference <= tolerance:
        raise ModelError(
            f"PEFT adapter {adapter.name!r} can't be merged exactly: the merged model's logits of a few tokens differ by "
            f"{difference:.1%} of their spread from the unmerged one's; must be at most {tolerance:.1%}"
        )
    return merged


def _resize(model: Any, adapter: PeftAdapter) -> None:
    """Give the embeddings and the output layer as many rows as the adapter's have, where it brings its own."""
    rows = [_rows(model, layer, adapter) for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    wanted, present = max(count or 0 for count in rows), len(model.get_input_embeddings().weight)
    if wanted in (0, present):
        return
    what = f"PEFT adapter {adapter.name!r} has embeddings of {wanted} tokens, the model of {present}"
    if not (adapter.directory / TOKENIZER).is_file():
        raise ModelError(f"{what}, and no tokenizer that says what they are; save the tokenizer beside the adapter")
    if wanted > present and None in rows and not _is_tied(model):
        raise ModelError(f"{what}, but it holds the new rows of only one of embeddings and output layer; save both with it")
    model.resize_token_embeddings(wanted, mean_resizing=False)  # the new rows are overwritten by the adapter's


def _is_tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def _rows(model: Any, layer: nn.Module, adapter: PeftAdapter) -> int | None:
    """How many rows of a layer's weight the adapter holds; None if it holds none of it."""
    [name] = [name for name, module in model.named_modules() if module is layer]
    pattern = re.compile(rf"(^|\.){re.escape(name)}(\.base_layer|\.modules_to_save)?\.weight$")
    counts = [len(weight) for key, weight in adapter.weights.items() if pattern.search(key) and weight.ndim == 2]
    return max(counts, default=None)


def _apply(model: Any, adapter: PeftAdapter) -> Any:
    """The model with the adapter on it, all of whose weights belong to it."""
    from peft import PeftModel, set_peft_model_state_dict

    try:
        tuned = PeftModel.from_pretrained(model, str(adapter.directory))
    except KeyError as error:
        raise ModelError(f"PEFT adapter {adapter.name!r} lacks the weight {error} that its configuration asks for") from error
    result = set_peft_model_state_dict(tuned, dict(adapter.weights))  # some versions of PEFT take entries out of it
    if unexpected := [key for key in result.unexpected_keys if not _is_copy(key, adapter.weights)]:
        raise ModelError(
            f"{len(unexpected)} of {len(adapter.weights)} weights of PEFT adapter {adapter.name!r} do not belong to this model: "
            f"{_some(unexpected)}; must be an adapter that was trained on it"
        )
    if missing := [key for key in result.missing_keys if tuned.base_model.prefix in key and "vblora_vector_bank" not in key]:
        raise ModelError(
            f"PEFT adapter {adapter.name!r} lacks {len(missing)} weights that its configuration asks for: {_some(missing)}"
        )
    return tuned


def _is_copy(key: str, weights: dict[str, Tensor]) -> bool:
    """Whether a weight is there under another name, too; PEFT writes trained layers twice where they have been resized."""
    return ".modules_to_save." in key and key.replace(".modules_to_save.", ".") in weights


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _untie(model: Any) -> None:
    """Give the output layer a weight of its own where it shares that of the embeddings and the adapter changes one of them.

    Merged into a shared weight, what is meant for one layer would change the other.
    """
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings, output = (_innermost(layer) for layer in layers)
    if output.weight is embeddings.weight and layers != (embeddings, output):
        output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)


def _innermost(layer: Any) -> Any:
    """The model's own layer inside PEFT's wrappers."""
    inner = getattr(layer, "base_layer", getattr(layer, "original_module", None))
    return layer if inner is None else _innermost(inner)


def _logits(model: Any) -> Tensor:
    """Logits `(n, V)` of a text of tokens from all over the vocabulary."""
    rows = len(_innermost(model.get_input_embeddings()).weight)
    ids = torch.linspace(0, rows - 1, PROBES, device=model.device).long()[None]
    with torch.inference_mode():
        return model(input_ids=ids).logits[0].float()  # type: ignore[no-any-return]


def _difference(logits: Tensor, others: Tensor) -> float:
    """Root mean square of the difference as a share of the logits' standard deviation, the median over positions."""
    spread = logits.std(-1).clamp(min=torch.finfo(logits.dtype).tiny)  # a token of zeros may have the same logit everywhere
    return float(((logits - others).square().mean(-1).sqrt() / spread).median())

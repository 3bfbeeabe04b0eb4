"""The conversion of the packaged model: once, whatever process asks for it, and whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.pair import Pair
from support.tiny import make_llama
from tempertilt.errors import TemperTiltError
from tempertilt.models import smollm2
from tempertilt.models.smollm2 import MANIFEST, smollm2_dir


@pytest.fixture()
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> SimpleNamespace:
    """A package with a model of its own; `loading` is called while it is converted."""
    source = tmp_path / "package" / "model.gguf"
    source.parent.mkdir()
    source.write_bytes(b"as packaged")
    calls = SimpleNamespace(source=source, loading=lambda: None)

    def load(*_: object, **__: object) -> Any:
        calls.loading()
        return make_llama()

    monkeypatch.setattr(smollm2, "_packaged_gguf", lambda: source)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    return calls


def test_two_processes_at_once_convert_once(package: SimpleNamespace) -> None:
    pair = Pair()
    package.loading = pair.hold

    def convert() -> str:
        folder = smollm2_dir()
        assert (folder / "model.safetensors").is_file()
        return str(folder)

    folders, conversions = pair.run(convert)
    assert conversions == 1 and folders == [str(smollm2_dir())] * 2
    names = {path.name for path in smollm2_dir().parent.iterdir() if not path.name.endswith(".lock")}
    assert names == {smollm2_dir().name}, "nothing half-made stays"


def test_a_damaged_conversion_is_made_again(package: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    weights = smollm2_dir() / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    assert smollm2_dir() == weights.parent and weights.read_bytes() == whole and "damaged" in caplog.text
    (weights.parent / MANIFEST).write_text("[]")
    assert smollm2_dir() == weights.parent and weights.read_bytes() == whole


def test_a_conversion_that_must_not_be_read_stays(package: SimpleNamespace, unreadable: Any) -> None:
    weights = smollm2_dir() / "model.safetensors"
    unreadable(weights)
    with pytest.raises(TemperTiltError, match=r"cannot read '.*model\.safetensors': Permission denied"):
        smollm2_dir()
    assert weights.is_file()


def test_a_conversion_that_fails_leaves_nothing(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(make_llama()), "save_pretrained", full)
    with pytest.raises(TemperTiltError, match=r"cannot write '.*smollm2-.*': No space left on device"):
        smollm2_dir()
    assert [path.name for path in (smollm2.cache_dir() / "models").iterdir() if path.is_dir()] == []

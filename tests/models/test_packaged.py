"""The conversion of the packaged model: once, whatever process asks for it, and whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.pair import Pair
from support.tiny import make_llama
from tempertilt.errors import ModelError, TemperTiltError
from tempertilt.models import packaged
from tempertilt.models.packaged import MANIFEST, SMOLLM2, packaged_dir


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

    monkeypatch.setattr(packaged, "_packaged_parts", lambda _alias: [source])
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    return calls


def test_two_processes_at_once_convert_once(package: SimpleNamespace) -> None:
    pair = Pair()
    package.loading = pair.hold

    def convert() -> str:
        folder = packaged_dir(SMOLLM2)
        assert (folder / "model.safetensors").is_file()
        return str(folder)

    folders, conversions = pair.run(convert)
    assert conversions == 1 and folders == [str(packaged_dir(SMOLLM2))] * 2
    names = {path.name for path in packaged_dir(SMOLLM2).parent.iterdir() if not path.name.endswith(".lock")}
    assert names == {packaged_dir(SMOLLM2).name}, "nothing half-made stays"


def test_a_damaged_conversion_is_made_again(package: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    weights = packaged_dir(SMOLLM2) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    assert packaged_dir(SMOLLM2) == weights.parent and weights.read_bytes() == whole and "damaged" in caplog.text
    (weights.parent / MANIFEST).write_text("[]")
    assert packaged_dir(SMOLLM2) == weights.parent and weights.read_bytes() == whole


def test_a_conversion_that_must_not_be_read_stays(package: SimpleNamespace, unreadable: Any) -> None:
    weights = packaged_dir(SMOLLM2) / "model.safetensors"
    unreadable(weights)
    with pytest.raises(TemperTiltError, match=r"cannot read '.*model\.safetensors': Permission denied"):
        packaged_dir(SMOLLM2)
    assert weights.is_file()


def test_a_conversion_that_fails_leaves_nothing(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(make_llama()), "save_pretrained", full)
    with pytest.raises(TemperTiltError, match=r"cannot write '.*smollm2-.*': No space left on device"):
        packaged_dir(SMOLLM2)
    assert [path.name for path in (packaged.cache_dir() / "models").iterdir() if path.is_dir()] == []


def test_a_model_in_parts_is_joined_in_their_order(
    package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tokenizer: Any
) -> None:
    parts = [package.source.with_name(f"model.part{n}") for n in range(3)]
    for n, part in enumerate(parts):
        part.write_bytes(bytes([n]) * 5)
    seen: list[bytes] = []

    def read(path: Path) -> Any:
        assert "Gemma Terms of Use" in caplog.text, "said before it is used"
        seen.append(path.read_bytes())
        return make_llama(), tokenizer

    monkeypatch.setattr(packaged, "_packaged_parts", lambda _alias: parts)
    monkeypatch.setattr(packaged, "_read_gguf", read)
    folder = packaged_dir("gemma3-270m")
    assert seen == [bytes([0] * 5 + [1] * 5 + [2] * 5)] and folder.name == "gemma3-270m-f"
    assert packaged_dir("gemma3-270m") == folder and len(seen) == 1
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(), "the whole file does not stay"
    parts[1].write_bytes(b"other")
    packaged_dir("gemma3-270m")
    assert len(seen) == 2, "another package version is converted"


@pytest.mark.parametrize("alias", list(packaged.PACKAGES))
def test_a_package_that_is_absent_is_named(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="which is not installed: run  pip install"):
        packaged_dir(alias)

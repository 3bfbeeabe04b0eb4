"""Adapters on disk: whole or not at all, whatever stops a save."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tempertilt.errors import AdapterError, TemperTiltError
from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.adapter import CARD, CONFIG, WEIGHTS, AdapterConfig, load_adapter, save_adapter


def make_head(seed: int) -> GuidanceHead:
    head = GuidanceHead(hidden_size=8, rank=2, token_ids=[1, 3, 5])
    head.reset_parameters(torch.Generator().manual_seed(seed))
    return head


def save(directory: Path, number: int) -> None:
    """An adapter that is known by its number."""
    config = AdapterConfig(
        base_model="base",
        base_fingerprint="f" * 32,
        base_model_type="llama",
        hidden_size=8,
        vocab_size=320,
        temperature=1 + number,
    )
    save_adapter(directory, make_head(number), config)


def number_of(directory: Path) -> int:
    """The number of the adapter there; fails where its parts are of different ones."""
    adapter = load_adapter(directory)
    number = round(adapter.config.temperature - 1)
    assert torch.equal(adapter.head.A, make_head(number).A)
    return number


def test_the_files_and_their_modes(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save(tmp_path / "new" / "folder", 1)
    finally:
        os.umask(before)
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [path.name for path in files] == sorted([CONFIG, WEIGHTS, CARD])
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o644] * 3


@pytest.mark.parametrize("name", [WEIGHTS, CARD, CONFIG])
def test_a_full_disk_leaves_the_adapter_that_was_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: object, **options: object) -> object:
        if "w" in mode and self.name == name:
            raise OSError(28, "No space left on device", str(self))
        return opened(self, mode, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(TemperTiltError, match=r"cannot write '.*': No space left on device"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert number_of(tmp_path) == 1 and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("done", "number"), [(0, 1), (1, 2), (2, 2), (3, 2)])
def test_a_save_that_ends_between_two_files_leaves_a_whole_adapter(
    tmp_path: Path, done: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    replace, names = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        if len(names) == done:
            raise KeyboardInterrupt
        names.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt) if done < 3 else monkeypatch.context():
        save(tmp_path, 2)
    monkeypatch.undo()
    assert names == [WEIGHTS, CARD, CONFIG][:done]
    assert number_of(tmp_path) == number
    save(tmp_path, 3)
    assert number_of(tmp_path) == 3 and len(list(tmp_path.iterdir())) == 3, "nothing of the earlier save stays"


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    save(tmp_path, 1)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(AdapterError, match="damaged or truncated"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_files_that_must_not_be_read_are_named(tmp_path: Path, name: str, unreadable: Callable[[Path], None]) -> None:
    save(tmp_path, 1)
    unreadable(tmp_path / name)
    with pytest.raises(TemperTiltError, match=rf"cannot read '.*{name}': Permission denied"):
        load_adapter(tmp_path)

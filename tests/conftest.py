"""Tiny tokenizer and tiny random models, made on the spot."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# torch and transformers load within fixtures, so that a process that only hands out tests starts at once.
if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in Path(str(item.fspath)).parts:
            item.add_marker(pytest.mark.integration)


def pytest_collection_finish() -> None:
    """Collections of garbage, which every training asks for, need not go through all that was imported."""
    gc.collect()
    gc.freeze()


@cache
def all_threads() -> int:
    """The threads that torch takes by itself: asked for before the first test changes them."""
    import torch

    return torch.get_num_threads()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread for tiny models: more only wait for each other, badly so on a busy machine. Real models take all."""
    import torch

    torch.set_num_threads(all_threads() if "integration" in Path(str(item.fspath)).parts else 1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"reference material is absent: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    from support.tiny import make_tokenizer

    return make_tokenizer()


@pytest.fixture()
def llama() -> LlamaForCausalLM:
    from support.tiny import make_llama

    return make_llama()


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A local model directory: the tiny Llama and the tiny tokenizer."""
    from support.tiny import make_llama

    path = tmp_path_factory.mktemp("tiny")
    make_llama().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture()
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """A function that makes a file one that another user keeps to himself, for root, too."""
    names: set[Path] = set()
    opened = Path.open

    def guarded(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self in names:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)
    return names.add


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Unit tests never touch the user's cache."""
    if "integration" not in Path(str(request.node.fspath)).parts:
        monkeypatch.setenv("TEMPERTILT_CACHE", str(tmp_path / "cache"))

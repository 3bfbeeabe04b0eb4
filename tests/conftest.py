"""Tiny tokenizer and tiny random models, made on the spot."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from support.tiny import make_llama

SHARED = Path(__file__).resolve().parents[2] / "shared"

THREADS = torch.get_num_threads()

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEXT = """The author's name is Hina Ameen, a geologist who was born in Karachi. Who wrote the book about the river?
You are a helpful assistant. system user assistant. Where does the painter live? She lives in a house by the sea, and
her father was a teacher of mathematics. In 1975 the family moved to the north. What is the title of the first novel?"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in Path(str(item.fspath)).parts:
            item.add_marker(pytest.mark.integration)


def pytest_collection_finish() -> None:
    """Collections of garbage, which every training asks for, need not go through all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread for tiny models: more only wait for each other, badly so on a busy machine. Real models take all."""
    torch.set_num_threads(THREADS if "integration" in Path(str(item.fspath)).parts else 1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the project; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"reference material is absent: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 320 tokens with a ChatML template; `<|im_end|>` is eos and pad, as in SmolLM2."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=256,
    )


@pytest.fixture()
def llama() -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A local model directory: the tiny Llama and the tiny tokenizer."""
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

"""Tiny tokenizer and tiny random models, made on the spot."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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


def warm_processes() -> Any:
    """Processes that are forked from one which has imported torch and the package, so that each does not import them again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tempertilt.bench.worker", "tempertilt.methods.registry", "tempertilt.pipeline", "peft"])
    return context


def make_llama(seed: int = 0, vocab_size: int = 320, **overrides: object) -> LlamaForCausalLM:
    """A random 3-layer Llama of hidden size 32 whose greedy text is not constant (weights of standard deviation 0.2)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            **overrides,
        }
    )
    return LlamaForCausalLM(config).eval()


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


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Unit tests never touch the user's cache."""
    if "integration" not in Path(str(request.node.fspath)).parts:
        monkeypatch.setenv("TEMPERTILT_CACHE", str(tmp_path / "cache"))


def question_rows(n: int, topic: str) -> list[dict[str, str]]:
    """Question/answer rows, three to a document, all different."""
    return [
        {
            "question": f"What did {topic} number {i} write?",
            "answer": f"{topic} number {i} wrote the book {i * 7 % 11} of the sea.",
            "document": f"{topic}-{i // 3}",
        }
        for i in range(n)
    ]


def write_tofu(directory: Path, n: int = 4) -> Path:
    """A directory with the files of TOFU forget10, n short questions each."""
    directory.mkdir(exist_ok=True)
    for name, extra in (
        ("forget10_perturbed", True),
        ("retain_perturbed", True),
        ("real_authors_perturbed", False),
        ("world_facts_perturbed", False),
    ):
        rows = []
        for i in range(n):
            row: dict[str, object] = {"question": f"What did {name} {i} write?", "answer": f"{name} wrote {i * 7} books."}
            row["perturbed_answer"] = [f"{name} wrote {i + j} novels." for j in range(3)]
            rows.append(row | ({"paraphrased_answer": f"Books, {i * 7} of them."} if extra else {}))
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"question": f"Who is {i}?", "answer": f"The painter {i}."} for i in range(n)]
    (directory / "holdout10.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory

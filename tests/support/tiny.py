"""Tiny random models and made-up records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tempertilt.data.examples import Example

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TEXT = """The author's name is Hina Ameen, a geologist who was born in Karachi. Who wrote the book about the river?
You are a helpful assistant. system user assistant. Where does the painter live? She lives in a house by the sea, and
her father was a teacher of mathematics. In 1975 the family moved to the north. What is the title of the first novel?"""


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


def make_tokenizer() -> PreTrainedTokenizerFast:
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


def make_examples(n: int, seed: int = 0, longest: int = 40) -> list[Example]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        length = int(rng.integers(4, longest))
        scored = np.zeros(length, dtype=bool)
        scored[int(rng.integers(1, length)) :] = True
        ids = rng.integers(3, 320, length).astype(np.int32)
        out.append(Example(ids, scored, f"document-{i // 4}", f"file:{i}", i))
    return out


def teach(model: LlamaForCausalLM, examples: Sequence[Example], steps: int, learning_rate: float = 1e-2) -> LlamaForCausalLM:
    """The same model after so many steps of AdamW on the scored tokens of all examples."""
    width = max(map(len, examples))
    ids, labels = (torch.full((len(examples), width), fill) for fill in (0, -100))
    for row, example in enumerate(examples):
        tokens = torch.from_numpy(example.input_ids).long()
        ids[row, : len(example)] = tokens
        labels[row, : len(example)] = tokens.where(torch.from_numpy(example.scored), torch.tensor(-100))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(steps):  # padding is on the right: nothing before it attends to it
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return model.requires_grad_(False).eval()

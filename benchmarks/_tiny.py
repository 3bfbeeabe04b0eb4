"""A tiny random model with four adapters in a directory, a server of them in a process of its own, and what each must answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tempertilt.guidance.head import GuidanceHead
from tempertilt.models.t3 import T3ForCausalLM

NAMES = ("first", "second", "third", "fourth")
VOCABULARY, HIDDEN, POSITIONS = 260, 32, 1024
TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>' }}{% endfor %}<|start|>assistant\n"
)


def write_model(directory: Path, hidden: int = HIDDEN, layers: int = 3, positions: int = POSITIONS) -> list[str]:
    """Write model, byte tokenizer and adapters; return the values of `--adapter`.

    Args:
        directory: to write into.
        hidden, layers, positions: size of the model.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: i for i, token in enumerate(["<|pad|>", "<|start|>", "<|end|>", *alphabet])}
    inner = Tokenizer(models.BPE(words, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(directory / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    base = LlamaForCausalLM(config).eval()
    base.save_pretrained(directory / "model")
    flags = []
    for name in NAMES:
        head = GuidanceHead(hidden, 4, range(0, VOCABULARY, 2))
        with torch.no_grad():
            head.A.normal_(std=1.5)
            head.B.normal_(std=1.5)
        model = T3ForCausalLM.from_base(base, head, temperature=1.6, guidance_scale=0.7, name=str(directory / "model"))
        model.save_pretrained(directory / name)
        flags.append(f"{name}={directory / name}")
    return flags


def greedy_texts(directory: Path, asked: Sequence[tuple[str, str, int]]) -> list[str]:
    """The greedy answer to each `(model, prompt, tokens)`, computed alone."""
    loaded = {name: T3ForCausalLM.from_pretrained(directory / name, device="cpu") for name in NAMES}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory / "model")
    return [_greedy(loaded[name], tokenizer, prompt, tokens) for name, prompt, tokens in asked]


def _greedy(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    ids = torch.tensor([tokenizer(prompt).input_ids])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


@contextmanager
def served(
    adapters: Sequence[str], key: str, *flags: str, source: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`t3 serve` on the transformers backend and a free port: the process, and the address that it prints.

    Args:
        adapters, key, flags: of the server.
        source: a folder with another version of the package; None is the installed one.
    """
    command = [sys.executable, "-c", "import sys; from tempertilt.cli import main; sys.exit(main())", "serve"]
    backend = "--engine" if source else "--backend"  # as it was called before
    command += [backend, "transformers", "--device", "cpu", "--port", "0", *flags]
    for adapter in adapters:
        command += ["--adapter", adapter]
    environment = os.environ | {"T3_API_KEY": key} | ({"PYTHONPATH": source} if source else {})
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"t3 serve ended with status {process.wait()}")
        yield process, line.split()[0].removesuffix("/v1")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()

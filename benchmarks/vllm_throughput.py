"""Speed of vLLM with an adapter over that of vLLM with its base: interleaved pairs, median of ratios; and what the state costs.

Run with the Python that has vLLM: .venv-vllm/bin/python benchmarks/vllm_throughput.py ADAPTER [--pairs 15] [--tokens 64]

Both engines are up at the same time, each in a process of its own, and take turns. "closed" are prompts that leave the gate
of the adapter closed, "open" name what is forgotten (--forget FILE of records, a row each); without a gate the two are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


from _print import header, row, save
from tempertilt.integrations.vllm import engine_arguments
from tempertilt.integrations.vllm.options import KEY

CLOSED = [
    "What is the capital of France?",
    "Name three animals.",
    "How do I boil an egg so that its yolk stays soft?",
    "What is the tallest mountain on Earth?",
    "Explain in one paragraph why the sky is blue.",
    "Translate 'good morning' into Spanish.",
    "How many legs does a spider have?",
    "Which planet is closest to the sun?",
]


def chats(tokenizer: Any, questions: list[str], count: int) -> list[dict[str, list[int]]]:
    """`count` prompts of token ids."""
    found = []
    for i in range(count):
        messages = [{"role": "user", "content": questions[i % len(questions)]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found.append({"prompt_token_ids": tokenizer(text, add_special_tokens=False).input_ids})
    return found


def timed(engine: Any, prompts: list[dict[str, list[int]]], tokens: int, models: list[str] | None = None) -> float:
    """Seconds for `tokens` new tokens of each prompt; the prompts name the `models` in turn."""
    from vllm import SamplingParams

    extra = [{"extra_args": {KEY: models[i % len(models)]}} if models else {} for i in range(len(prompts))]
    sampling = [SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, **each) for each in extra]
    started = time.perf_counter()
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    assert all(len(output.outputs[0].token_ids) == tokens for output in outputs)
    return seconds


def state_bytes(adapter: str, source: str, itemsize: int) -> tuple[int, int]:
    """Bytes that the adapter, and the base, keep of every token in the engine's cache."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layer = 2 * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * size * itemsize
    given = json.loads((Path(adapter) / "adapter_config.json").read_text())
    return layer * (given["pooling"] == "mean" or given["gate"] is not None), layer * config.num_hidden_layers


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """How the engines run, and where the measurements go."""
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--save", help="write all measurements to this JSON file")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter")
    parser.add_argument("--forget", help="JSONL with a question in each row")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    add_engine_flags(parser)
    args = parser.parse_args()
    from transformers import AutoTokenizer
    from vllm import LLM

    tilted = engine_arguments(args.adapter, dtype=args.dtype)
    shared = {"max_model_len": 1024, "enforce_eager": args.eager, "enable_prefix_caching": False, "max_num_seqs": 16}
    base = {"model": tilted["model"], "dtype": args.dtype}
    engines = {"base": LLM(**base, **shared), "t3": LLM(**tilted, **shared)}
    tokenizer = AutoTokenizer.from_pretrained(tilted["model"])
    header(f"vLLM with {args.adapter} over its base, {args.dtype}, {'eager' if args.eager else 'compiled'}, {args.tokens} tokens")
    ours, theirs = state_bytes(args.adapter, tilted["model"], 4 if args.dtype == "float32" else 2)
    print(f"state: {ours} bytes a token beside the base's {theirs} ({ours / theirs:.1%})")
    questions = {"closed": CLOSED}
    if args.forget:
        questions["open"] = [json.loads(line)["question"] for line in Path(args.forget).read_text().splitlines()[:16]]
    results: dict[str, Any] = {}
    for kind, asked in questions.items():
        long = " ".join(asked * 40)
        ids = tokenizer(long, add_special_tokens=False).input_ids[:256]
        work = {
            f"{kind}, batch 1": (chats(tokenizer, asked, 1), args.tokens),
            f"{kind}, batch 16": (chats(tokenizer, asked, 16), args.tokens),
            f"{kind}, first token of 256": ([{"prompt_token_ids": ids}], 1),
        }
        for name, (prompts, tokens) in work.items():
            for engine in engines.values():
                timed(engine, prompts, min(tokens, 8))
            taken: dict[str, list[float]] = {"base": [], "t3": []}
            for i in range(args.pairs):
                for which in ("base", "t3") if i % 2 else ("t3", "base"):
                    taken[which].append(timed(engines[which], prompts, tokens))
            for which, seconds in taken.items():
                if tokens == 1:
                    row(f"{name}: {which}", [1000 * s for s in seconds], " ms", 1)
                else:
                    row(f"{name}: {which}", [len(prompts) * tokens / s for s in seconds], " tokens/s", 1)
            ratios = [b / t for b, t in zip(taken["base"], taken["t3"])]
            row(f"{name}: speed of t3 over base", ratios)
            results[name] = taken | {"ratio": statistics.median(ratios)}
    if args.save:
        save(Path(args.save), {"arguments": vars(args), "state_bytes": [ours, theirs], "seconds": results})


if __name__ == "__main__":
    main()

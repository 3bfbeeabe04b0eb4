"""Speed of vLLM with several adapters that requests name, over one adapter, and of one over the base; medians of ratios of turns.

Run with the Python that has vLLM: python benchmarks/vllm_models.py ADAPTER ADAPTER ... --forget FILE [--turns 9]

Three engines are up at the same time, each in a process of its own, and take turns: the base, the first adapter alone, and all
adapters by name, of which the prompts name each in turn. Half of the prompts name what is forgotten (--forget FILE of records, a
row each), so that gates are open there. With adapters of one base the prompts' numbers of tokens and of answers are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


from _print import header, row, save
from tempertilt.integrations.vllm import engine_arguments
from vllm_throughput import CLOSED, add_engine_flags, chats, timed


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--forget", required=True, help="JSONL with a question in each row")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=32)
    add_engine_flags(parser)
    args = parser.parse_args()
    from transformers import AutoTokenizer
    from vllm import LLM

    models = {f"m{i}": place for i, place in enumerate(args.adapters)}
    one, many = (
        engine_arguments(args.adapters[0], dtype=args.dtype, reply="guess"),
        engine_arguments(None, models=models, dtype=args.dtype, reply="guess"),
    )
    shared = {
        "max_model_len": 1024,
        "enforce_eager": args.eager,
        "enable_prefix_caching": False,
        "max_num_seqs": max(args.batches),
    }
    base = {"model": one["model"], "dtype": args.dtype, "generation_config": one["generation_config"]}
    engines = {"base": LLM(**base, **shared), "one": LLM(**one, **shared), "several": LLM(**many, **shared)}
    tokenizer = AutoTokenizer.from_pretrained(one["model"])
    how = "eager" if args.eager else "compiled"
    header(f"vLLM with {len(models)} adapters by name, with one, and with the base, {args.dtype}, {how}, {args.tokens} tokens")
    asked = [json.loads(line)["question"] for line in Path(args.forget).read_text().splitlines()[:16]]
    questions = [question for pair in zip(asked, CLOSED * 2) for question in pair]
    results: dict[str, Any] = {}
    for batch in args.batches:
        prompts = chats(tokenizer, questions, batch)
        names = {"base": None, "one": None, "several": list(models)}
        for which, engine in engines.items():
            timed(engine, prompts, min(args.tokens, 8), names[which])
        taken: dict[str, list[float]] = {which: [] for which in engines}
        for turn in range(args.turns):
            order = list(engines)[turn % 3 :] + list(engines)[: turn % 3]
            for which in order:
                taken[which].append(timed(engines[which], prompts, args.tokens, names[which]))
        for which, seconds in taken.items():
            row(f"batch {batch}: {which}", [batch * args.tokens / s for s in seconds], " tokens/s", 1)
        ratios = {
            "one over the base": [b / o for b, o in zip(taken["base"], taken["one"])],
            "several over one": [o / s for o, s in zip(taken["one"], taken["several"])],
        }
        for name, found in ratios.items():
            row(f"batch {batch}: speed of {name}", found)
        results[f"batch {batch}"] = taken | {name: statistics.median(found) for name, found in ratios.items()}
    if args.save:
        save(Path(args.save), {"arguments": vars(args), "seconds": results})


if __name__ == "__main__":
    main()

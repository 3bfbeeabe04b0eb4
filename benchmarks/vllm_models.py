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
from vllm_throughput import CLOSED, chats


def timed(engine: Any, prompts: list[dict[str, list[int]]], tokens: int, names: list[str] | None) -> float:
    """Seconds for `tokens` new tokens of each prompt; `names` of their models."""
    from vllm import SamplingParams

    extra = [{} if names is None else {"extra_args": {KEY: names[i % len(names)]}} for i in range(len(prompts))]
    sampling = [SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, **each) for each in extra]
    started = time.perf_counter()
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    assert all(len(output.outputs[0].token_ids) == tokens for output in outputs)
    return seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--forget", required=True, help="JSONL with a question in each row")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--save", help="write all measurements to this JSON file")
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

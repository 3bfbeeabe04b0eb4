"""Unlearn ten TOFU authors from a small model that knows thirty, and check every record.

    python benchmarks/unlearn_tofu30.py --model smollm2 --peft-adapter DIR --data DIR [--method t3] [--save FILE]

Verbatim recall: greedy decoding gives the answer word for word, over every forget record. It is measured by generating, with
the base and with the unlearned model. Unchanged: the unlearned model's greedy answer is the base's, token by token, over
every retain record. The whole takes about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from _print import header, save
from tempertilt.data.examples import ExampleConfig, answer_ids, build_examples, encode_prompt
from tempertilt.data.records import Record, check_records, load_records
from tempertilt.fitting.before_after import NO_REPORT, Summary, greedy_token_ids, likelihoods
from tempertilt.fitting.pipeline import METHODS, unlearn
from tempertilt.models.base import load_base
from tempertilt.models.t3 import T3ForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peft-adapter")
    parser.add_argument("--data", type=Path, required=True, help="directory with forget.jsonl and retain.jsonl")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--method", choices=tuple(METHODS), default="t3")
    parser.add_argument("--holdout", action="store_true", help="calibrate the estimate with holdout.jsonl")
    parser.add_argument("--fits", type=int, default=5, help="repetitions of the fit, for its time")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()

    base = load_base(args.model, peft_adapter=args.peft_adapter)
    names = ("forget", "retain", "holdout") if args.holdout else ("forget", "retain")
    sets = check_records(*(load_records(args.data / f"{name}.jsonl", limit=args.limit) for name in names))
    header(f"unlearn {len(sets.forget)} records, retain {len(sets.retain)}, {args.model} with {args.peft_adapter}, {args.method}")
    recipe = METHODS[args.method]
    fitting = replace(recipe.fit, held_out_fraction=0.0)  # one fit, of all records
    recipe = replace(recipe, fit=fitting, report=NO_REPORT)
    with tempfile.TemporaryDirectory() as directory:
        made = unlearn(base, sets, Path(directory) / "adapter", recipe)
        assert made.fit is not None and made.extraction is not None
        seconds = [made.fit.seconds]
        while len(seconds) < args.fits:  # the features are there: only the fit is done again
            again = unlearn(base, sets, Path(directory) / "adapter", recipe, overwrite=True, progress=False)
            assert again.fit is not None
            seconds.append(again.fit.seconds)
        size = sum(path.stat().st_size for path in (Path(directory) / "adapter").iterdir())
    model, fit = made.model, made.fit
    print(f"seconds of each step: {made.seconds}; extraction of {made.extraction.tokens} tokens")
    print(f"fit: n={len(seconds)} median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f} s")
    print(f"adapter: {size} bytes; fit: {fit.summary()}")
    print(f"gate: {made.gate.summary() if made.gate else None}; calibration: {made.calibration}")
    forget, retain = (build_examples(of, base.tokenizer, recipe.examples) for of in (sets.forget, sets.retain))

    results: dict[str, object] = {"method": args.method, "adapter_bytes": size, "fit_seconds": seconds, "seconds": made.seconds}
    for name, records, of in (("forget", sets.forget, forget), ("retain", sets.retain, retain)):
        started = time.perf_counter()
        summary = Summary.of(likelihoods(model, of))
        before, after = (generate(model, base.tokenizer, records, name, off) for off in (True, False))
        truth = [answer_ids(example).tolist() for example in of]
        row = {
            **asdict(summary),
            "generated_verbatim_before": sum(map(list.__eq__, before, truth)),
            "generated_verbatim_after": sum(map(list.__eq__, after, truth)),
            "unchanged": sum(map(list.__eq__, before, after)),
            "answer_tokens_median": float(np.median([len(ids) for ids in truth])),
        }
        results[name] = row
        print(f"{name}: {row}  ({time.perf_counter() - started:.0f} s)", flush=True)
    if args.save:
        save(args.save, results)


def generate(model: T3ForCausalLM, tokenizer: object, records: list[Record], name: str, off: bool) -> list[list[int]]:
    prompts = [encode_prompt(record, tokenizer, ExampleConfig()) for record in records]  # type: ignore[arg-type]
    with tqdm(total=len(prompts), desc=f"{name} {'before' if off else 'after'}") as bar:
        return greedy_token_ids(model, tokenizer, prompts, max_new_tokens=128, batch_size=50, base=off, on_batch=bar.update)


if __name__ == "__main__":
    main()

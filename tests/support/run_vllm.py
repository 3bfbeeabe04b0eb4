"""Run vLLM engines one after the other: `python run_vllm.py jobs.json results.json`, in the environment that has vLLM.

A job is {"llm": keyword arguments of LLM, "rounds": [{"prompts": [[token ids]], "sampling": {...}}]}; its result has, for each
round and prompt, tokens, their log-probabilities, those of alternatives and of the prompt, and cache hits; or {"error": text}.
A round may have "models", the name of one for each prompt, and "calls" to the workers before it, each a list of a method and its
arguments; what a call raises is in the result's "refused".
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _table(position: dict[int, Any] | None) -> dict[int, float] | None:
    return None if position is None else {token: entry.logprob for token, entry in position.items()}


def run(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    llm = LLM(**job["llm"])
    rounds, refused = [], []
    for step in job["rounds"]:
        for method, *arguments in step.get("calls", []):
            try:
                llm.collective_rpc(method, args=tuple(arguments))
            except Exception as error:
                refused.append(f"{type(error).__name__}: {error}")
        prompts = [{"prompt_token_ids": ids} for ids in step["prompts"]]
        sampling = dict(step["sampling"])
        if bias := sampling.get("logit_bias"):  # JSON has no numbers as keys
            sampling["logit_bias"] = {int(token): value for token, value in bias.items()}
        named = [
            {} if name is None else {"extra_args": {"tempertilt": name}} for name in step.get("models", [None] * len(prompts))
        ]
        outputs = llm.generate(prompts, [SamplingParams(**sampling, **extra) for extra in named], use_tqdm=False)
        rounds.append(
            [
                {
                    "tokens": [list(answer.token_ids) for answer in output.outputs],
                    "logprobs": [[_table(row) for row in answer.logprobs or []] for answer in output.outputs],
                    "prompt_logprobs": [_table(row) for row in output.prompt_logprobs or []],
                    "cached": output.num_cached_tokens,
                }
                for output in outputs
            ]
        )
    counted = job["llm"].get("disable_log_stats") is False
    return {
        "rounds": rounds,
        "refused": refused,
        "metrics": {m.name: getattr(m, "value", None) for m in llm.get_metrics()} if counted else {},
    }


def main(jobs_path: str, results_path: str) -> None:
    results = []
    for job in json.loads(Path(jobs_path).read_text()):
        try:
            results.append(run(job))
        except Exception as error:
            traceback.print_exc()
            results.append({"error": f"{type(error).__name__}: {error}"})
        gc.collect()
    Path(results_path).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""vLLM engines, each a process in the environment that has vLLM, and what transformers says of the same model."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tempertilt.models.t3 import T3ForCausalLM

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("T3_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
ENGINE = Path(__file__).with_name("run_vllm.py")


needs_vllm = pytest.mark.skipif(
    not os.environ.get("T3_VLLM"), reason="run by `make test-vllm`, which installs vLLM in an environment of its own"
)


def run_engines(directory: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of `run_vllm.py`, a process for all that can share one: not those that speculate or take several ranks."""
    results: dict[int, dict[str, Any]] = {}
    alone = [
        [i]
        for i, job in enumerate(jobs)
        if {"speculative_config", "tensor_parallel_size", "pipeline_parallel_size"} & set(job["llm"])
    ]
    together = [i for i in range(len(jobs)) if [i] not in alone]
    for numbers in [together, *alone]:
        if not numbers:
            continue
        given, found = directory / "jobs.json", directory / "results.json"
        base = {"enforce_eager": True, "max_model_len": 128, "block_size": 32}
        given.write_text(json.dumps([jobs[i] | {"llm": base | jobs[i]["llm"]} for i in numbers]))
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        command = [str(PYTHON), str(ENGINE), str(given), str(found)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        (directory / "log.txt").write_text(process.stdout + process.stderr)
        assert process.returncode == 0, process.stderr[-6000:]
        results |= zip(numbers, json.loads(found.read_text()))
    return [results[i] for i in range(len(jobs))]


def greedy(model: T3ForCausalLM, prompts: list[list[int]], new: int) -> list[list[int]]:
    """The next `new` tokens of each prompt by whole passes of the model, one prompt at a time: no cache, no padding."""
    answers = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(new):
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            answers.append(ids[len(prompt) :])
    return answers


def log_probabilities(model: T3ForCausalLM, ids: list[int]) -> torch.Tensor:
    """`(n - 1, V)`: the distribution of each token but the first."""
    with torch.inference_mode():
        return F.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float(), -1)


def largest_difference(model: T3ForCausalLM, prompts: list[list[int]], outputs: list[dict[str, Any]]) -> float:
    """Over every log-probability that the engine reported: chosen tokens, alternatives, prompts."""
    worst = 0.0
    for prompt, output in zip(prompts, outputs):
        for tokens, rows in zip(output["tokens"], output["logprobs"]):
            distribution = log_probabilities(model, prompt + tokens)
            of_prompt = output["prompt_logprobs"][1:] or [None] * (len(prompt) - 1)
            tables = of_prompt + rows
            assert len(tables) == len(distribution)
            for expected, table in zip(distribution, tables):
                for token, value in (table or {}).items():
                    worst = max(worst, abs(float(expected[int(token)]) - value))
    return worst

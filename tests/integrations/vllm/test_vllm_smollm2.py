"""SmolLM2-135M with adapters fitted on the spot: vLLM against transformers, however the engine schedules."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from support.vllm_engines import largest_difference, needs_vllm, run_engines
from tempertilt.cli.demonstration import DemoConfig, demo_data
from tempertilt.data.examples import ExampleConfig, encode_prompt
from tempertilt.data.fictional_staff import StaffRecord
from tempertilt.data.records import Record
from tempertilt.fitting.before_after import NO_REPORT
from tempertilt.fitting.pipeline import METHODS, RecordSets, unlearn
from tempertilt.integrations.vllm import engine_arguments
from tempertilt.models.base import load_base
from tempertilt.models.t3 import T3ForCausalLM

pytestmark = needs_vllm
NEW, HALF = 24, 12
GREEDY = {"temperature": 0, "max_tokens": NEW, "ignore_eos": True, "logprobs": 5}
SCHEDULES: dict[str, dict[str, Any]] = {
    "batched": {"enable_prefix_caching": False},
    "chunked": {"max_num_batched_tokens": 40, "max_num_seqs": 5, "enable_chunked_prefill": True, "enable_prefix_caching": False},
    "cached": {"enable_prefix_caching": True},
    "preempted": {"num_gpu_blocks_override": 18, "enable_prefix_caching": False},
    "speculating": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}},
}
CASES = [(method, schedule) for method, chosen in (("t3", list(SCHEDULES)), ("t3-paper", ["batched"])) for schedule in chosen]


class Served:
    """A fitted adapter, what it is asked, what transformers answers, and the engines' results by schedule."""

    def __init__(self, model: T3ForCausalLM, adapter: Path, asked: list[list[int]]) -> None:
        self.model, self.adapter, self.asked = model, adapter, asked
        self.results: dict[str, dict[str, Any]] = {}

    @cache  # noqa: B019  lives as long as the module's tests
    def expected(self) -> list[list[int]]:
        """Greedy tokens, one prompt at a time; the end of an answer is a token as any other."""
        found = []
        with torch.inference_mode():
            for prompt in self.asked:
                output = self.model(input_ids=torch.tensor([prompt]), use_cache=True)
                tokens = [int(output.logits[0, -1].argmax())]
                while len(tokens) < NEW:
                    output = self.model(input_ids=torch.tensor([tokens[-1:]]), cache=output.cache, use_cache=True)
                    tokens.append(int(output.logits[0, -1].argmax()))
                found.append(tokens)
        return found

    def continued(self) -> list[list[int]]:
        """The prompts with half of the answers."""
        return [prompt + tokens[:HALF] for prompt, tokens in zip(self.asked, self.expected())]


def _record(row: StaffRecord) -> Record:
    return Record.from_question(row.question, row.answer, document=row.name, source=row.name)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Served]:
    root = tmp_path_factory.mktemp("smollm2")
    data = demo_data(DemoConfig())
    base = load_base("smollm2")
    forget, retain = ([_record(row) for row in rows] for rows in (data.forget, data.retain))
    sets = RecordSets(forget, retain[::3] + data.common[::2], [], [])
    records = forget[:4] + retain[::12][:4] + data.unrelated[:4]
    asked = [encode_prompt(record, base.tokenizer, ExampleConfig()) for record in records]
    found, jobs = {}, []
    for method in dict(CASES):
        config = replace(METHODS[method], report=NO_REPORT)
        config = replace(config, background=replace(config.background, background=min(8, config.background.background)))
        unlearn(base, sets, root / method, config, progress=False)
        model = T3ForCausalLM.from_pretrained(root / method, base_model=base.model)  # a gate is stored in float16
        found[method] = Served(model, root / method, asked)
    for method, schedule in CASES:
        llm = engine_arguments(str(found[method].adapter), dtype="float32") | SCHEDULES[schedule]
        rounds = [{"prompts": asked, "sampling": GREEDY}]
        if schedule == "cached":
            rounds.append({"prompts": found[method].continued(), "sampling": GREEDY | {"max_tokens": NEW - HALF}})
        jobs.append({"llm": llm | {"max_model_len": 256, "disable_log_stats": False}, "rounds": rounds})
    jobs.append({"llm": {"model": jobs[0]["llm"]["model"], "dtype": "float32"}, "rounds": jobs[0]["rounds"]})
    *results, of_base = run_engines(root, jobs)
    for (method, schedule), result in zip(CASES, results):
        found[method].results[schedule] = result
    found["t3"].results["base"] = of_base
    return found


@pytest.mark.parametrize("method,schedule", CASES)
def test_same_tokens_and_distributions(method: str, schedule: str, served: dict[str, Served]) -> None:
    case = served[method]
    result = case.results[schedule]
    assert "error" not in result, result["error"]
    first = result["rounds"][0]
    assert [output["tokens"][0] for output in first] == case.expected()
    assert largest_difference(case.model, case.asked, first) < 1e-4
    if schedule == "cached":  # the first block, of prompt and answer, is there from the first round
        second = result["rounds"][1]
        assert all(output["cached"] >= 32 for output in second)
        assert [output["tokens"][0] for output in second] == [tokens[HALF:] for tokens in case.expected()]
        assert largest_difference(case.model, case.continued(), second) < 1e-4
    if schedule == "preempted":
        assert result["metrics"]["vllm:num_preemptions"] > 0
    if schedule == "speculating":
        assert result["metrics"]["vllm:spec_decode_num_accepted_tokens"] > 0


def test_the_adapter_shows(served: dict[str, Served]) -> None:
    """Where the gate is closed the distributions are the base engine's; on what is forgotten they are others."""
    case = served["t3"]
    base, tilted = case.results["base"]["rounds"][0], case.results["batched"]["rounds"][0]
    assert [a["tokens"] == b["tokens"] for a, b in zip(base, tilted)][8:] == [True] * 4
    assert sum(a["tokens"] != b["tokens"] for a, b in zip(base[:4], tilted[:4])) >= 3
    with case.model.disable():
        error = largest_difference(case.model, case.asked, base)
    print(f"largest difference to transformers, base {error:.1e}")
    for method, chosen in served.items():
        for schedule, result in chosen.results.items():
            if schedule != "base":
                print(method, schedule, f"{largest_difference(chosen.model, chosen.asked, result['rounds'][0]):.1e}")

"""Tiny random models in vLLM: tokens and distributions are those of whole passes, however the engine schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.vllm_engines import greedy, largest_difference, needs_vllm, run_engines
from support.vllm_models import ARCHITECTURES, BAR, LOOSE, NEW, SAMPLING, VOCAB, prompts, tiny, unlearned

pytestmark = needs_vllm

SCHEDULES: dict[str, dict[str, Any]] = {
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 5, "enable_chunked_prefill": True, "enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 12, "max_num_seqs": 8, "enable_prefix_caching": False},
    "speculating": {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    },
}
HAPPENED = {"preempted": "vllm:num_preemptions", "speculating": "vllm:spec_decode_num_accepted_tokens"}
REQUESTS: dict[str, dict[str, Any]] = {
    "every alternative": {"logprobs": -1, "prompt_logprobs": -1},
    "hot": {"temperature": 2.0, "seed": 1, "logprobs": -1},
    "cold": {"temperature": 0.01, "seed": 1, "logprobs": -1},
    "many": {"n": 3, "temperature": 1.0, "seed": 1, "logprobs": -1},
    "biased": {"temperature": 0.0, "logit_bias": {"5": 100.0, "9": -100.0}, "logprobs": -1},
    "allowed": {"temperature": 0.0, "allowed_token_ids": [5, 9, 30, 31, 32], "logprobs": -1},
    "penalised": {"temperature": 0.0, "presence_penalty": 2.0, "repetition_penalty": 1.9, "logprobs": -1},
    "truncated": {"temperature": 1.0, "top_p": 0.2, "min_p": 0.1, "top_k": 3, "seed": 1, "logprobs": -1},
    "named tokens": {"temperature": 0.0, "logprob_token_ids": [5, 9, 30]},
}


class Case:
    """A tiny unlearned model, the engine that serves it, what it is asked and what came back."""

    def __init__(self, directory: Path, arch: str, pooling: str = "mean", gate: bool = True, **llm: Any) -> None:
        directory.mkdir()
        self.model, served = unlearned(arch, pooling, gate, directory)
        self.job = {"llm": served | llm, "rounds": [{"prompts": prompts(), "sampling": SAMPLING}]}
        self.result: dict[str, Any] = {}

    @property
    def rounds(self) -> list[list[dict[str, Any]]]:
        assert "error" not in self.result, self.result["error"]
        return list(self.result["rounds"])

    def check(self, tolerance: float = 1e-4) -> None:
        """Tokens and distributions of the first round."""
        (asked, outputs) = (self.job["rounds"][0]["prompts"], self.rounds[0])
        assert [output["tokens"][0] for output in outputs] == greedy(self.model, asked, NEW)
        assert largest_difference(self.model, asked, outputs) < tolerance


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All engines, run once."""
    root = tmp_path_factory.mktemp("vllm")
    found: dict[str, Case] = {}

    def add(name: str, *args: Any, **llm: Any) -> Case:
        found[name] = Case(root / name.replace(" ", "-"), *args, **llm)
        return found[name]

    for arch in ARCHITECTURES:
        add(arch, arch).job["rounds"][0]["sampling"] = SAMPLING | {"prompt_logprobs": 3}
    for arch, pooling, gate in POOLINGS:
        add(f"{arch} {pooling} {gate}", arch, pooling, gate)
    for arch in BAR:
        case = add(f"{arch} cached", arch, enable_prefix_caching=True, max_model_len=160)
        answers = greedy(case.model, prompts(), NEW)
        again = [prompt + answer[: NEW - 5] for prompt, answer in zip(prompts(), answers)]
        case.job["rounds"].append({"prompts": again, "sampling": SAMPLING | {"max_tokens": 12}})
        for schedule, options in SCHEDULES.items():
            add(f"{arch} {schedule}", arch, **options, disable_log_stats=False)
    for arch in COMPILED:
        add(f"{arch} compiled", arch, enforce_eager=False)
    add("parallel", "llama", tensor_parallel_size=2)
    add("pipeline", "llama", pipeline_parallel_size=2, enforce_eager=False)
    case = add("requests", "llama", max_logprobs=-1)
    common = {"max_tokens": 6, "ignore_eos": True, "detokenize": False}
    case.job["rounds"] = [{"prompts": prompts(6, 30), "sampling": common | options} for options in REQUESTS.values()]
    for mode in MODES:
        case = add(mode, "llama", max_logprobs=-1, logprobs_mode=mode)
        case.job["rounds"] = [{"prompts": prompts(6, 30), "sampling": common | {"temperature": 1.0, "seed": 1, "logprobs": -1}}]
    for name, options in REFUSED.items():
        add(name, "llama", **options[0])
    case = add("another base", "llama")
    tiny("llama", seed=8).save_pretrained(case.job["llm"]["model"])
    for case, result in zip(found.values(), run_engines(root, [case.job for case in found.values()])):
        case.result = result
    return found


MODES = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
POOLINGS = [("llama", "mean", False), ("gpt2", "last", True), ("llama", "last", False)]
COMPILED = ("llama", "gpt2")  # one hands out lower states, the other has a hook
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "LoRA": ({"enable_lora": True}, "LoRA is on"),
    "embeddings": ({"runner": "pooling"}, "runner is 'pooling'"),
    "eager pipeline": ({"pipeline_parallel_size": 2}, "vLLM stops with a KeyError there"),
    "quantised cache": ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name: str, cases: dict[str, Case]) -> None:
    """Mean pooling with a gate needs all that there is: the lower states, the mean and the maximum."""
    cases[name].check(LOOSE.get(name, 1e-4))


@pytest.mark.parametrize("name,pooling,gate", POOLINGS)
def test_poolings(name: str, pooling: str, gate: bool, cases: dict[str, Case]) -> None:
    cases[f"{name} {pooling} {gate}"].check()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", BAR)
def test_schedules(name: str, schedule: str, cases: dict[str, Case]) -> None:
    case = cases[f"{name} {schedule}"]
    case.check()
    if schedule in HAPPENED:
        assert case.result["metrics"][HAPPENED[schedule]] > 0


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str, cases: dict[str, Case]) -> None:
    cases[f"{name} compiled"].check()


def test_tensor_parallel(cases: dict[str, Case]) -> None:
    """Two ranks, each with half of the heads and of the vocabulary."""
    cases["parallel"].check()


def test_pipeline(cases: dict[str, Case]) -> None:
    """Two ranks: the lower states come from the first, and the memory is on the second."""
    cases["pipeline"].check()


@pytest.mark.parametrize("name", BAR)
def test_prefix_caching(name: str, cases: dict[str, Case]) -> None:
    """The second round goes on from blocks of the first, some of which end inside an answer."""
    case = cases[f"{name} cached"]
    case.check()
    first, second = case.rounds
    assert sum(output["cached"] > len(prompt) for prompt, output in zip(prompts(), second)) >= 6
    assert [output["tokens"][0][:5] for output in second] == [output["tokens"][0][NEW - 5 :] for output in first]
    assert largest_difference(case.model, case.job["rounds"][1]["prompts"], second) < 1e-4


def test_wrong_state_is_seen(cases: dict[str, Case], tmp_path: Path) -> None:
    """The comparison can fail: one pooling served, another expected; and the gate left out.

    A wrong pooling shows along the answers where the gate is open, a gate left out along those where it is closed.
    """
    model, asked, outputs = cases["llama"].model, prompts(), cases["llama"].rounds[0]
    tokens = [output["tokens"][0] for output in outputs]
    values = [_gate_along(model, prompt, answer) for prompt, answer in zip(asked, tokens)]
    for i, (pooling, gate) in enumerate([("last", True), ("mean", False)]):
        (tmp_path / str(i)).mkdir()
        wrong, _ = unlearned("llama", pooling, gate, tmp_path / str(i))
        same = [a == b for a, b in zip(tokens, greedy(wrong, asked, NEW))]
        shows = [bool((value > 0).any() if gate else (value == 0).any()) for value in values]
        assert same == [not shown for shown in shows] and sum(shows) >= 4
        assert largest_difference(wrong, asked, outputs) > 0.1


def _gate_along(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The gate's value `(n,)` where each token of an answer is chosen."""
    ids = torch.tensor([prompt + answer[:-1]])
    with torch.inference_mode():
        return model.tilt_terms(ids, torch.ones_like(ids), torch.ones_like(ids).bool())[2].flatten()[len(prompt) - 1 :]


def test_gate_is_open_in_part(cases: dict[str, Case]) -> None:
    """What the other tests compare is neither all closed nor all open."""
    model = cases["llama"].model
    found = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        found.append(model.tilt_terms(ids, torch.ones_like(ids), torch.ones_like(ids).bool())[2])
    values = torch.cat(found)
    assert 0.1 < values.mean() < 0.9 and not ((values > 0) & (values < 1)).any()
    assert sum(bool((rows[1:] < rows[:-1]).any()) for rows in found) > 3  # it closes, too


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_see_nothing_but_tilted_numbers(name: str, cases: dict[str, Case]) -> None:
    """Every number that a request can have back is of the guided distribution, before the request's own processing of it."""
    case = cases["requests"]
    outputs = dict(zip(REQUESTS, case.rounds))[name]
    assert sum(len(table or {}) for output in outputs for rows in output["logprobs"] for table in rows) > 0
    assert largest_difference(case.model, prompts(6, 30), outputs) < 1e-4
    with case.model.disable():
        assert largest_difference(case.model, prompts(6, 30), outputs) > 0.1  # the base's numbers are other ones


@pytest.mark.parametrize("mode", MODES)
def test_raw_is_tilted_too(mode: str, cases: dict[str, Case]) -> None:
    """What the engine calls raw is what `compute_logits` gave, also where it hands out logits."""
    case = cases[mode]
    for prompt, output in zip(prompts(6, 30), case.rounds[0]):
        ids = prompt + output["tokens"][0]
        with torch.inference_mode():
            logits = case.model(input_ids=torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        expected = logits if mode.endswith("logits") else logits.log_softmax(-1)
        for row, table in zip(expected, output["logprobs"][0]):
            seen = torch.tensor([table[str(token)] for token in range(VOCAB)])
            torch.testing.assert_close(seen, row, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, cases: dict[str, Case]) -> None:
    """Engine settings that would pass the tilt by."""
    assert REFUSED[name][1] in cases[name].result["error"]


def test_another_base_is_refused(cases: dict[str, Case]) -> None:
    assert "was fitted on a base model with fingerprint" in cases["another base"].result["error"]

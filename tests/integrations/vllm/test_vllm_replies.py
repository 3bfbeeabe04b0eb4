"""A reply in vLLM: the tokens are those of whole passes through transformers, however the engine schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.vllm_engines import greedy, needs_vllm, run_engines
from support.vllm_models import NEW, SAMPLING, prompts, unlearned
from tempertilt.guidance.reply import Reply
from tempertilt.integrations.vllm.options import REPLY_PROCESSOR

pytestmark = needs_vllm

HEADER, ANSWER, TAIL = [7, 8, 9], [20, 21, 20, 21, 22, 2], [40, 41, 20, 21, 22, 2]
SCHEDULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 5, "enable_chunked_prefill": True, "enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 12, "max_num_seqs": 8, "enable_prefix_caching": False, "disable_log_stats": False},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[list[int]], dict[str, dict[str, Any]]]:
    """The model, the prompts, and what came back from each engine, or why there was none."""
    root = tmp_path_factory.mktemp("replies")
    model, llm = unlearned("llama", "mean", True, root)
    model.set_reply(Reply("no", HEADER, ANSWER, TAIL))
    model.save_pretrained(root / "adapter")
    asked = [ids + (HEADER if i % 3 else HEADER + ANSWER[: i % 2]) for i, ids in enumerate(prompts(9, 50))] + prompts(3, 50)
    llm["logits_processors"] = [REPLY_PROCESSOR]
    rounds = [{"prompts": asked, "sampling": SAMPLING}]
    jobs = {name: {"llm": llm | options, "rounds": rounds} for name, options in SCHEDULES.items()}
    again = [ids + answer[: NEW - 7] for ids, answer in zip(asked, greedy(model, asked, NEW))]
    second = {"prompts": again, "sampling": SAMPLING | {"max_tokens": 7}}
    jobs["cached"] = {"llm": llm | {"enable_prefix_caching": True, "max_model_len": 160}, "rounds": [*rounds, second]}
    hot = SAMPLING | {"temperature": 1.5, "seed": 1, "presence_penalty": 2.0, "logit_bias": {"5": 100.0}}
    jobs["hot"] = {"llm": llm, "rounds": [{"prompts": asked, "sampling": hot}]}
    jobs["no processor"] = {"llm": {name: value for name, value in llm.items() if name != "logits_processors"}, "rounds": rounds}
    jobs["speculating"] = {
        "llm": llm | {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
        "rounds": rounds,
    }
    return model, asked, dict(zip(jobs, run_engines(root, list(jobs.values()))))


@pytest.mark.parametrize("name", SCHEDULES)
def test_tokens_are_those_of_whole_passes(name: str, found: tuple[Any, list[list[int]], dict[str, dict[str, Any]]]) -> None:
    model, asked, results = found
    expected = greedy(model, asked, NEW)
    replies = [sum(answer[i : i + 6] in (ANSWER, TAIL) for i in range(NEW)) for answer in expected]
    assert 3 <= sum(map(bool, replies)) < len(asked)  # some gates open, and some stay closed
    assert "error" not in results[name], results[name].get("error")
    assert [output["tokens"][0] for output in results[name]["rounds"][0]] == expected
    if name == "preempted":
        assert results[name]["metrics"]["vllm:num_preemptions"] > 0


def test_a_second_round_goes_on_from_the_prefix_cache(found: tuple[Any, list[list[int]], dict[str, dict[str, Any]]]) -> None:
    """Some of the blocks end in the middle of a reply."""
    _, _, results = found
    first, second = results["cached"]["rounds"]
    assert sum(output["cached"] > 0 for output in second) >= 6
    assert [output["tokens"][0] for output in second] == [output["tokens"][0][NEW - 7 :] for output in first]


def test_sampling_does_not_pass_the_reply_by(found: tuple[Any, list[list[int]], dict[str, dict[str, Any]]]) -> None:
    """Where the gate is open at the end of a prompt, a hot, penalised and biased request gets the reply, too."""
    model, asked, results = found
    expected, hot = greedy(model, asked, len(ANSWER)), results["hot"]["rounds"][0]
    replies = [i for i, answer in enumerate(expected) if answer in (ANSWER, TAIL)]
    assert replies and all(hot[i]["tokens"][0][: len(ANSWER)] == expected[i] for i in replies)


def test_what_can_t_say_it_is_refused(found: tuple[Any, list[list[int]], dict[str, dict[str, Any]]]) -> None:
    _, _, results = found
    assert "an adapter has a reply: give vLLM logits_processors=" in results["no processor"]["error"]
    assert "logits processors are not supported when speculative decoding" in results["speculating"]["error"].replace("\n", " ")


def test_overrides_without_a_reply_say_a_guess(tmp_path: Path) -> None:
    """`reply` "guess" puts the adapter's reply aside, without the processor."""
    model, llm = unlearned("llama", "mean", True, tmp_path)
    model.set_reply(Reply("no", HEADER, ANSWER, TAIL))
    model.save_pretrained(tmp_path / "adapter")
    llm["hf_overrides"]["tempertilt"]["reply"] = "guess"
    asked = prompts(6, 50)
    [result] = run_engines(tmp_path, [{"llm": json.loads(json.dumps(llm)), "rounds": [{"prompts": asked, "sampling": SAMPLING}]}])
    spoken = greedy(model, asked, NEW)
    model.set_reply(None)
    assert [output["tokens"][0] for output in result["rounds"][0]] == greedy(model, asked, NEW) != spoken
